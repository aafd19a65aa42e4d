import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
import tokenizers
from hypothesis import given, strategies as st

from llamacli.errors import TokenizerError
from llamacli.tokenizer_added import AddedToken
from llamacli.tokenizer_config import TokenizerConfig
from llamacli.tokenizer_fast import LlamaTokenizerFast
from llamacli.tokenizer_sentencepiece import LlamaTokenizer
from llamacli.tokenizer_tiktoken import SPLIT_PATTERN
from tests.tokenizer_samples import (
    SENTENCES,
    byte_level_json,
    converted_json,
    folder_with,
    random_texts,
    sentencepiece_model,
    tiktoken_file,
    tiktoken_tokens,
    write_json,
)

SAMPLES = {"byte-level": byte_level_json} | {
    scheme: lambda scheme=scheme: converted_json(scheme)
    for scheme in ("prepend", "first", "always", "never")
}


@pytest.fixture(params=SAMPLES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_json(tmp_path / "tokenizer.json", SAMPLES[request.param]())


@pytest.fixture
def llama3(tmp_path: Path) -> LlamaTokenizerFast:
    (tmp_path / "tokenizer.model").write_bytes(tiktoken_file())
    return LlamaTokenizerFast(tmp_path / "tokenizer.model")


def edited(tmp_path: Path, data: dict[str, Any], **changes: Any) -> Path:
    return write_json(tmp_path / "tokenizer.json", data | changes)


# ---- tokenizer.json


def test_ids_of_random_texts_are_those_of_tokenizers(file: Path) -> None:
    truth, ours = tokenizers.Tokenizer.from_file(str(file)), LlamaTokenizerFast(file)
    for text in (*SENTENCES, *random_texts(500), "Hello <s>.", "<s>Hello", " a</s>b<think>c"):
        assert ours.encode(text, add_special_tokens=False) == truth.encode(text).ids


def test_decode_is_that_of_tokenizers(file: Path) -> None:
    truth, ours = tokenizers.Tokenizer.from_file(str(file)), LlamaTokenizerFast(file)
    # Where tokenizers gives up a whole run of byte tokens for one bad byte, the rest is kept.
    sound = [i for i in range(ours.vocab_size) if ours.byte_level or len(ours.id_to_bytes(i)) > 1]

    @given(st.lists(st.sampled_from(sound), max_size=12), st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        text = ours.decode(ids, skip_special_tokens=skip)
        assert text == truth.decode(ids, skip_special_tokens=skip)

    check()


def test_one_bad_byte_does_not_spoil_its_neighbors(tmp_path: Path) -> None:
    tokenizer = LlamaTokenizerFast(edited(tmp_path, converted_json("first")))
    ids = [3 + byte for byte in (*"🦙".encode(), 0xFF, 0x41)]
    assert tokenizer.decode(ids) == "🦙\ufffdA"


@given(text=st.text(st.sampled_from("a <s>/think|eot_"), max_size=40))
def test_fault_047_typed_added_tokens_stay_text(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "typed.json"
    tokenizer = LlamaTokenizerFast(path if path.exists() else write_json(path, byte_level_json()))
    for typed in (text, f"<think>{text}<|eot_id|>"):
        ids = tokenizer.encode(typed, split_special_tokens=True)
        assert set(ids).isdisjoint(tokenizer.added_tokens.values())
        assert tokenizer.decode(ids) == typed


def test_fault_047_an_added_token_that_the_model_knows_is_spelled_in_bytes(tmp_path: Path) -> None:
    data = converted_json("always")
    place = data["model"]["vocab"]["▁Hello"]
    config = TokenizerConfig(added_tokens={place: AddedToken(content="▁Hello")})
    tokenizer = LlamaTokenizerFast(edited(tmp_path, data), config)
    assert tokenizer.encode("▁Hello") == [place]
    ids = tokenizer.encode("Hello", split_special_tokens=True)
    assert tokenizer.convert_ids_to_tokens(ids) == [f"<0x{byte:02X}>" for byte in b" Hello"]


def test_lone_surrogates_and_nul_are_encoded(file: Path) -> None:
    tokenizer = LlamaTokenizerFast(file)
    assert tokenizer.encode("a\ud800\x00") == tokenizer.encode("a\ufffd\x00")


def template(*tokens: str) -> dict[str, Any]:
    single = [{"SpecialToken": {"id": token, "type_id": 0}} for token in tokens]
    names = {token: {"id": token, "ids": [256], "tokens": [token]} for token in tokens}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [*single, sequence],
        "pair": [*single, sequence, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": names,
    }


def test_bos_comes_as_the_file_says(tmp_path: Path) -> None:
    bos = {"post_processor": template("<|begin_of_text|>")}
    in_sequence = {"post_processor": {"type": "Sequence", "processors": [bos["post_processor"]]}}
    for changes, adds in (({}, False), (bos, True), (in_sequence, True)):
        tokenizer = LlamaTokenizerFast(edited(tmp_path, byte_level_json(), **changes))
        assert tokenizer.add_bos_token is adds
        assert tokenizer.bos_token == "<|begin_of_text|>"
        assert tokenizer.encode("") == [256] * adds


def test_the_config_comes_before_the_file(tmp_path: Path) -> None:
    path = edited(tmp_path, converted_json("first"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizerFast"}')
    assert LlamaTokenizerFast.from_pretrained(tmp_path).encode("") == [1]
    tokenizer = LlamaTokenizerFast(path, TokenizerConfig(add_bos_token=False, add_eos_token=True))
    assert tokenizer.encode("") == [2]


def test_the_flags_rebuild_the_template_of_the_file(tmp_path: Path) -> None:
    tokenizer = LlamaTokenizerFast(edited(tmp_path, converted_json("first")))
    for bos, eos in ((True, False), (True, True), (False, True), (False, False)):
        tokenizer.add_bos_token, tokenizer.add_eos_token = bos, eos
        path = Path(tokenizer.save_vocabulary(tmp_path)[0])
        truth = tokenizers.Tokenizer.from_file(str(path))
        assert truth.encode("Hello").ids == tokenizer.encode("Hello")
        pair = truth.encode("Hello", "world")
        first, second = (
            [*truth.encode(t, add_special_tokens=False).ids] for t in ("Hello", "world")
        )
        assert pair.ids == tokenizer.build_inputs_with_special_tokens(first, second)
        assert pair.type_ids == tokenizer.create_token_type_ids_from_sequences(first, second)


def test_a_flag_without_its_token_is_an_error(tmp_path: Path) -> None:
    data = byte_level_json(added_tokens=[])
    with pytest.raises(TokenizerError, match="no eos_token"):
        LlamaTokenizerFast(edited(tmp_path, data), TokenizerConfig(add_eos_token=True))


def test_a_token_that_no_template_can_hold_is_an_error(tmp_path: Path) -> None:
    config = TokenizerConfig(
        bos_token="a:b", add_bos_token=True, added_tokens={259: AddedToken(content="a:b")}
    )
    with pytest.raises(TokenizerError, match=r"no template can be made: .*a:b"):
        LlamaTokenizerFast(edited(tmp_path, byte_level_json()), config)


def test_what_is_saved_reads_back_the_same(file: Path, tmp_path: Path) -> None:
    settings = {"add_bos_token": True, "chat_template": "x"}
    saved = LlamaTokenizerFast.from_pretrained(file.parent, **settings)
    saved.save_pretrained(tmp_path / "saved")
    read = LlamaTokenizerFast.from_pretrained(tmp_path / "saved")
    for name in ("vocab_size", "all_special_ids", "eos_token_ids", "chat_template"):
        assert getattr(read, name) == getattr(saved, name)
    assert read.added_tokens == saved.added_tokens
    for text in ("", " Hello <s>", "<think>", *random_texts(50)):
        assert read.encode(text) == saved.encode(text)


def test_transformers_reads_what_is_saved(file: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = LlamaTokenizerFast.from_pretrained(file.parent, add_bos_token=True)
    tokenizer.save_pretrained(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ("Hello world", "Hello</s>lo", "Hello<think>"):
        assert theirs(text)["input_ids"] == tokenizer.encode(text)


# ---- Meta's file of Llama 3


def tiktoken_encode(text: str) -> list[int]:
    """tiktoken's byte pair encoding, said plainly: join the pair of lowest rank, from the left."""
    ranks = {token: rank for rank, token in enumerate(tiktoken_tokens())}
    ids = []
    for piece in regex.findall(SPLIT_PATTERN, text):
        word = [bytes([byte]) for byte in piece.encode()]
        whole = ranks.get(piece.encode())
        while whole is None and len(word) > 1:
            rank, place = min(
                (ranks.get(left + right, len(ranks)), place)
                for place, (left, right) in enumerate(pairwise(word))
            )
            if rank == len(ranks):
                break
            word[place : place + 2] = [word[place] + word[place + 1]]
        ids += [ranks[part] for part in word] if whole is None else [whole]
    return ids


def test_tiktoken_ids_are_those_of_plain_byte_pair_encoding(llama3: LlamaTokenizerFast) -> None:
    texts = [*SENTENCES, *random_texts(300), "don't  stop\r\n\n 1234567 THE'S"]
    for text in texts:
        ids = llama3.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ids == tiktoken_encode(text)
        assert llama3.decode(ids) == text


def test_llama3_has_its_special_tokens(llama3: LlamaTokenizerFast) -> None:
    base = len(tiktoken_tokens())
    assert llama3.vocab_size == base + 256
    assert (llama3.bos_token_id, llama3.eos_token_id) == (base, base + 1)
    names = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
    assert llama3.eos_token_ids == set(llama3.convert_tokens_to_ids(names))
    numbers = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 255]
    tokens = llama3.convert_ids_to_tokens([base + number for number in numbers])
    assert [token.strip("<|>").removeprefix("reserved_special_token_") for token in tokens] == (
        "0 1 finetune_right_pad_id 2 start_header_id end_header_id eom_id eot_id python_tag 3 247"
    ).split()


def test_llama3_begins_with_bos_and_has_no_rule_for_blanks(llama3: LlamaTokenizerFast) -> None:
    hello, blank = (llama3.encode(text, add_special_tokens=False) for text in ("Hello", " Hello"))
    assert llama3.encode("Hello") == [llama3.bos_token_id, *hello]
    assert llama3.decode(hello) == "Hello"
    assert llama3.decode(blank) == " Hello"
    assert llama3.decode([*hello, *blank]) == "Hello Hello"
    turn = "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    assert llama3.decode(llama3.encode(turn, add_special_tokens=False)) == turn


def test_llama3_is_saved_as_tokenizer_json(llama3: LlamaTokenizerFast, tmp_path: Path) -> None:
    llama3.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    read = LlamaTokenizerFast.from_pretrained(tmp_path / "saved")
    assert read.encode(SENTENCES[0]) == llama3.encode(SENTENCES[0])
    assert json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["model"]["ignore_merges"]


# ---- a SentencePiece model, converted

# With `legacy=True`, and without; measured with transformers 4.53.
CONVERTED = {
    "Hello": ([1, 15043], [1, 15043]),
    " Hello": ([1, 29871, 15043], [1, 15043]),
    "  Hello": ([1, 259, 15043], [1, 29871, 15043]),
    "Hello <s>.": ([1, 15043, 29871, 1, 869], [1, 15043, 29871, 1, 29889]),
    "<s>Hello": ([1, 1, 15043], [1, 1, 10994]),
    "<s> Hello": ([1, 1, 29871, 15043], [1, 1, 15043]),
    "a</s>b": ([1, 263, 2, 289], [1, 263, 2, 29890]),
    "▁Hello": ([1, 29871, 15043], [1, 15043]),
    " ": ([1, 259], [1, 29871]),
}


@pytest.mark.parametrize("legacy", [True, False])
def test_ids_of_a_converted_llama2_are_those_of_transformers_4(
    llama2_tokenizer_file: Path, legacy: bool
) -> None:
    tokenizer = LlamaTokenizerFast(llama2_tokenizer_file, legacy=legacy)
    expected = {text: ids[0 if legacy else 1] for text, ids in CONVERTED.items()}
    assert {text: tokenizer.encode(text) for text in CONVERTED} == expected
    table = {(15043,): "Hello", (29871, 15043): " Hello", (1, 15043): "<s> Hello", (29871,): ""}
    assert {ids: tokenizer.decode(ids) for ids in table} == table


def test_a_converted_model_encodes_as_sentencepiece_does_and_is_saved(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, sentencepiece_model())
    slow, fast = (kind.from_pretrained(folder) for kind in (LlamaTokenizer, LlamaTokenizerFast))
    fast.save_pretrained(tmp_path / "json")
    read = LlamaTokenizerFast.from_pretrained(tmp_path / "json")
    for text in ("", " Hello <s> world</s>", *random_texts(300)):
        assert slow.encode(text) == fast.encode(text) == read.encode(text)
        assert slow.decode(slow.encode(text)) == fast.decode(fast.encode(text))
    for name in ("vocab_size", "all_special_ids", "add_bos_token", "unk_token_id"):
        assert getattr(slow, name) == getattr(fast, name) == getattr(read, name)


def test_only_a_bpe_model_is_converted(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, sentencepiece_model(model_type="unigram"))
    with pytest.raises(TokenizerError, match="must be BPE"):
        LlamaTokenizerFast.from_pretrained(folder)
