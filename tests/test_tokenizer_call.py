"""A tokenizer called on texts, against transformers with the same files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer as Reference

from llamacli.auto import AutoTokenizer
from llamacli.errors import RequestError
from llamacli.tokenizer import Tokenizer
from tests.tiny import write_tokenizer

TEXTS = ["The sun sees", "The moon carries the river.", "bird"]
TEMPLATE = (
    "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    settings = {"pad_token": "</s>", "legacy": False, "chat_template": TEMPLATE}
    AutoTokenizer.from_pretrained(folder, model_max_length=64, **settings).save_pretrained(folder)
    return folder


@pytest.fixture
def ours(folder: Path) -> Tokenizer:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return Reference.from_pretrained(folder)


def as_lists(encoding: Any) -> dict[str, Any]:
    return {name: v.tolist() if hasattr(v, "tolist") else v for name, v in encoding.items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_special_tokens": False},
        {"padding": True, "return_tensors": "pt"},
        {"padding": "longest", "padding_side": "right", "return_token_type_ids": True},
        {"padding": "max_length", "max_length": 20},
        {"padding": "max_length"},
        {"padding": True, "truncation": True, "max_length": 4, "return_tensors": "pt"},
        {"truncation": True},
        {"return_attention_mask": False},
        {"padding": "do_not_pad", "truncation": "do_not_truncate"},
        {"padding": True, "pad_to_multiple_of": 8, "return_special_tokens_mask": True},
        {"padding": "max_length", "max_length": 5},
        {"padding": True, "return_offsets_mapping": True, "return_tensors": "pt"},
        {"truncation": True, "max_length": 5, "return_offsets_mapping": True},
        {"add_special_tokens": False, "return_special_tokens_mask": True},
    ],
    ids=str,
)
def test_a_call_gives_the_same(ours: Tokenizer, theirs: Any, options: dict[str, Any]) -> None:
    assert as_lists(ours(TEXTS, **options)) == as_lists(theirs(TEXTS, **options))
    assert as_lists(ours(TEXTS[0], **options)) == as_lists(theirs(TEXTS[0], **options))


@pytest.mark.parametrize(
    "options",
    [
        {"return_token_type_ids": True, "return_offsets_mapping": True},
        {"add_special_tokens": False, "return_token_type_ids": True},
        *({"truncation": True, "max_length": length} for length in (2, 3, 8, 11, 14, 30)),
        {"truncation": "longest_first", "max_length": 15, "return_offsets_mapping": True},
        {"truncation": "only_second", "max_length": 13},
        {"truncation": "do_not_truncate"},
    ],
    ids=str,
)
@pytest.mark.parametrize("side", ["right", "left"])
def test_pairs_are_encoded_and_cut_together(
    ours: Tokenizer, theirs: Any, options: dict[str, Any], side: str
) -> None:
    ours.truncation_side = theirs.truncation_side = side
    for first, second in (TEXTS[:2], TEXTS[1::-1], [[TEXTS[0]] * 2, [TEXTS[1], "sun"]]):
        if "only_second" in options.values() and first != TEXTS[0]:
            continue
        assert as_lists(ours(first, second, **options)) == as_lists(
            theirs(first, second, **options)
        )
    theirs.truncation_side = "right"


def test_the_first_of_a_pair_can_be_cut_alone(ours: Tokenizer, theirs: Any) -> None:
    options: dict[str, Any] = {"truncation": "only_first", "max_length": 12}
    assert as_lists(ours(TEXTS[1], "sun", **options)) == as_lists(
        theirs(TEXTS[1], "sun", **options)
    )
    with pytest.raises(RequestError, match="only_first has 1 tokens, and 7 must"):
        ours("sun", TEXTS[1] * 2, **options)
    with pytest.raises(RequestError, match="only_second has 0 tokens"):
        ours(TEXTS[1], truncation="only_second", max_length=5)


def test_an_encoding_is_a_mapping_with_attributes_that_moves(ours: Tokenizer) -> None:
    found = ours(TEXTS[0], return_tensors="pt").to("meta")
    assert {**found}.keys() == {"input_ids", "attention_mask"}
    assert found.input_ids.device == torch.device("meta")
    assert found["input_ids"].dtype == torch.int64
    with pytest.raises(AttributeError, match="labels"):
        found.labels  # noqa: B018
    with pytest.raises(RequestError, match="device"):
        ours(TEXTS[0]).to("cpu")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"padding": "all"}, "padding must be one of .* 'max_length'"),
        ({"truncation": "second"}, "truncation must be one of"),
        ({"return_tensors": "tf"}, "return_tensors must be one of None, 'pt', got 'tf'"),
        ({"return_tensors": "pt"}, "different lengths"),
        ({"max_length": 4}, "max_length needs truncation"),
        ({"truncation": True, "max_length": 0}, "max_length must be at least 1"),
    ],
)
def test_a_value_that_is_not_supported_is_named(
    ours: Tokenizer, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        ours(TEXTS, **options)


def test_an_option_that_is_not_supported_is_named(ours: Tokenizer, folder: Path) -> None:
    with pytest.raises(TypeError, match="is_split_into_words"):
        ours(TEXTS, is_split_into_words=True)
    with pytest.raises(TypeError, match="continue_final_message"):
        ours.apply_chat_template([{"role": "user", "content": "x"}], continue_final_message=True)
    with pytest.raises(TypeError, match="use_fast"):
        AutoTokenizer.from_pretrained(folder, use_fast=True)


@pytest.mark.parametrize("text", [None, 5, [], [["a", "b"]], {"a": "b"}])
def test_what_is_no_text_is_refused(ours: Tokenizer, text: Any) -> None:
    with pytest.raises(RequestError, match="text must be a string or a list of strings"):
        ours(text)


def test_as_many_pairs_as_texts(ours: Tokenizer) -> None:
    with pytest.raises(RequestError, match="for each of 3, got 1"):
        ours(TEXTS, "sun")


def test_padding_needs_a_token_which_can_be_set(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, pad_token=None, model_max_length=None)
    with pytest.raises(RequestError, match="padding needs a pad_token"):
        tokenizer(TEXTS, padding=True)
    assert tokenizer(TEXTS, truncation=True) == tokenizer(TEXTS)
    tokenizer.pad_token = tokenizer.eos_token
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("</s>", 2)
    assert tokenizer(TEXTS, padding=True).input_ids[2][0] == 2
    with pytest.raises(RequestError, match="model_max_length"):
        tokenizer(TEXTS, padding="max_length")
    tokenizer.padding_side = "right"
    assert tokenizer(TEXTS, padding=True).input_ids[2][-1] == 2


def test_ids_are_decoded_alone_in_rows_and_from_tensors(ours: Tokenizer, theirs: Any) -> None:
    batch = ours(TEXTS, padding=True, return_tensors="pt").input_ids
    assert ours.batch_decode(batch, skip_special_tokens=True) == TEXTS
    assert ours.batch_decode(batch) == theirs.batch_decode(batch)
    assert ours.decode(batch[0], skip_special_tokens=True) == TEXTS[0]
    assert ours.decode(261) == ours.decode([261]) == theirs.decode(261)
    assert ours.batch_decode(batch, clean_up_tokenization_spaces=False) == ours.batch_decode(batch)
    with pytest.raises(RequestError, match="batch_decode several"):
        ours.decode(batch)
    for decode, ids in ((ours.batch_decode, batch), (ours.decode, batch[0])):
        with pytest.raises(RequestError, match="clean_up_tokenization_spaces"):
            decode(ids, clean_up_tokenization_spaces=True)


CHAT: list[Any] = [
    {"role": "user", "content": "The sun"},
    {"role": "assistant", "content": "sees"},
]


@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_a_chat_template_gives_the_same(
    ours: Tokenizer, theirs: Any, add_generation_prompt: bool
) -> None:
    for chat in (CHAT, [CHAT, CHAT[:1]]):
        for options in (
            {"tokenize": False},
            {},
            {"return_dict": False},
            {"padding": True, "return_tensors": "pt"},
        ):
            found, expected = (
                tokenizer.apply_chat_template(
                    chat, add_generation_prompt=add_generation_prompt, **options
                )
                for tokenizer in (ours, theirs)
            )
            if isinstance(found, dict):
                found, expected = as_lists(found), as_lists(expected)
            assert found == expected, options


def test_a_template_can_be_given_and_is_needed(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = tokenizer.apply_chat_template(
        CHAT, chat_template="{{ messages | length }}", tokenize=False
    )
    assert found == "2"
    assert "[INST] The sun [/INST]" in tokenizer.apply_chat_template(
        CHAT, chat_template="llama2", tokenize=False
    )
    for name in ("truncation", "add_special_tokens"):
        with pytest.raises(TypeError, match=name):
            tokenizer.apply_chat_template(CHAT, **{name: True})
    bare = AutoTokenizer.from_pretrained(folder, chat_template=None)
    with pytest.raises(RequestError, match="no chat template"):
        bare.apply_chat_template(CHAT)
