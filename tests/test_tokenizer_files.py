import contextlib
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from llamacli.errors import LlamacliError, LocalIOError, NotFoundError, TokenizerError
from llamacli.tokenizer_config import TokenizerConfig
from llamacli.tokenizer_fast import LlamaTokenizerFast, load_tokenizer
from llamacli.tokenizer_sentencepiece import LlamaTokenizer
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
        with pytest.raises(NotFoundError, match=r"tokenizer\.model does not exist|no folder"):
            LlamaTokenizer.from_pretrained(folder)
        with pytest.raises(NotFoundError, match=r"tokenizer\.model does not exist|no folder"):
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


def test_fault_041_the_file_of_llama_3_is_no_sentencepiece_model(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(tiktoken_file())
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        LlamaTokenizer(tmp_path / "a")


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


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    with pytest.raises(LocalIOError, match=r"cannot make folder .*tokenizer\.model"):
        load_tokenizer(tmp_path).save_pretrained(tmp_path / "tokenizer.model" / "inside")
