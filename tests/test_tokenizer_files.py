import contextlib
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from tokenizers import Regex, pre_tokenizers

from llamacli.errors import LlamacliError, LocalIOError, NotFoundError, TokenizerError
from llamacli.tokenizer_config import TokenizerConfig, write_whole
from llamacli.tokenizer_fast import LlamaTokenizerFast, load_tokenizer
from llamacli.tokenizer_sentencepiece import LlamaTokenizer
from llamacli.tokenizer_tiktoken import SPLIT_PATTERN
from tests.tokenizer_samples import (
    byte_level_json,
    converted_json,
    sentencepiece_model,
    tiktoken_file,
    write_json,
)

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:9e55\nsize 499723\n"
HTML = b"<!DOCTYPE html>\n<html><body>Sign in</body></html>"


# ---- which file is read


def test_the_kind_of_a_file_is_told_by_its_bytes_not_its_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    assert type(load_tokenizer(tmp_path)) is LlamaTokenizer
    (tmp_path / "tokenizer.model").write_bytes(tiktoken_file())
    assert type(load_tokenizer(tmp_path)) is LlamaTokenizerFast
    (tmp_path / "tokenizer.model").unlink()
    write_json(tmp_path / "tokenizer.json", byte_level_json())
    assert load_tokenizer(str(tmp_path)).vocab_size == 259


@pytest.mark.parametrize("agree", [True, False])
def test_fault_046_sentencepiece_is_the_truth_where_two_files_disagree(
    tmp_path: Path, agree: bool, caplog: pytest.LogCaptureFixture
) -> None:
    data, size = converted_json("first"), 420
    vocab = data["model"]["vocab"]
    if agree:
        vocab |= {f"filler {token_id}": token_id for token_id in range(len(vocab), size)}
    write_json(tmp_path / "tokenizer.json", data)
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    tokenizer = load_tokenizer(tmp_path)
    assert type(tokenizer) is LlamaTokenizer
    assert tokenizer.vocab_size == size
    note = f"tokenizer.model is used: it has 420 tokens, tokenizer.json {len(vocab)}"
    assert [record.getMessage() for record in caplog.records] == ([] if agree else [note])


def test_fault_046_a_bad_neighbor_is_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    (tmp_path / "tokenizer.json").write_bytes(LFS_POINTER)
    assert load_tokenizer(tmp_path).vocab_size == 420
    assert "tokenizer.json is a git-LFS pointer" in caplog.text


def test_fault_046_tokenizer_json_comes_before_metas_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tiktoken_file())
    write_json(tmp_path / "tokenizer.json", byte_level_json())
    assert load_tokenizer(tmp_path).vocab_size == 259


# ---- fault 41


def test_fault_041_no_tokenizer_file_is_not_found(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NotFoundError, match=r"neither tokenizer\.model nor tokenizer\.json"):
            load_tokenizer(folder)
        with pytest.raises(NotFoundError, match=r"tokenizer\.model does not exist"):
            LlamaTokenizer.from_pretrained(folder)
        with pytest.raises(NotFoundError, match=r"tokenizer\.model does not exist"):
            LlamaTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (LFS_POINTER, "is a git-LFS pointer"),
        (HTML, "is an HTML page"),
        (b"\0" * 100, "neither SentencePiece nor tiktoken nor JSON"),
        (sentencepiece_model()[:3000], "damaged SentencePiece model|not tokenizers'"),
        (tiktoken_file()[:500], "ranks are missing"),
        (tiktoken_file()[:-3], "expected `base64 rank`|ranks are missing"),
        (json.dumps(byte_level_json()).encode()[:-9], r"not valid JSON: .*line 1, column \d+"),
        (b"[1]", "neither SentencePiece nor tiktoken nor JSON"),
    ],
    ids="empty lfs html zeros half-model half-ranks cut-line half-json list".split(),
)
def test_fault_041_a_damaged_file_is_described(
    tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TokenizerError, match=words) as problem:
        load_tokenizer(tmp_path)
    assert str(tmp_path / name) in str(problem.value)
    assert "\n" not in str(problem.value)


def test_fault_041_each_class_refuses_the_files_of_the_other(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(tiktoken_file())
    (tmp_path / "b").write_bytes(sentencepiece_model())
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        LlamaTokenizer(tmp_path / "a")
    with pytest.raises(TokenizerError, match="holds a SentencePiece model"):
        LlamaTokenizerFast(tmp_path / "b")


def test_fault_041_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(TokenizerError, match="not a regular file"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("data", [sentencepiece_model(), tiktoken_file()], ids=["model", "ranks"])
def test_fault_042_a_mutated_file_loads_or_is_refused(tmp_path: Path, data: bytes) -> None:
    rng = random.Random(0)
    for _ in range(300):
        mutant = bytearray(data)
        for _ in range(rng.randrange(1, 5)):
            mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(mutant)
        try:
            tokenizer = load_tokenizer(tmp_path)
        except LlamacliError:
            continue
        tokenizer.decode(range(tokenizer.vocab_size))
        tokenizer.encode("Plants create energy 🦙 </s>")


# ---- faults 44 and 53: what tokenizers accepts


def byte_level(**changes: Any) -> dict[str, Any]:
    return byte_level_json(**changes)


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
        (byte_level(added_tokens={"a": 1}), "added_tokens must be a list"),
        (byte_level(added_tokens=["a"]), "must have a content"),
        (byte_level(model={"type": "WordPiece", "vocab": {}}), "must be BPE, got WordPiece"),
        (byte_level(model=None), "must be BPE"),
        (byte_level(model={"type": "BPE", "vocab": [], "merges": []}), "no vocabulary"),
        (byte_level(model={"vocab": {"a": 0}, "merges": ["a b c"]}), "tokenizer.json"),
        (byte_level(decoder=None), "the decoder must be of"),
        (byte_level(decoder={"type": "WordPiece"}), "got WordPiece"),
        (byte_level(pre_tokenizer={"type": "Unknown"}), "tokenizer.json"),
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


@pytest.mark.parametrize(
    ("added", "words"),
    [
        ({"5": {"content": "<|new|>"}}, "'<|new|>' has id 5, which is that of"),
        ({"430": {"content": "<s>"}}, "'<s>' has two ids, 430 and 1"),
        ({"430": {"content": "a"}, "431": {"content": "a"}}, "'a' has two ids"),
        ({"2147483648": {"content": "<|new|>"}}, "from 0 to 16,777,215, got '2147483648'"),
        ({"-1": {"content": "<|new|>"}}, "got '-1'"),
        ({"430": "<|new|>"}, "must have a content"),
        ([], "added_tokens_decoder must be an object"),
    ],
)
def test_fault_044_added_tokens_collide_with_nothing(
    tmp_path: Path, added: object, words: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": added})
    with pytest.raises(TokenizerError, match=re.escape(words)):
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


# ---- fault 45 and the files beside the vocabulary


@pytest.mark.parametrize("key", ["bos_token", "eos_token", "pad_token", "unk_token"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("<none>", "'<none>' is not in the vocabulary of 420 tokens"),
        ({"content": "<none>"}, "'<none>' is not in the vocabulary of 420 tokens"),
        (["<s>"], "must be a token, got ['<s>']"),
        (1, "must be a token, got 1"),
        ("", "must be a token, got ''"),
        ({"content": None}, "must be a token, got {'content': None}"),
        ("\ud800", r"must be a token, got '\ud800'"),
    ],
    ids=str,
)
def test_fault_045_named_tokens_are_tokens(
    tmp_path: Path, key: str, value: object, words: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    write_json(tmp_path / "tokenizer_config.json", {key: value})
    with pytest.raises(TokenizerError, match=re.escape(f"{key} {words}")):
        load_tokenizer(tmp_path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values),
    max_leaves=6,
)
CONFIG_KEYS = (
    "add_bos_token add_eos_token add_prefix_space legacy bos_token eos_token unk_token pad_token "
    "additional_special_tokens extra_special_tokens added_tokens_decoder chat_template "
    "tokenizer_class unknown"
).split()


@given(st.dictionaries(st.sampled_from(CONFIG_KEYS), JSON_VALUES, min_size=1))
def test_fault_045_any_config_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "config"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    write_json(folder / "tokenizer_config.json", config)
    with contextlib.suppress(TokenizerError):
        load_tokenizer(folder).encode("Hello <s>")


@pytest.mark.parametrize("key", ["add_bos_token", "add_eos_token", "legacy", "add_prefix_space"])
def test_a_flag_is_true_or_false(tmp_path: Path, key: str) -> None:
    write_json(tmp_path / "tokenizer_config.json", {key: "yes"})
    with pytest.raises(TokenizerError, match=f"{key} must be true or false, got 'yes'"):
        TokenizerConfig.read(tmp_path)


def test_bad_json_is_located(tmp_path: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (tmp_path / name).write_text('{"a": 1,\n "b" 2}')
        with pytest.raises(TokenizerError, match=rf"{name} is not valid JSON: .*line 2, column 6"):
            TokenizerConfig.read(tmp_path)
        (tmp_path / name).unlink()


def test_the_files_beside_the_vocabulary_are_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(control_symbols="<pad>"))
    entry = {"content": "<|im_end|>", "special": True, "lstrip": False, "normalized": False}
    config = {
        "add_bos_token": False,
        "legacy": False,
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False},
        "added_tokens_decoder": {"0": {"content": "<unk>"}, "421": entry},
        "chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}],
        "model_max_length": 4096,
    }
    write_json(tmp_path / "tokenizer_config.json", config)
    specials = {"pad_token": "<pad>", "eos_token": "</s>", "additional_special_tokens": ["[INST]"]}
    write_json(tmp_path / "special_tokens_map.json", specials)
    write_json(tmp_path / "added_tokens.json", {"[INST]": 422, "[X]": 423, "<|im_end|>": 421})
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, LlamaTokenizer)
    assert (tokenizer.add_bos_token, tokenizer.legacy) == (False, False)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (421, 3, 1)
    assert tokenizer.chat_template == "d"
    assert tokenizer.all_special_ids == [0, 1, 3, 421, 422]
    assert tokenizer.split("[INST]a[X]") == [422, "a", 423]
    (tmp_path / "chat_template.jinja").write_text("jinja ▁")
    assert load_tokenizer(tmp_path).chat_template == "jinja ▁"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(LocalIOError, match="cannot write"):
        write_whole(tmp_path / "file" / "inside", b"new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LocalIOError, match="cannot write"):
        write_whole(tmp_path / "folder", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"
