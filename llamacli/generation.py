"""Prompts in, text out: `TokenStream` (ids) → `stream_text` (pieces) → `generate` (whole texts).

Each layer can be used alone. The token stream knows nothing of text, and works on any module that
looks like a causal language model.
"""

import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from llamacli.cache import KVCache, new_cache
from llamacli.config import LlamaConfig
from llamacli.context_window import token_budget
from llamacli.devices import main_device
from llamacli.lookup import NgramLookup
from llamacli.request import SamplingParams
from llamacli.sampling import Choice, Sampler
from llamacli.stop_strings import StopMatcher
from llamacli.stream_decoder import StreamDecoder
from llamacli.timings import Timings
from llamacli.tokenizer import Tokenizer

# Tokens; bounds the memory of a long prompt's activations. A GPU has work for more at once.
PREFILL_CHUNK, GPU_PREFILL_CHUNK = 512, 4096

FinishReason = Literal["stop", "length"]


class CausalLM(Protocol):
    """A model that gives hidden states, and a head that turns them into logits."""

    config: LlamaConfig

    @property
    def model(self) -> nn.Module:
        """(B, T) ids → an output whose `last_hidden_state` is (B, T, C), with a cache."""

    @property
    def lm_head(self) -> nn.Module:
        """(…, C) → logits (…, V)."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token of one row of the batch.

    Attributes:
        row: index of the prompt.
        id: token id; an end-of-sequence id when finish_reason is "stop".
        logprob: of this token under the model itself, when asked for.
        alternatives: the most probable (id, logprob), when asked for.
        finish_reason: None while the row goes on.
    """

    row: int
    id: int
    logprob: float | None
    alternatives: tuple[tuple[int, float], ...]
    finish_reason: FinishReason | None


class TokenStream:
    """Iterates over the generated tokens of a batch, step by step, rows in order.

    Rows never influence each other: each has its own sampler and random generator, and leaves the
    batch when it is finished.

    With `lookup`, a row that is alone in its batch is decoded speculatively. One decode step scores
    the last token and a draft of what may follow; then the row's own sampler chooses at each
    position in turn, and a drafted token is accepted where it is the token chosen. So the ids, the
    random numbers spent and the distribution are those of ordinary decoding; only the rounding of
    a step with several tokens may differ. Dynamic rotary positions follow the length of a step: a
    model with these is never given a draft.

    Args:
        model: the language model.
        prompts: token ids of each row; not empty.
        params: sampling parameters of each row.
        eos_token_ids: ids that end a row.
        vocab_size: ids from here on are never chosen (rows of padding in the embedding).
        static_cache: allocate the whole cache at once.
        lookup: tokens of the longest draft; 0 is off.

    Raises:
        RequestError: an empty prompt, or one that leaves no room in the model's context.
    """

    def __init__(
        self,
        model: CausalLM,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        *,
        eos_token_ids: frozenset[int] = frozenset(),
        vocab_size: int | None = None,
        static_cache: bool = False,
        lookup: int = 0,
    ) -> None:
        self.prompts, self.params = prompts, params
        self.timings = Timings(prompt_tokens=sum(map(len, prompts)))
        self._model = model
        self._eos_token_ids = eos_token_ids
        self._device = main_device(model)
        self._budgets = [
            token_budget(model.config.context_length, len(prompt), p.max_new_tokens)
            for prompt, p in zip(prompts, params, strict=True)
        ]
        self._samplers = [
            Sampler(
                p,
                prompt_ids=prompt,
                eos_token_ids=eos_token_ids,
                vocab_size=vocab_size or model.config.vocab_size,
                device=self._device,
            )
            for prompt, p in zip(prompts, params, strict=True)
        ]
        longest = max(map(len, prompts), default=0)
        max_length = longest + max(self._budgets, default=0) if static_cache else None
        self._cache = new_cache(model, max_length)
        self._attention_mask: Tensor | None = None  # (B, S), None without padding
        drafts = lookup > 0 and not model.config.rope_follows_length
        self._lookup = NgramLookup(lookup) if drafts else None
        self._finished: set[int] = set()
        self._rows = [row for row, budget in enumerate(self._budgets) if budget]

    def finish(self, row: int) -> None:
        """Stop a row before its next token."""
        self._finished.add(row)

    def __iter__(self) -> Iterator[Token]:
        if not self._rows:
            return
        start = time.perf_counter()
        logits = self._prefill()[:, None]  # (B, T, V)
        draft: list[int] = []
        while True:
            chosen = []
            for row, row_logits in zip(self._rows, logits, strict=True):
                for token in self._choose_run(row, row_logits, draft):
                    if not self.timings.time_to_first_token_s:
                        self.timings.time_to_first_token_s = time.perf_counter() - start
                    yield token
                chosen.append(token.id)
            if not (chosen := self._drop_finished(chosen)):
                return
            draft = self._make_draft()
            input_ids = torch.tensor([[i, *draft] for i in chosen], device=self._device)  # (B, T)
            logits = self._decode_step(input_ids)

    def _choose_run(self, row: int, logits: Tensor, draft: list[int]) -> Iterator[Token]:
        """One token of a row, and the next for as long as the draft has what is chosen.

        Args:
            row: the row.
            logits: (T, V), after its last token and after each of the draft.
            draft: T - 1 token ids, the last in the cache.
        """
        for accepted, drafted in enumerate([*draft, None]):
            token = self._token(row, self._samplers[row](logits[accepted]))
            yield token
            if token.id != drafted or row in self._finished:
                break
        self._cache.truncate(self._cache.length - len(draft) + accepted)
        self.timings.decoded_tokens += accepted
        self.timings.accepted_tokens += accepted

    def _token(self, row: int, choice: Choice) -> Token:
        self._budgets[row] -= 1
        reason: FinishReason | None = None
        if choice.token_id in self._eos_token_ids:
            reason = "stop"
        elif self._budgets[row] == 0:
            reason = "length"
        if reason:
            self.finish(row)
        return Token(row, choice.token_id, choice.logprob, choice.alternatives, reason)

    def _drop_finished(self, chosen: list[int]) -> list[int]:
        """Take finished rows out of the batch; the chosen ids of those that go on."""
        kept = [i for i, row in enumerate(self._rows) if row not in self._finished]
        if len(kept) < len(self._rows) and kept:
            index = torch.tensor(kept, device=self._device)
            self._cache.keep_rows(index)
            if self._attention_mask is not None:
                self._attention_mask = self._attention_mask[index]
        self._rows = [self._rows[i] for i in kept]
        return [chosen[i] for i in kept]

    @torch.inference_mode()
    def _prefill(self) -> Tensor:
        """Logits (B, V) after the prompts, which are padded on the left to one length."""
        start = time.perf_counter()
        prompts = [self.prompts[row] for row in self._rows]
        longest = max(map(len, prompts))
        padded = [[0] * (longest - len(p)) + list(p) for p in prompts]
        input_ids = torch.tensor(padded, device=self._device)  # (B, T)
        lengths = torch.tensor([len(p) for p in prompts], device=self._device)
        mask = torch.arange(longest, device=self._device) >= longest - lengths[:, None]
        self._attention_mask = None if mask.all() else mask
        logits = next_logits(self._model, input_ids, self._cache, self._attention_mask)
        self.timings.prefill_s += time.perf_counter() - start
        return logits

    def _make_draft(self) -> list[int]:
        """What may follow the last token. Rows of a batch would accept different numbers: none."""
        if self._lookup is None or len(self._rows) > 1:
            return []
        (row,) = self._rows
        return self._lookup.draft(self._samplers[row].token_ids, self._budgets[row] - 1)

    @torch.inference_mode()
    def _decode_step(self, input_ids: Tensor) -> Tensor:
        """Logits (B, T, V) after one more token in each row, and after each of the draft."""
        start = time.perf_counter()
        if self._attention_mask is not None:
            known = self._attention_mask[:, : self._cache.length]
            self._attention_mask = torch.cat((known, known.new_ones(input_ids.shape)), dim=1)
        outputs = self._model.model(
            input_ids, cache=self._cache, attention_mask=self._attention_mask
        )
        logits = self._model.lm_head(outputs.last_hidden_state).to(self._device)
        self.timings.decode_s += time.perf_counter() - start
        self.timings.decoded_tokens += len(input_ids)
        self.timings.drafted_tokens += input_ids.shape[1] - 1
        return logits  # type: ignore[no-any-return]


def next_logits(
    model: CausalLM, input_ids: Tensor, cache: KVCache, attention_mask: Tensor | None = None
) -> Tensor:
    """Give the model T more tokens, a chunk at a time.

    Args:
        model: the language model.
        input_ids: (B, T), padded on the left.
        cache: holds the tokens before these, and is given these.
        attention_mask: (B, S), False where padding stands, S counted from the cache's beginning.

    Returns:
        logits (B, V) after the last token.
    """
    size = PREFILL_CHUNK if input_ids.device.type == "cpu" else GPU_PREFILL_CHUNK
    for chunk in torch.split(input_ids, size, dim=1):
        end = cache.length + chunk.shape[1]
        mask = None if attention_mask is None else attention_mask[:, :end]
        outputs = model.model(chunk, cache=cache, attention_mask=mask)
    logits = model.lm_head(outputs.last_hidden_state[:, -1])  # (B, V)
    return logits.to(input_ids.device)  # type: ignore[no-any-return]


# ----------------------------------------------------------------------------------------------
# Text


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token adds to the text of its row.

    Attributes:
        text: may be empty, while a character or a possible stop string is incomplete.
        token: the token; an end-of-sequence token adds no text of its own.
        finish_reason: None while the row goes on.
        stop: the stop string that ended the row.
    """

    text: str
    token: Token
    finish_reason: FinishReason | None
    stop: str | None = None


class _RowText:
    """One row's way from ids to text: decoder, then stop strings."""

    def __init__(
        self, tokenizer: Tokenizer, continues: Sequence[int], stops: Sequence[str]
    ) -> None:
        self._decoder = StreamDecoder(tokenizer, continues=continues)
        self._matcher = StopMatcher(stops)

    def push(self, token: Token) -> Piece:
        text = ""
        if token.finish_reason != "stop":
            text = self._matcher.push(self._decoder.push(token.id))
        if token.finish_reason and self._matcher.matched is None:
            text += self._matcher.push(self._decoder.flush())
            if self._matcher.matched is None:
                text += self._matcher.flush()
        stop = self._matcher.matched
        return Piece(text, token, "stop" if stop else token.finish_reason, stop)


def stream_text(
    tokens: TokenStream, tokenizer: Tokenizer, *, answers: Container[int] = ()
) -> Iterator[Piece]:
    """The text of every row as it comes, one piece a token.

    Args:
        tokens: the token stream.
        tokenizer: of the same model.
        answers: rows whose text stands alone. That of the others continues the prompt: its first
            word keeps its blank, so that prompt + text is what the model means.
    """
    rows = [
        _RowText(tokenizer, () if row in answers else prompt, params.stop)
        for row, (prompt, params) in enumerate(zip(tokens.prompts, tokens.params, strict=True))
    ]
    for token in tokens:
        piece = rows[token.row].push(token)
        if piece.finish_reason:
            tokens.finish(token.row)
        yield piece


@dataclass(slots=True)
class Generation:
    """One finished (or interrupted) text.

    Attributes:
        text: cut before the stop string, without special tokens.
        tokens: every generated token, an end-of-sequence token included.
        finish_reason: None when it was interrupted.
        stop: the stop string that ended it.
    """

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop: str | None = None

    def add(self, piece: Piece) -> None:
        """Append what came of one token."""
        self.text += piece.text
        self.tokens.append(piece.token)
        self.finish_reason, self.stop = piece.finish_reason, piece.stop


def generate(
    tokens: TokenStream, tokenizer: Tokenizer, *, answers: Container[int] = ()
) -> list[Generation]:
    """The whole text of every row, in order; arguments as `stream_text`."""
    generations = [Generation() for _ in tokens.prompts]
    for piece in stream_text(tokens, tokenizer, answers=answers):
        generations[piece.token.row].add(piece)
    return generations
