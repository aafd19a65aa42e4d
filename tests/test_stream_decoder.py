from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from llamacli.errors import TokenizerError
from llamacli.stream_decoder import StreamDecoder
from llamacli.tokenizer import Tokenizer
from llamacli.tokenizer_fast import LlamaTokenizerFast
from llamacli.tokenizer_sentencepiece import LlamaTokenizer
from tests.tokenizer_samples import (
    byte_level_json,
    converted_json,
    sentencepiece_model,
    tiktoken_file,
    write_json,
)

KINDS = ["sentencepiece", "trimming", "llama2", "tiktoken", "byte-level", "first", "prepend"]


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    kind = request.param
    if kind == "llama2":
        return LlamaTokenizer(request.getfixturevalue("llama2_tokenizer_file"))
    path = tmp_path / "tokenizer.model"
    if kind in ("sentencepiece", "trimming"):
        path.write_bytes(sentencepiece_model(remove_extra_whitespaces=kind == "trimming"))
        return LlamaTokenizer(path)
    if kind == "tiktoken":
        path.write_bytes(tiktoken_file())
        return LlamaTokenizerFast(path)
    data = byte_level_json() if kind == "byte-level" else converted_json(kind)
    return LlamaTokenizerFast(write_json(tmp_path / "tokenizer.json", data))


def any_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Ids of every kind; those of bytes and of special tokens come often."""
    names = [f"<0x{byte:02X}>" for byte in (0x20, 0x41, 0xE2, 0x96, 0x81, 0xF0, 0xFF)] + ["▁"]
    known = [i for i in map(tokenizer.token_to_id, names) if i is not None]
    often = st.sampled_from(known + sorted(tokenizer.added_tokens.values())[:6])
    few = st.integers(0, min(300, tokenizer.vocab_size - 1))
    return st.lists(often | few | st.integers(0, tokenizer.vocab_size - 1), max_size=12)


def streamed(decoder: StreamDecoder, ids: Sequence[int]) -> str:
    return "".join([*map(decoder.push, ids), decoder.flush()])


@pytest.mark.parametrize("skip", [True, False])
def test_fault_054_the_pieces_are_the_text_of_all_ids(tokenizer: Tokenizer, skip: bool) -> None:
    @given(any_ids(tokenizer), st.integers(0, 12))
    def check(ids: list[int], cut: int) -> None:
        text = tokenizer.decode(ids, skip_special_tokens=skip)
        assert streamed(StreamDecoder(tokenizer, skip_special_tokens=skip), ids) == text
        # What follows a prompt is what its ids add to the prompt's text.
        prompt, rest = ids[:cut], ids[cut:]
        before = StreamDecoder(tokenizer, skip_special_tokens=skip)
        certain = "".join(map(before.push, prompt))
        after = StreamDecoder(tokenizer, skip_special_tokens=skip, continues=prompt)
        assert certain + streamed(after, rest) == text

    check()


def test_fault_054_nothing_but_half_a_character_is_held_back(tokenizer: Tokenizer) -> None:
    @given(any_ids(tokenizer))
    def check(ids: list[int]) -> None:
        decoder, text = StreamDecoder(tokenizer, skip_special_tokens=False), ""
        for count, token_id in enumerate(ids, start=1):
            text += decoder.push(token_id)
            whole = tokenizer.decode(ids[:count])
            held = whole.removeprefix(text)
            assert whole == text + held
            assert set(held) <= {"\ufffd"}
            assert len(held) <= 3

    check()


def test_a_character_appears_with_its_last_byte(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🦙", add_special_tokens=False)
    decoder = StreamDecoder(tokenizer)
    assert "".join(map(decoder.push, ids[:-1])).strip() == ""
    assert decoder.push(ids[-1]) == "🦙"
    assert decoder.flush() == ""


def test_half_a_character_at_the_end_is_shown(tokenizer: Tokenizer) -> None:
    *ids, _ = tokenizer.encode("🦙", add_special_tokens=False)
    decoder = StreamDecoder(tokenizer)
    pieces = "".join(map(decoder.push, ids))
    marks = "\ufffd" if tokenizer.byte_level else "\ufffd" * 3
    assert (pieces.strip(), decoder.flush()) == ("", marks)


def test_a_special_token_inside_a_character(tokenizer: Tokenizer) -> None:
    # SentencePiece ends a run of bytes there; tokenizers joins what is left when it is skipped.
    *_, first, second = tokenizer.encode("߷", add_special_tokens=False)
    special = next(i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id)
    ids = [first, special, second]
    joined = "߷" if tokenizer.byte_level else "\ufffd\ufffd"
    assert tokenizer.decode(ids, skip_special_tokens=True) == joined
    name = tokenizer.id_to_token(special)
    assert tokenizer.decode(ids) == f"\ufffd{name}\ufffd"


def test_the_first_word_after_a_prompt_keeps_its_blank(tokenizer: Tokenizer) -> None:
    prompt, ids = tokenizer.encode("Hello"), tokenizer.encode("Hello world")
    assert streamed(StreamDecoder(tokenizer, continues=prompt), ids[len(prompt) :]) == " world"


def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    for token_id in (-1, tokenizer.vocab_size):
        with pytest.raises(TokenizerError, match=rf"token id {token_id} is outside"):
            StreamDecoder(tokenizer).push(token_id)
