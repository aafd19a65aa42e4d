import pytest

from llamacli.benchmark.cases import Case, cases, numbers, pairs
from llamacli.benchmark.shapes import SHAPES, shape
from llamacli.errors import RequestError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("512", [512]),
        ("0,1024", [0, 1024]),
        ("1-4", [1, 2, 3, 4]),
        ("0-4096+2048", [0, 2048, 4096]),
        ("1-8*2", [1, 2, 4, 8]),
        ("1-9*2", [1, 2, 4, 8]),
        (" 4, 4 ,1-2", [4, 1, 2]),
        ("7-7", [7]),
    ],
)
def test_a_list_of_numbers(text: str, found: list[int]) -> None:
    assert numbers("n", text) == found


@pytest.mark.parametrize(
    "text", ["", "a", "1,", "-1", "1--2", "1.5", "1-2-3", "1000001", "1e3", "٣", "1-8*1", "0-8*2",
             "0-5+0", "0-100000"]
)  # fmt: skip
def test_fault_126_what_is_no_list_of_sizes_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"^n_depth "):
        numbers("n_depth", text)


def test_a_number_may_have_a_least_value() -> None:
    with pytest.raises(RequestError, match=r"threads must be numbers of 1 … 1,000,000"):
        numbers("threads", "2,0", low=1)


def test_pairs_of_prompt_and_new_tokens() -> None:
    assert pairs("pg", "512,128;16,16") == [(512, 128), (16, 16)]
    for text in ("512", "1,2,3", "1-2,3", "0,1", ""):
        with pytest.raises(RequestError, match=r"^pg must be"):
            pairs("pg", text)


def test_every_test_is_made_at_every_depth_and_in_every_batch() -> None:
    found = [case.test for case in cases([8, 0], [4], [(2, 3)], [0, 16], [1, 2])]
    one_depth = ["pp8", "tg4", "pp2+tg3"]
    assert found == [
        *one_depth,
        *(f"{test} @ d16" for test in one_depth),
        *(f"{test} b2" for test in one_depth),
        *(f"{test} @ d16 b2" for test in one_depth),
    ]


def test_no_case_at_all_is_refused() -> None:
    with pytest.raises(RequestError, match="nothing to measure"):
        cases([0], [0], [], [0], [1])


def test_tokens_of_all_rows_count_and_depth_does_not() -> None:
    case = Case(prompt_tokens=5, new_tokens=3, depth=7, batch=2)
    assert (case.tokens, case.length) == (16, 15)


# Parameters as their publishers count them.
@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("tinyllama-1.1b", 1.10),
        ("llama-2-7b", 6.74),
        ("llama-2-13b", 13.02),
        ("llama-2-70b", 68.98),
        ("llama-3-8b", 8.03),
        ("llama-3.1-8b", 8.03),
        ("llama-3.1-70b", 70.55),
        ("llama-3.2-1b", 1.24),
        ("llama-3.2-3b", 3.21),
    ],
)
def test_a_shape_has_the_parameters_of_its_model(name: str, billions: float) -> None:
    config = shape(name)
    heads = 2 * config.num_attention_heads + 2 * config.kv_heads
    layer = heads * config.head_size + 3 * config.intermediate_size + 2
    tables = config.vocab_size * (1 if config.tie_word_embeddings else 2) + 1
    found = (config.num_hidden_layers * layer + tables) * config.hidden_size
    assert round(found / 1e9, 2) == billions
    assert name in SHAPES


def test_an_unknown_shape_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(RequestError, match=r"one of tinyllama-1\.1b, .*got 'gpt-2'"):
        shape("gpt-2")
