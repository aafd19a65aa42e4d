import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from sentencepiece import SentencePieceProcessor

from llamacli.errors import TokenizerError
from llamacli.tokenizer_added import AddedToken
from llamacli.tokenizer_config import TokenizerConfig
from llamacli.tokenizer_sentencepiece import LlamaTokenizer
from tests.tokenizer_samples import folder_with, random_texts, sentencepiece_model

CONTROL = ["<s>", "</s>", "<unk>"]


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory.mktemp("small"), sentencepiece_model()) / "tokenizer.model"


@pytest.fixture(scope="module")
def small(small_file: Path) -> LlamaTokenizer:
    return LlamaTokenizer(small_file)


@pytest.fixture(scope="module")
def llama2(llama2_tokenizer_file: Path) -> LlamaTokenizer:
    return LlamaTokenizer(llama2_tokenizer_file)


# ---- encoding: the rows of the tables that were measured with transformers 4.53

TABLE = {
    "Hello": ([1, 15043], [1, 15043]),
    " Hello": ([1, 29871, 15043], [1, 29871, 15043]),
    "  Hello": ([1, 259, 15043], [1, 259, 15043]),
    "Hello <s>.": ([1, 15043, 29871, 1, 869], [1, 15043, 29871, 1, 29889]),
    "<s>Hello": ([1, 1, 15043], [1, 1, 10994]),
    "<s> Hello": ([1, 1, 29871, 15043], [1, 1, 15043]),
    "a</s>b": ([1, 263, 2, 289], [1, 263, 2, 29890]),
    "▁Hello": ([1, 29871, 15043], [1, 29871, 15043]),
    " ": ([1, 259], [1, 259]),
    "": ([1], [1]),
    "\n": ([1, 29871, 13], [1, 29871, 13]),
    "a  b": ([1, 263, 29871, 289], [1, 263, 29871, 289]),
    "🦙": ([1, 29871, 243, 162, 169, 156], [1, 29871, 243, 162, 169, 156]),
}


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("text", TABLE)
def test_llama2_ids_are_those_of_transformers_4(
    llama2_tokenizer_file: Path, text: str, legacy: bool
) -> None:
    tokenizer = LlamaTokenizer(llama2_tokenizer_file, TokenizerConfig(legacy=legacy))
    assert tokenizer.encode(text) == TABLE[text][0 if legacy else 1]


def test_the_documentation_sentence_has_its_known_ids(llama2: LlamaTokenizer) -> None:
    ids = [1, 1858, 1934, 1653, 5864, 1549, 263, 1889, 2998, 408]
    assert llama2.encode("Plants create energy through a process known as") == ids
    labels = "▁Pl ants ▁create ▁energy ▁through ▁a ▁process ▁known ▁as".split()
    assert llama2.tokenize("Plants create energy through a process known as") == labels


def test_no_prefix_space_only_without_legacy(llama2_tokenizer_file: Path) -> None:
    for legacy, first in ((True, 15043), (False, 10994)):
        config = TokenizerConfig(legacy=legacy, add_prefix_space=False)
        assert LlamaTokenizer(llama2_tokenizer_file, config).encode("Hello") == [1, first]


def test_ids_of_random_texts_are_those_of_sentencepiece(small: LlamaTokenizer) -> None:
    truth = SentencePieceProcessor(model_proto=sentencepiece_model())
    for text in random_texts(3000):
        ids = small.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ids == truth.encode(text)


def test_ids_of_random_texts_are_those_of_sentencepiece_with_llama2(
    llama2: LlamaTokenizer, llama2_tokenizer_file: Path
) -> None:
    truth = SentencePieceProcessor(model_file=str(llama2_tokenizer_file))
    for text in random_texts(3000):
        ids = llama2.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ids == truth.encode(text)
        assert llama2.decode(ids) == text.replace("▁", " ") == truth.decode(ids)


@pytest.mark.parametrize("legacy", [True, False])
def test_encode_is_split_and_encode_segments_with_bos(small_file: Path, legacy: bool) -> None:
    tokenizer = LlamaTokenizer(small_file, TokenizerConfig(legacy=legacy))

    @given(st.text(st.sampled_from("ab <s>/unk▁\n"), max_size=30))
    def check(text: str) -> None:
        segments = tokenizer.split(text)
        assert tokenizer.encode(text) == [1, *tokenizer.encode_segments(segments)]
        spelled = [s if isinstance(s, str) else tokenizer.id_to_token(s) for s in segments]
        assert "".join(spelled) == text
        plain = [segment for segment in segments if isinstance(segment, str)]
        assert not any(name in segment for segment in plain for name in CONTROL)

    check()


def test_neighboring_segments_are_one_text(small: LlamaTokenizer) -> None:
    assert small.encode_segments(["Hel", "lo ", "wor", "ld"]) == small.encode_segments(
        ["Hello world"]
    )
    assert small.encode_segments([]) == small.encode_segments([""]) == []


def test_the_longest_added_token_wins_and_swallows_its_blanks(tmp_path: Path) -> None:
    size = SentencePieceProcessor(model_proto=sentencepiece_model()).vocab_size()
    added = {
        size: AddedToken(content="<|a|>"),
        size + 1: AddedToken(content="<|a|><|b|>", lstrip=True),
        size + 2: AddedToken(content="[C]", special=False, rstrip=True),
    }
    model = folder_with(tmp_path, sentencepiece_model()) / "tokenizer.model"
    tokenizer = LlamaTokenizer(model, TokenizerConfig(added_tokens=added))
    assert tokenizer.split("x <|a|> y") == ["x ", size, " y"]
    assert tokenizer.split("x \n<|a|><|b|> y") == ["x", size + 1, " y"]
    assert tokenizer.split(" [C] \n [C]  ") == [" ", size + 2, size + 2]
    assert tokenizer.vocab_size == size + 3
    assert tokenizer.all_special_ids == [0, 1, 2, size, size + 1]


def test_lone_surrogates_and_nul_are_encoded(small: LlamaTokenizer) -> None:
    for text, same in (("a\ud800b", "a\ufffdb"), ("\udcff", "\ufffd"), ("\ud83e\udd99", "🦙")):
        assert small.encode(text) == small.encode(same)
        assert small.encode_segments([text]) == small.encode_segments([same])
    assert small.encode_segments(["\ud83e", "\udd99"]) == small.encode_segments(["🦙"])
    assert small.decode(small.encode("a\x00b"), skip_special_tokens=True) == "a\x00b"


# ---- special tokens and text that a user typed


@given(text=st.text(st.sampled_from("a <s>/unk</s>"), max_size=40))
def test_fault_047_typed_special_tokens_stay_text(small: LlamaTokenizer, text: str) -> None:
    for typed in (text, *CONTROL, f"{text}<s>{text}"):
        ids = small.encode(typed, add_special_tokens=False, split_special_tokens=True)
        assert set(ids).isdisjoint(small.added_tokens.values())
        assert small.decode(ids) == typed


def test_fault_047_an_added_token_inside_the_model_stays_text(tmp_path: Path) -> None:
    # sentencepiece itself finds user-defined symbols in any text.
    data = sentencepiece_model(user_defined_symbols="<|user|>,[INST]")
    model = SentencePieceProcessor(model_proto=data)
    places = {model.piece_to_id(name): name for name in ("<|user|>", "[INST]")}
    assert places.keys() <= set(model.encode("x<|user|>[INST]"))
    added = {
        token_id: AddedToken(content=name, special=name != "[INST]")
        for token_id, name in places.items()
    }
    path = folder_with(tmp_path, data) / "tokenizer.model"
    for legacy in (True, False):
        tokenizer = LlamaTokenizer(path, TokenizerConfig(added_tokens=added, legacy=legacy))
        ids = tokenizer.encode("x <|user|>[INST] y", split_special_tokens=True)
        assert places.keys().isdisjoint(ids)
        assert tokenizer.decode(ids[1:]) == "x <|user|>[INST] y"
        assert places.keys() <= set(tokenizer.encode("x <|user|>[INST] y"))


@given(
    marker=st.sampled_from(CONTROL),
    cuts=st.lists(st.integers(0, 5), max_size=3).map(sorted),
    around=st.text(st.sampled_from("<s> >/"), max_size=4),
)
def test_fault_048_a_special_token_in_parts_stays_text(
    small: LlamaTokenizer, marker: str, cuts: list[int], around: str
) -> None:
    parts = [marker[a:b] for a, b in pairwise([0, *cuts, len(marker)])]
    ids = small.encode_segments([around, *parts, around])
    assert set(ids).isdisjoint(small.added_tokens.values())


def test_bos_comes_once_where_a_prompt_is_assembled(small: LlamaTokenizer) -> None:
    assert small.encode("<s>Hello")[:2] == [1, 1]  # as in transformers
    ids = small.encode("<s>Hello", add_special_tokens=False)
    assert small.with_bos_once(ids) == ids
    assert small.with_bos_once(ids[1:]) == ids
    assert small.with_bos_once([]) == [1]


def test_bos_is_not_forced_on_a_tokenizer_without_it(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, sentencepiece_model())
    tokenizer = LlamaTokenizer.from_pretrained(folder, add_bos_token=False)
    assert tokenizer.with_bos_once([5]) == [5]
    assert tokenizer.encode("a") == tokenizer.encode("a", add_special_tokens=False)


# ---- decoding


def test_decode_of_llama2_is_that_of_the_tables(llama2: LlamaTokenizer) -> None:
    table = {
        (15043,): "Hello",
        (15043, 3186): "Hello world",
        (29871,): "",
        (29871, 15043): " Hello",
        (1, 15043): "<s> Hello",
        (15043, 2, 1, 15043): "Hello</s><s> Hello",
        (243, 162, 169): "\ufffd\ufffd\ufffd",
        (0,): "<unk>",
    }
    assert {ids: llama2.decode(ids) for ids in table} == table
    skipped = {(1, 15043, 2): "Hello", (1, 29871, 15043): " Hello", (0,): " ⁇ "}
    assert {ids: llama2.decode(ids, skip_special_tokens=True) for ids in skipped} == skipped


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"remove_extra_whitespaces": True},  # as OpenLLaMA
        {"add_dummy_prefix": False},
        {"byte_fallback": False},
        {"model_type": "unigram", "vocab_size": 320},
        {"user_defined_symbols": "<|user|>", "control_symbols": "<pad>"},
    ],
    ids=str,
)
def test_decode_of_any_ids_is_that_of_sentencepiece(
    tmp_path: Path, options: dict[str, object]
) -> None:
    data = sentencepiece_model(**options)
    truth = SentencePieceProcessor(model_proto=data)
    tokenizer = LlamaTokenizer.from_pretrained(folder_with(tmp_path, data))
    blank = truth.piece_to_id("▁")
    ids = st.sampled_from([0, 1, 2, blank, blank]) | st.integers(0, truth.vocab_size() - 1)

    @given(st.lists(ids, max_size=12))
    def check(ids: list[int]) -> None:
        assert tokenizer.decode(ids, skip_special_tokens=True) == truth.decode(ids)

    check()


@pytest.mark.parametrize("token_id", [-1, 420, 2**31, 2**70])
def test_an_id_outside_the_vocabulary_is_named(small: LlamaTokenizer, token_id: int) -> None:
    with pytest.raises(TokenizerError, match=rf"token id {token_id} .* vocabulary of 420 tokens"):
        small.decode([5, token_id])


def test_a_gap_in_the_vocabulary_shows_nothing(tmp_path: Path) -> None:
    model = folder_with(tmp_path, sentencepiece_model()) / "tokenizer.model"
    config = TokenizerConfig(added_tokens={430: AddedToken(content="<|far|>", special=False)})
    tokenizer = LlamaTokenizer(model, config)
    assert tokenizer.vocab_size == 431
    assert tokenizer.decode([425, 430, 425]) == "<|far|>"


def test_tokens_and_ids_convert_both_ways(small: LlamaTokenizer) -> None:
    ids = list(range(small.vocab_size))
    assert small.convert_tokens_to_ids(small.convert_ids_to_tokens(ids)) == ids
    assert small.convert_tokens_to_ids(["no such token", "\ud800"]) == [0, 0]
    assert small.id_to_bytes(3 + 0xF0) == b"\xf0"
    assert small.id_to_bytes(1) == b"<s>"


def test_importing_a_tokenizer_is_light() -> None:
    heavy = "torch sentencepiece tokenizers transformers huggingface_hub jinja2 numpy"
    code = (
        f"import sys, llamacli.tokenizer_fast; print(sys.modules.keys() & set({heavy!r}.split()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_copy_of_the_folder_gives_the_same_tokenizer(
    tmp_path: Path, llama2_tokenizer_file: Path
) -> None:
    shutil.copy(llama2_tokenizer_file, tmp_path)
    tokenizer = LlamaTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_id) == (32000, 1, 2)
    assert (tokenizer.unk_token, tokenizer.pad_token_id) == ("<unk>", None)
