import math

import pytest

from llamacli.errors import RequestError
from llamacli.logit_bias import parse_biases, spellings, word_ids
from llamacli.tokenizer import Tokenizer
from llamacli.tokenizer_fast import load_tokenizer
from tests.tiny import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder)


def ids(tokenizer: Tokenizer, *tokens: str) -> tuple[int, ...]:
    return tuple(tokenizer.convert_tokens_to_ids(list(tokens)))


def test_an_id_and_words_of_one_and_more_tokens(tokenizer: Tokenizer) -> None:
    biases = parse_biases(["7=2", "moon=-1.5", "sunmoon=3"], tokenizer)
    assert biases.tokens[7] == 2
    assert biases.tokens[ids(tokenizer, "▁moon")[0]] == -1.5
    assert set(biases.sequences) <= word_ids("moon", tokenizer) | word_ids("sunmoon", tokenizer)
    assert {tokenizer.decode(i).strip() for i in biases.sequences} == {"moon", "sunmoon"}


def test_a_word_is_the_same_with_blanks_around_it(tokenizer: Tokenizer) -> None:
    assert parse_biases([" moon =1"], tokenizer) == parse_biases(["moon=1"], tokenizer)
    assert parse_biases(["a=b=1"], tokenizer).sequences  # the last equals sign counts


def test_a_ban_covers_every_spelling_in_few_tokens(tokenizer: Tokenizer) -> None:
    found = spellings("garden", tokenizer)
    assert ids(tokenizer, "▁garden") in found
    assert ids(tokenizer, "▁gar", "den") in found
    assert ids(tokenizer, "g", "ar", "de", "n") in found
    assert all(tokenizer.decode(way).strip() == "garden" for way in found)
    banned = parse_biases(["garden=-inf"], tokenizer)
    assert len(banned.tokens) + len(banned.sequences) >= len(found)
    assert {*banned.tokens.values(), *banned.sequences.values()} == {-math.inf}


@pytest.mark.parametrize("spec", ["moon", "=1", " =1", "moon=", "moon=much", "moon=nan"])
def test_anything_else_is_refused(tokenizer: Tokenizer, spec: str) -> None:
    with pytest.raises(RequestError, match="ID=BIAS or WORD=BIAS"):
        parse_biases([spec], tokenizer)


@pytest.mark.parametrize("token_id", ["400", "9" * 30])
def test_an_id_that_the_tokenizer_lacks_is_refused(tokenizer: Tokenizer, token_id: str) -> None:
    with pytest.raises(RequestError, match="there is no token"):
        parse_biases([f"{token_id}=1"], tokenizer)
