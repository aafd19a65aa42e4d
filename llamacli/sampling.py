"""How the next token is chosen: logits processors and the sampler.

A logits processor is a function `(token_ids, logits) -> logits`: the ids of prompt and output so
far, and the logits (V,) in float32, which it leaves unchanged. V is the number of usable ids.
First the processors act, in this order:

    repetition penalty
    presence and frequency penalty
    no repeated n-gram
    logit bias
    sequence bias
    no end of sequence (ignore_eos, min_new_tokens)

A greedy request then takes the best token. Otherwise the filters act, functions of the logits
alone in Hugging Face's order, each of which keeps at least one token; one of the rest is drawn:

    temperature
    top-k
    top-p
    min-p
    typical-p
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from llamacli.errors import CheckpointError, RequestError
from llamacli.request import SamplingParams

LogitsProcessor = Callable[[Sequence[int], Tensor], Tensor]
LogitsFilter = Callable[[Tensor], Tensor]

# Below this temperature the best token has all the probability that float32 can show.
GREEDY_TEMPERATURE = 1e-5


class _RepetitionPenalty:
    """Divide positive and multiply negative logits of the tokens seen so far (arXiv:1909.05858)."""

    def __init__(self, penalty: float, device: torch.device) -> None:
        self._penalty = penalty
        self._length = 0
        self._seen: set[int] = set()
        self._ids = _index((), device)  # of _seen

    def __call__(self, token_ids: Sequence[int], logits: Tensor) -> Tensor:
        new = {i for i in token_ids[self._length :] if i < len(logits)} - self._seen
        self._length = len(token_ids)
        self._seen |= new
        self._ids = torch.cat([self._ids, _index(new, logits.device)])
        seen = logits[self._ids]
        seen = torch.where(seen < 0, seen * self._penalty, seen / self._penalty)
        return logits.index_copy(0, self._ids, seen)


class _OccurrencePenalty:
    """Subtract presence + frequency * occurrences from the logits of generated tokens.

    As OpenAI defines the two: https://platform.openai.com/docs/api-reference/completions.
    """

    def __init__(
        self, presence: float, frequency: float, prompt_length: int, penalties: Tensor
    ) -> None:
        self._presence = presence
        self._frequency = frequency
        self._length = prompt_length
        self._counts: Counter[int] = Counter()
        self._penalties = penalties  # (V,), zeros at first

    def __call__(self, token_ids: Sequence[int], logits: Tensor) -> Tensor:
        for token_id in token_ids[self._length :]:
            self._counts[token_id] += 1
            penalty = self._presence + self._frequency * self._counts[token_id]
            self._penalties[token_id] = penalty
        self._length = len(token_ids)
        return logits - self._penalties


class _NoRepeatNgram:
    """Ban the tokens that would repeat an n-gram of prompt and output."""

    def __init__(self, size: int) -> None:
        self._context = size - 1
        self._length = size - 1  # the first whole n-gram ends here
        self._followers: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)

    def __call__(self, token_ids: Sequence[int], logits: Tensor) -> Tensor:
        for end in range(self._length, len(token_ids)):
            self._followers[tuple(token_ids[end - self._context : end])].add(token_ids[end])
        self._length = max(self._length, len(token_ids))
        repeating = self._followers.get(_last(self._context, token_ids), ())
        banned = _index((i for i in repeating if i < len(logits)), logits.device)
        return logits.index_fill(0, banned, -math.inf)


class _SequenceBias:
    """Add a bias to the last token of each sequence whose other tokens have just been seen."""

    def __init__(self, biases: Mapping[tuple[int, ...], float], device: torch.device) -> None:
        by_prefix: defaultdict[tuple[int, ...], dict[int, float]] = defaultdict(dict)
        for (*prefix, last), bias in biases.items():
            by_prefix[tuple(prefix)][last] = bias
        self._prefix_lengths = {len(prefix) for prefix in by_prefix}
        self._by_prefix = {
            prefix: (_index(ends, device), torch.tensor([*ends.values()], device=device))
            for prefix, ends in by_prefix.items()
        }

    def __call__(self, token_ids: Sequence[int], logits: Tensor) -> Tensor:
        for length in self._prefix_lengths:
            if found := self._by_prefix.get(_last(length, token_ids)):
                logits = logits.index_add(0, *found)
        return logits


def _no_end(eos_token_ids: Tensor, until_length: float) -> LogitsProcessor:
    """Ban the end of the sequence while prompt and output are shorter than `until_length`."""

    def process(token_ids: Sequence[int], logits: Tensor) -> Tensor:
        over = len(token_ids) >= until_length
        return logits if over else logits.index_fill(0, eos_token_ids, -math.inf)

    return process


def _last(count: int, token_ids: Sequence[int]) -> tuple[int, ...]:
    return tuple(token_ids[max(0, len(token_ids) - count) :])


def _index(token_ids: Iterable[int], device: torch.device) -> Tensor:
    return torch.tensor([*token_ids], dtype=torch.long, device=device)


def _top_k(k: int, logits: Tensor) -> Tensor:
    """Keep the k most probable tokens, and those that equal the last of them."""
    lowest = logits.topk(min(k, len(logits))).values[-1]
    return logits.masked_fill(logits < lowest, -math.inf)


def _top_p(p: float, logits: Tensor) -> Tensor:
    """Keep the fewest tokens whose probabilities add up to p (arXiv:1904.09751)."""
    probs = logits.softmax(-1)
    # Sorting a vocabulary is slow. Tokens below (1 - p) / V cannot have more than 1 - p together,
    # so none of them is kept; half of that leaves room for rounding.
    candidates = (probs > (1 - p) / len(probs) / 2).nonzero().squeeze(-1)
    order = probs[candidates].argsort(descending=True, stable=True)
    return _keep_mass(p, candidates[order], probs, logits)


def _min_p(p: float, logits: Tensor) -> Tensor:
    """Keep the tokens with at least p times the best probability (arXiv:2407.01082)."""
    return logits.masked_fill(logits < logits.max() + math.log(p), -math.inf)


def _typical_p(mass: float, logits: Tensor) -> Tensor:
    """Keep the tokens nearest to the expected information, up to a mass (arXiv:2202.00666)."""
    logprobs = logits.log_softmax(-1)
    probs = logprobs.exp()
    entropy = -(probs * logprobs).nansum()  # 0 * -inf counts as 0
    order = (logprobs + entropy).abs().argsort(stable=True)
    return _keep_mass(mass, order, probs, logits)


def _keep_mass(mass: float, order: Tensor, probs: Tensor, logits: Tensor) -> Tensor:
    """Keep the first of the ids in `order`, up to the one whose probability completes `mass`."""
    kept = order[: int((probs[order].cumsum(-1) < mass).sum()) + 1]
    return torch.full_like(logits, -math.inf).index_copy(0, kept, logits[kept])


def make_processors(
    params: SamplingParams,
    *,
    prompt_length: int,
    eos_token_ids: frozenset[int],
    vocab_size: int,
    device: torch.device,
) -> list[LogitsProcessor]:
    """The penalties and bans that `params` asks for, in their order.

    They remember what they have read: one list serves one sequence that only grows.

    Raises:
        RequestError: a bias for an id that the model does not have.
    """
    _check_ids("logit_bias", params.logit_bias, vocab_size)
    _check_ids("sequence_bias", chain.from_iterable(params.sequence_bias), vocab_size)
    processors: list[LogitsProcessor] = []
    if params.repetition_penalty != 1:
        processors.append(_RepetitionPenalty(params.repetition_penalty, device))
    presence, frequency = params.presence_penalty, params.frequency_penalty
    if presence or frequency:
        penalties = torch.zeros(vocab_size, device=device)
        processors.append(_OccurrencePenalty(presence, frequency, prompt_length, penalties))
    if params.no_repeat_ngram_size:
        processors.append(_NoRepeatNgram(params.no_repeat_ngram_size))
    if params.logit_bias:
        single: dict[tuple[int, ...], float] = {(i,): b for i, b in params.logit_bias.items()}
        processors.append(_SequenceBias(single, device))
    if params.sequence_bias:
        processors.append(_SequenceBias(params.sequence_bias, device))
    if params.ignore_eos or params.min_new_tokens:
        end = math.inf if params.ignore_eos else prompt_length + params.min_new_tokens
        banned = _index((i for i in eos_token_ids if i < vocab_size), device)
        processors.append(_no_end(banned, end))
    return processors


def _check_ids(name: str, token_ids: Iterable[int], vocab_size: int) -> None:
    if (highest := max(token_ids, default=0)) >= vocab_size:
        raise RequestError(f"{name}: token ids must be below {vocab_size}, got {highest}")


def make_filters(params: SamplingParams) -> list[LogitsFilter]:
    """Temperature and the filters that `params` asks for, in their order; none when greedy."""
    if params.temperature < GREEDY_TEMPERATURE:
        return []
    filters: list[LogitsFilter] = [lambda logits: logits / params.temperature]
    if params.top_k:
        filters.append(partial(_top_k, params.top_k))
    if params.top_p < 1:
        filters.append(partial(_top_p, params.top_p))
    if params.min_p:
        filters.append(partial(_min_p, params.min_p))
    if params.typical_p < 1:
        filters.append(partial(_typical_p, params.typical_p))
    return filters


@dataclass(frozen=True, slots=True)
class Choice:
    """One chosen token.

    Attributes:
        token_id: the token.
        logprob: its log-probability by the model itself, before any processor; None if not asked.
        alternatives: the most probable tokens and their log-probabilities, best first.
    """

    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one request, one after another, and remembers them.

    Every request has its own sampler, so what it gets never depends on the batch around it. A
    step takes one uniform number, from a generator of its own that lives on the CPU: the same seed
    gives the same numbers whatever the device.

    Args:
        params: how to choose.
        prompt_ids: the ids that the processors see before the first chosen one.
        eos_token_ids: what min_new_tokens and ignore_eos ban.
        vocab_size: usable ids. Embeddings are often padded; logits of further rows are ignored.
        device: where the logits will be.

    Raises:
        RequestError: a bias for an id that the model does not have.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt_ids: Sequence[int],
        eos_token_ids: frozenset[int],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self.token_ids = list(prompt_ids)
        self.vocab_size = vocab_size
        self.processors = make_processors(
            params,
            prompt_length=len(self.token_ids),
            eos_token_ids=eos_token_ids,
            vocab_size=vocab_size,
            device=device,
        )
        self.filters = make_filters(params)
        self._logprobs = params.logprobs
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def __call__(self, logits: Tensor) -> Choice:
        """Choose the token that follows, from logits (V or more,) of any float type.

        Raises:
            CheckpointError: the logits are NaN or infinite.
            RequestError: penalties and bans leave no token.
        """
        logits = logits[: self.vocab_size].float()  # (V,)
        if not math.isfinite(highest := logits.max().item()):
            kind = "NaN" if math.isnan(highest) else "infinite"
            raise CheckpointError(
                f"the model produced {kind} logits after {len(self.token_ids)} tokens",
                hint="the weights are damaged or the dtype is too narrow: try float32",
            )
        processed = logits
        for process in self.processors:
            processed = process(self.token_ids, processed)
        best, best_id = processed.max(dim=-1)  # of equals the lowest id
        if not math.isfinite(best.item()):
            raise RequestError("penalties, biases and bans leave no token to choose")
        # The best logit becomes 0, so that no temperature overflows.
        token_id = self._draw(processed - best) if self.filters else int(best_id)
        self.token_ids.append(token_id)
        return self._choice(token_id, logits)

    def _draw(self, logits: Tensor) -> int:
        """Invert the cumulative distribution at one random point; Gumbel noise would take V."""
        for keep in self.filters:
            logits = keep(logits)
        kept = (logits > -math.inf).nonzero().squeeze(-1)
        cumulative = logits[kept].softmax(-1).cumsum(-1)
        # The point lies in (0, total]: a token of probability 0 is never met, the end never passed.
        uniform = torch.rand((), dtype=torch.float64, generator=self._generator).item()
        point = cumulative[-1] * (1 - uniform)
        return int(kept[torch.searchsorted(cumulative, point)])

    def _choice(self, token_id: int, logits: Tensor) -> Choice:
        if self._logprobs is None:
            return Choice(token_id)
        logprobs = logits.log_softmax(-1)
        alternatives = tuple((i, float(logprobs[i])) for i in _top(logprobs, self._logprobs))
        return Choice(token_id, float(logprobs[token_id]), alternatives)


def _top(logprobs: Tensor, count: int) -> list[int]:
    """The ids of the largest, best first, the lowest id first among equals."""
    if count == 0:
        return []
    lowest = logprobs.topk(min(count, len(logprobs))).values[-1]
    ids = (logprobs >= lowest).nonzero().squeeze(-1)
    order = logprobs[ids].argsort(descending=True, stable=True)
    best: list[int] = ids[order[:count]].tolist()
    return best
