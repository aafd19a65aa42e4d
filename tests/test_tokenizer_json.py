import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, pre_tokenizers

from llamacli.errors import TokenizerError
from llamacli.tokenizer_fast import LlamaTokenizerFast, load_tokenizer
from llamacli.tokenizer_tiktoken import SPLIT_PATTERN
from tests.tokenizer_samples import byte_level_json, write_json


def with_vocab(**extra: object) -> dict[str, Any]:
    data = byte_level_json()
    data["model"]["vocab"] |= extra
    return data


def with_added(token_id: object, content: object, **more: object) -> dict[str, Any]:
    data = byte_level_json()
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False}
    data["added_tokens"].append(
        {"id": token_id, "content": content, "normalized": False} | flags | more
    )
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (with_vocab(new=5), "have one id, 5"),
        (with_vocab(new=2**31), "must be a number from 0 to 16,777,215, got 2147483648"),
        (with_vocab(new=-1), "got -1"),
        (with_vocab(new=1.5), "'new' has id 1.5, which is no whole number"),
        (with_vocab(new=True), "'new' has id True, which"),
        (with_vocab(new=[]), "'new' has id [], which"),
        (with_vocab(new="x"), "'new' has id 'x', which"),
        (with_added(5, "<|new|>"), "<|new|>"),
        (with_added(999, "<|new|>"), "wants id 999"),
        (with_added(2**31, "<|new|>"), "2147483648"),
        (with_added(257, "<|new|>"), "'<|eot_id|>' and '<|new|>' have one id, 257"),
        (with_added(259, "<think>"), "wants id"),
        (with_added(259, ""), "must be text"),
        (with_added(259, 5), "must be text"),
        (with_added(259, "x", special="no"), "special of added token 'x' must be true or false"),
        (byte_level_json(added_tokens={"a": 1}), "added_tokens must be a list"),
        (byte_level_json(added_tokens=["a"]), "must have a content"),
        (byte_level_json(model={"type": "WordPiece", "vocab": {}}), "must be BPE, got WordPiece"),
        (byte_level_json(model=None), "must be BPE"),
        (byte_level_json(model={"type": "BPE", "vocab": [], "merges": []}), "no vocabulary"),
        (byte_level_json(model={"vocab": {"a": 0}, "merges": ["a b c"]}), "tokenizer.json"),
        (byte_level_json(decoder=None), "the decoder must be of"),
        (byte_level_json(decoder={"type": "WordPiece"}), "got WordPiece"),
        (byte_level_json(pre_tokenizer={"type": "Unknown"}), "tokenizer.json"),
    ],
)
def test_fault_044_what_no_vocabulary_holds_is_refused(
    tmp_path: Path, data: dict[str, Any], words: str
) -> None:
    write_json(tmp_path / "tokenizer.json", data)
    with pytest.raises(TokenizerError, match=re.escape(words)) as problem:
        load_tokenizer(tmp_path)
    assert "\n" not in str(problem.value)


def test_fault_044_a_token_twice_is_refused(tmp_path: Path) -> None:
    text = json.dumps(byte_level_json()).replace('"vocab": {', '"vocab": {"!": 7, ')
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerError, match="'!' occurs twice"):
        load_tokenizer(tmp_path)


def with_pattern(pattern: str) -> dict[str, Any]:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    parts = [split, byte_level_json()["pre_tokenizer"] | {"use_regex": False}]
    return byte_level_json(pre_tokenizer={"type": "Sequence", "pretokenizers": parts})


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",
        r"(a|a)*$",
        r"(?:a+){2,}$",
        r"(?i:(\w+)+)!",
        r"(?#[)(a+)+$]",
        r"[)](x+)*",
        r"\)(x+)+",
        r"[ab]*[ab]*[ab]*[ab]*!",
        r"[ab]*[ab]*!",
        r"a?a?a?a?a?a?a?a?aaaaaaaa",
        r"a{1,9}+b",
        r"a|b\g<0>c",
        r"(.*)\1",
        r"",
    ],
)
def test_fault_053_a_pattern_that_can_take_long_is_refused(tmp_path: Path, pattern: str) -> None:
    write_json(tmp_path / "tokenizer.json", with_pattern(pattern))
    with pytest.raises(TokenizerError, match="may take too long"):
        load_tokenizer(tmp_path)


PATTERNS_IN_USE = {
    "llama-3": SPLIT_PATTERN,
    "llama-4": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt-4": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    "qwen": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "newline": r"[\r\n]",
    "letters": r"\s?\p{L}+",
    "digits": r"[0-9][0-9][0-9]",
    "ranges": r"[一-龥ࠀ-一가-퟿]+",
    "blanks": r"\s+$",
    "brackets": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+",
}


@pytest.mark.parametrize("name", PATTERNS_IN_USE)
def test_patterns_in_use_are_accepted_and_fast(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / "tokenizer.json", with_pattern(PATTERNS_IN_USE[name]))
    tokenizer = load_tokenizer(tmp_path)
    for text in ("a" * 5000 + "!", " " * 5000 + "x", "don't 123\n\n!!"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_fault_053_a_search_that_gives_up_is_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "tokenizer.json", byte_level_json())
    tokenizer = LlamaTokenizerFast(tmp_path / "tokenizer.json")
    hostile = pre_tokenizers.Split(Regex("(a|a)*$"), "isolated")
    tokenizer._plain.pre_tokenizer = hostile
    with pytest.raises(TokenizerError, match="retry-limit"):
        tokenizer.encode("a" * 40 + "!")
    assert "panicked" in capfd.readouterr().err  # Rust says so on its own
