"""The methods that the documentation of transformers promises, with the results of 4.53."""

import json
from pathlib import Path

import pytest

from llamacli.errors import NotFoundError, TokenizerError
from llamacli.tokenizer_added import AddedToken
from llamacli.tokenizer_sentencepiece import LlamaTokenizer
from tests.tokenizer_samples import folder_with, random_texts, sentencepiece_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_with(tmp_path, sentencepiece_model())


@pytest.fixture
def tokenizer(folder: Path) -> LlamaTokenizer:
    return LlamaTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("eos", "pair", "ids", "mask", "types"),
    [
        (False, None, [1, 5, 6], [1, 0, 0], [0, 0, 0]),
        (False, [7], [1, 5, 6, 1, 7], [1, 0, 0, 1, 0], [0, 0, 0, 1, 1]),
        (True, None, [1, 5, 6, 2], [1, 0, 0, 1], [0, 0, 0, 0]),
        (True, [7], [1, 5, 6, 2, 1, 7, 2], [1, 0, 0, 1, 1, 0, 1], [0, 0, 0, 0, 1, 1, 1]),
        (True, [], [1, 5, 6, 2, 1, 2], [1, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]),
    ],
)
def test_special_tokens_come_around_each_sequence(
    tokenizer: LlamaTokenizer,
    eos: bool,
    pair: list[int] | None,
    ids: list[int],
    mask: list[int],
    types: list[int],
) -> None:
    tokenizer.add_eos_token = eos
    assert tokenizer.build_inputs_with_special_tokens([5, 6], pair) == ids
    assert tokenizer.get_special_tokens_mask([5, 6], pair) == mask
    assert tokenizer.create_token_type_ids_from_sequences([5, 6], pair) == types
    assert tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True) == mask


def test_a_built_sequence_has_no_pair(tokenizer: LlamaTokenizer) -> None:
    with pytest.raises(ValueError, match="alone"):
        tokenizer.get_special_tokens_mask([1], [2], already_has_special_tokens=True)


def test_the_flags_can_be_switched(tokenizer: LlamaTokenizer) -> None:
    plain = tokenizer.encode("a", add_special_tokens=False)
    tokenizer.add_bos_token, tokenizer.add_eos_token = False, True
    assert (tokenizer.add_bos_token, tokenizer.add_eos_token) == (False, True)
    assert tokenizer.encode("a") == [*plain, 2]


def test_a_flag_without_its_token_is_an_error(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, sentencepiece_model(bos_id=-1))
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    assert tokenizer.bos_token is tokenizer.bos_token_id is None
    assert not tokenizer.add_bos_token
    with pytest.raises(TokenizerError, match=r"add_bos_token is true, but .* no bos_token"):
        tokenizer.add_bos_token = True


def test_settings_may_be_given_by_name(folder: Path) -> None:
    tokenizer = LlamaTokenizer(folder / "tokenizer.model", legacy=False, add_eos_token=True)
    assert (tokenizer.legacy, tokenizer.add_eos_token) == (False, True)
    with pytest.raises(TypeError, match="use_fast"):
        LlamaTokenizer(folder / "tokenizer.model", use_fast=False)


def test_one_token_has_one_id(tokenizer: LlamaTokenizer) -> None:
    assert tokenizer.convert_tokens_to_ids("</s>") == 2
    assert tokenizer.convert_tokens_to_ids(["</s>", "no such token"]) == [2, 0]
    assert tokenizer.convert_ids_to_tokens(2) == "</s>"
    assert tokenizer.convert_ids_to_tokens([2, 1]) == ["</s>", "<s>"]


def test_save_vocabulary_writes_the_same_file(tokenizer: LlamaTokenizer, folder: Path) -> None:
    (folder / "tokenizer.model").unlink()  # what is in memory is enough
    for prefix, name in ((None, "tokenizer.model"), ("my", "my-tokenizer.model")):
        assert tokenizer.save_vocabulary(str(folder), prefix) == (str(folder / name),)
        assert (folder / name).read_bytes() == sentencepiece_model()
    assert len(list(folder.iterdir())) == 2
    with pytest.raises(NotFoundError, match="nowhere is not a folder"):
        tokenizer.save_vocabulary(folder / "nowhere")


@pytest.mark.parametrize("legacy", [True, False])
def test_what_is_saved_reads_back_the_same(tmp_path: Path, legacy: bool) -> None:
    folder = folder_with(tmp_path, sentencepiece_model(control_symbols="<pad>"))
    added = {430: AddedToken(content="<|im_end|>"), 431: AddedToken(content="[T]", special=False)}
    settings = {"pad_token": "<pad>", "chat_template": "{{ '\ud800▁' }}", "added_tokens": added}
    saved = LlamaTokenizer.from_pretrained(
        folder, legacy=legacy, add_eos_token=True, add_bos_token=False, **settings
    )
    saved.save_pretrained(tmp_path / "b")
    read = LlamaTokenizer.from_pretrained(tmp_path / "b")
    for name in ("vocab_size", "all_special_ids", "eos_token_ids", "chat_template", "legacy"):
        assert getattr(read, name) == getattr(saved, name)
    assert read.added_tokens == saved.added_tokens
    assert read.eos_token_ids == {2, 430}
    for text in ("", " Hello <s>[T] world<|im_end|>", *random_texts(50)):
        assert read.encode(text) == saved.encode(text)


def test_a_saved_config_names_what_transformers_4_takes_for_special(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, sentencepiece_model())
    added = {430: AddedToken(content="<|im_end|>"), 431: AddedToken(content="[T]", special=False)}
    settings = {"added_tokens": added, "truncation_side": "left", "model_max_length": 99}
    tokenizer = LlamaTokenizer.from_pretrained(folder, **settings)
    tokenizer.save_pretrained(folder)
    saved = json.loads((folder / "tokenizer_config.json").read_text())
    assert saved["additional_special_tokens"] == ["<|im_end|>"]
    assert saved["added_tokens_decoder"].keys() >= {"430", "431"}
    read = LlamaTokenizer.from_pretrained(folder)
    assert (read.truncation_side, read.model_max_length) == ("left", 99)
    assert read.all_special_ids == tokenizer.all_special_ids == [0, 1, 2, 430]


def test_a_blank_that_was_not_put_before_a_text_is_not_taken_away(folder: Path) -> None:
    tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=False, add_prefix_space=False)
    for text in ("", " Hello", "  Hello", "Hello <s> world"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text


def test_transformers_reads_what_is_saved(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=False)
    tokenizer.save_pretrained(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in ("Hello world", "The dog, again.", "Plants create energy</s>Hello"):
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
