import math
from pathlib import Path

import pytest

from llamacli.errors import RequestError
from llamacli.generation import TokenStream, generate
from llamacli.logit_bias import parse_biases, word_ids
from llamacli.request import SamplingParams
from llamacli.tokenizer import Tokenizer
from llamacli.tokenizer_fast import load_tokenizer
from tests.tiny import write_model, write_tokenizer
from tests.tokenizer_samples import folder_with, tiktoken_file

WORDS = ["sun", "moon", "fox", "Hello", "said.", "été", "漢字", "🦙", "a=b", "New York", "12 cents"]


@pytest.fixture(scope="module", params=["sentencepiece", "byte-level"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "sentencepiece":
        write_tokenizer(folder)
    else:
        folder_with(folder, tiktoken_file())
    return load_tokenizer(folder)


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_biased_after_a_blank_and_at_the_start_of_a_line(
    tokenizer: Tokenizer, word: str
) -> None:
    found = word_ids(word, tokenizer)
    texts = {
        tokenizer.decode([*tokenizer.encode("x", add_special_tokens=False), *ids]) for ids in found
    }
    assert texts == {f"x {word}", f"x{word}"}
    assert found == word_ids(f"  {word} ", tokenizer)


@pytest.mark.parametrize("word", WORDS)
def test_every_way_to_begin_a_word_has_its_ids(tokenizer: Tokenizer, word: str) -> None:
    biases = parse_biases([f"{word}=-2"], tokenizer)
    keys = {(token_id,) for token_id in biases.tokens} | biases.sequences.keys()
    assert keys == word_ids(word, tokenizer)
    assert {*biases.tokens.values(), *biases.sequences.values()} == {-2.0}
    for text in (f"the {word}", f"the\n{word}"):
        ids = tuple(tokenizer.encode(text))
        assert any(ids[-len(key) :] == key for key in keys)


def test_a_word_of_one_token_biases_that_token(tokenizer: Tokenizer) -> None:
    word = "fox" if tokenizer.byte_level else "moon"
    last = tokenizer.encode(f"the {word}")[-1]
    assert tokenizer.id_to_bytes(last) == f" {word}".encode()
    assert parse_biases([f"{word}=1.5"], tokenizer).tokens[last] == 1.5


def test_digits_are_an_id_and_later_specifications_win(tokenizer: Tokenizer) -> None:
    biases = parse_biases(["7=1", "0=-inf", "7=-3e0"], tokenizer)
    assert biases == ({7: -3.0, 0: -math.inf}, {})


def test_digits_of_other_scripts_are_a_word(tokenizer: Tokenizer) -> None:
    assert 3 not in parse_biases(["٣=1"], tokenizer).tokens


def test_what_looks_like_a_special_token_is_plain_text(tokenizer: Tokenizer) -> None:
    name = tokenizer.bos_token
    biases = parse_biases([f"{name}=-1"], tokenizer)
    assert tokenizer.bos_token_id not in biases.tokens
    assert biases.sequences


@pytest.mark.parametrize("spec", ["", "moon", "=1", " =1", "moon=", "moon=x", "moon=nan", "7:3"])
def test_a_specification_of_another_form_is_refused(tokenizer: Tokenizer, spec: str) -> None:
    with pytest.raises(RequestError, match=r"ID=BIAS or WORD=BIAS, such as 'moon=-3'"):
        parse_biases([spec], tokenizer)


@pytest.mark.parametrize("digits", ["5000", "99999999999999999999"])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, digits: str) -> None:
    with pytest.raises(RequestError, match=f"there is no token {digits} among"):
        parse_biases([f"{digits}=1"], tokenizer)


def test_a_bias_is_bounded_as_in_a_request(tokenizer: Tokenizer) -> None:
    biases = parse_biases(["7=inf"], tokenizer)
    with pytest.raises(RequestError, match="logit_bias"):
        SamplingParams(logit_bias=biases.tokens)


def test_a_banned_word_is_not_written_and_a_wanted_one_is(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    prompt = tokenizer.encode("The sun")

    def text(*specs: str) -> str:
        biases = parse_biases(specs, tokenizer)
        params = SamplingParams(
            temperature=0.0,
            max_new_tokens=20,
            logit_bias=biases.tokens,
            sequence_bias=biases.sequences,
        )
        return generate(TokenStream(model, [prompt], [params]), tokenizer)[0].text

    assert text("moon=1000") == " moon" * 20
    assert "moon" not in text("moon=1000", "moon=-inf")
