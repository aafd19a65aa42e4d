"""From ids to text, with a model that says what it is told to say."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn
from torch.nn.functional import one_hot

from llamacli.cache import KVCache
from llamacli.config import LlamaConfig
from llamacli.generation import Generation, Piece, TokenStream, generate, stream_text
from llamacli.outputs import BaseModelOutput
from llamacli.request import SamplingParams
from llamacli.tokenizer import Tokenizer
from llamacli.tokenizer_fast import load_tokenizer
from tests.tiny import write_model, write_tokenizer
from tests.tokenizer_samples import folder_with, tiktoken_file

KINDS = ["sentencepiece", "byte-level"]


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    with TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "sentencepiece":
            write_tokenizer(folder)
        else:
            folder_with(folder, tiktoken_file())
        return load_tokenizer(folder)


class Script(nn.Module):
    """Looks like a causal language model, and says the same ids after any prompt."""

    def __init__(self, ids: Sequence[int], prompt_length: int, vocab_size: int) -> None:
        super().__init__()
        self.config = LlamaConfig(vocab_size=vocab_size, num_hidden_layers=1, hidden_size=64)
        self.ids, self.prompt_length, self.vocab_size = ids, prompt_length, vocab_size
        self.weight = nn.Parameter(torch.zeros(1))

    @property
    def model(self) -> "Script":
        return self

    @property
    def lm_head(self) -> nn.Module:
        return nn.Identity()

    def forward(
        self, chunk: Tensor, *, cache: KVCache, attention_mask: Tensor | None
    ) -> BaseModelOutput:
        cache.advance(chunk.shape[1])
        said = self.ids[(cache.length - self.prompt_length) % len(self.ids)]
        logits = 9.0 * one_hot(torch.full_like(chunk, said), self.vocab_size)
        return BaseModelOutput(last_hidden_state=logits)


def stream(
    tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int], **params: Any
) -> TokenStream:
    """A stream of these ids; they begin again when they end."""
    params = {"temperature": 0.0, "max_new_tokens": len(ids)} | params
    return TokenStream(
        Script(ids, len(prompt), tokenizer.vocab_size),
        [prompt],
        [SamplingParams(**params)],
        eos_token_ids=tokenizer.eos_token_ids,
    )


def say(
    tokenizer: Tokenizer,
    text: str,
    *,
    prompt: str = "The sun",
    answers: bool = False,
    **params: Any,
) -> tuple[list[Piece], Generation]:
    """The pieces and the whole of a text that is said after a prompt."""
    prompt_ids = tokenizer.encode(prompt)
    ids = tokenizer.encode_segments(["x" + text])[len(tokenizer.encode_segments(["x"])) :]
    rows = (0,) if answers else ()
    pieces = list(
        stream_text(stream(tokenizer, prompt_ids, ids, **params), tokenizer, answers=rows)
    )
    whole = generate(stream(tokenizer, prompt_ids, ids, **params), tokenizer, answers=rows)[0]
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [piece.token for piece in pieces] == whole.tokens
    return pieces, whole


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return tokenizer_of(request.param)


# ---------------------------------------------------------------------------- text of the tokens


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_the_pieces_are_what_decode_adds_to_the_prompt(kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    some_ids = st.lists(st.integers(0, tokenizer.vocab_size - 1), min_size=1, max_size=12)
    prompt, ids = data.draw(some_ids), data.draw(some_ids)
    ids = [i for i in ids if i not in tokenizer.eos_token_ids] or [5]

    def decode(token_ids: list[int]) -> str:
        return tokenizer.decode(token_ids, skip_special_tokens=True)

    found = generate(stream(tokenizer, prompt, ids), tokenizer)[0]
    if "\ufffd" not in decode(prompt):  # else a character may begin in the prompt
        assert decode(prompt) + found.text == decode(prompt + ids)
    alone = generate(stream(tokenizer, prompt, ids), tokenizer, answers=[0])[0]
    assert alone.text == decode(ids)


def test_a_text_that_continues_keeps_its_first_blank(tokenizer: Tokenizer) -> None:
    assert say(tokenizer, " warms the stone")[1].text == " warms the stone"


def test_an_answer_begins_without_the_blank_that_sentencepiece_adds() -> None:
    assert say(tokenizer_of("sentencepiece"), " moon", answers=True)[1].text == "moon"
    assert say(tokenizer_of("byte-level"), " moon", answers=True)[1].text == " moon"


def test_every_token_has_its_piece_and_the_last_one_the_reason(tokenizer: Tokenizer) -> None:
    pieces, whole = say(tokenizer, " The moon sees the river", max_new_tokens=3)
    assert len(pieces) == 3
    assert [piece.finish_reason for piece in pieces] == [None, None, "length"]
    assert (whole.finish_reason, whole.stop) == ("length", None)
    assert " The moon sees the river".startswith(whole.text)


def test_fault_054_a_character_is_held_back_until_it_is_whole(tokenizer: Tokenizer) -> None:
    pieces, whole = say(tokenizer, "é🦙")
    assert whole.text == "é🦙"
    assert [piece.text for piece in pieces if piece.text] == ["é", "🦙"]
    assert len(pieces) == 6


def test_fault_054_half_a_character_shows_only_at_the_end(tokenizer: Tokenizer) -> None:
    pieces, whole = say(tokenizer, "é🦙", max_new_tokens=4)
    assert [piece.text for piece in pieces[:-1]] == ["", "é", ""]
    assert whole.text.strip("\ufffd") == "é"
    assert whole.text != "é"


# ---------------------------------------------------------------------------------- end of text


def test_an_end_id_ends_the_text_and_adds_none(tokenizer: Tokenizer) -> None:
    end = min(tokenizer.eos_token_ids)
    words = tokenizer.encode(" moon", add_special_tokens=False)
    found = generate(stream(tokenizer, [5], [*words, end, *words]), tokenizer)[0]
    assert [token.id for token in found.tokens] == [*words, end]
    assert found.text.strip() == "moon"
    assert (found.finish_reason, found.stop) == ("stop", None)


def test_text_held_back_for_a_stop_string_comes_at_the_end(tokenizer: Tokenizer) -> None:
    pieces, whole = say(tokenizer, " moon", stop=("moonlight",))
    assert whole.text == " moon"
    assert pieces[-1].text.endswith("moon")
    end = min(tokenizer.eos_token_ids)
    ids = [*tokenizer.encode_segments(["x moon"]), end]
    found = generate(stream(tokenizer, [5], ids, stop=["moonlight"]), tokenizer)[0]
    assert found.text.endswith("moon")
    assert found.finish_reason == "stop"


@pytest.mark.parametrize("stop", ["on s", "moon", " sees", "moon sees the", "s", "\n", "é"])
def test_fault_068_a_stop_string_cuts_exactly_across_tokens(
    tokenizer: Tokenizer, stop: str
) -> None:
    text = " The moon sees the river.\nIt is été."
    pieces, whole = say(tokenizer, text, stop=(stop, "never there"))
    assert whole.text == text[: text.index(stop)]
    assert (whole.finish_reason, whole.stop) == ("stop", stop)
    assert len(pieces) < len(tokenizer.encode_segments([text]))


def test_nothing_is_computed_after_a_stop_string(tokenizer: Tokenizer) -> None:
    tokens = stream(tokenizer, [5], tokenizer.encode_segments(["a.b.c"]), stop=["."])
    whole = generate(tokens, tokenizer)[0]
    assert tokens.timings.decoded_tokens == len(whole.tokens) - 1


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text("ab é\n", min_size=1, max_size=20), data=st.data())
def test_fault_068_the_first_complete_stop_string_wins(
    kind: str, text: str, data: st.DataObject
) -> None:
    tokenizer = tokenizer_of(kind)
    stops = tuple(data.draw(st.lists(st.text("ab é\n", min_size=1, max_size=3), max_size=3)))
    _, whole = say(tokenizer, text, stop=stops)
    ends = [end for end in range(len(text) + 1) if text[:end].endswith(stops or ("\0",))]
    if ends:
        stop = max((s for s in stops if text[: ends[0]].endswith(s)), key=len)
        assert (whole.text, whole.stop) == (text[: ends[0] - len(stop)], stop)
    else:
        assert (whole.text, whole.stop) == (text, None)


# --------------------------------------------------------------------------------------- batches


def test_rows_keep_their_order_and_are_the_texts_alone(tmp_path: Path) -> None:
    model, tokenizer = write_model(tmp_path), load_tokenizer(tmp_path)
    prompts = [tokenizer.encode(text) for text in ("The sun", "A bird sees the", "Stone")]
    params = [SamplingParams(seed=7, max_new_tokens=count) for count in (9, 4, 15)]
    end = tokenizer.eos_token_ids
    together = generate(TokenStream(model, prompts, params, eos_token_ids=end), tokenizer)
    for prompt, param, whole in zip(prompts, params, together, strict=True):
        [alone] = generate(TokenStream(model, [prompt], [param], eos_token_ids=end), tokenizer)
        assert (alone.text, alone.finish_reason) == (whole.text, whole.finish_reason)
        ids = [token.id for token in whole.tokens]
        added = tokenizer.decode(prompt + ids, skip_special_tokens=True)
        assert tokenizer.decode(prompt, skip_special_tokens=True) + whole.text == added


def test_a_stop_string_of_one_row_leaves_the_others_alone(tmp_path: Path) -> None:
    model, tokenizer = write_model(tmp_path), load_tokenizer(tmp_path)
    prompts = [tokenizer.encode("The sun"), tokenizer.encode("Stone")]
    free = SamplingParams(temperature=0.0, max_new_tokens=12)
    first, second = generate(TokenStream(model, prompts, [free, free]), tokenizer)
    stopped = SamplingParams(temperature=0.0, max_new_tokens=12, stop=(first.text[4:7],))
    cut, whole = generate(TokenStream(model, prompts, [stopped, free]), tokenizer)
    assert whole == second
    assert (cut.text, cut.stop) == (first.text[: first.text.index(cut.stop)], cut.stop)


def test_an_interrupted_text_has_no_reason_to_end(tokenizer: Tokenizer) -> None:
    whole = Generation()
    ids = tokenizer.encode_segments(["a b c d"])
    for piece in stream_text(stream(tokenizer, [5], ids), tokenizer):
        whole.add(piece)
        if len(whole.tokens) == 2:
            break
    assert whole.finish_reason is None
