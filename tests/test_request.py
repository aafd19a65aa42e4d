import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from llamacli.errors import RequestError
from llamacli.request import MAX_SEED, GenerationRequest, Message, SamplingParams

NAN, INF = math.nan, math.inf
HELLO: Message = {"role": "user", "content": "Hello"}


def test_the_defaults_are_valid_and_switch_everything_off() -> None:
    params = SamplingParams()
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (1, 0, 1, 0)
    assert (params.repetition_penalty, params.typical_p, params.logprobs) == (1, 1, None)


REFUSED: dict[str, list[tuple[str, list[Any]]]] = {
    "fault-064": [("temperature", [NAN, -1, INF, -INF, 1e7, 10**400, "0.7", None, True])],
    "fault-065": [
        ("top_p", [0, -0.1, 1.1, NAN, INF]),
        ("typical_p", [0, -0.1, 1.1, NAN]),
        ("min_p", [-0.1, 1.1, NAN]),
        ("top_k", [-1, 1.5, NAN, None, True]),
    ],
    "fault-066": [
        ("max_new_tokens", [-5, 1e9, "1e3", True]),
        ("min_new_tokens", [-1, None, 257]),
    ],
    "fault-067": [("seed", [-1, 2**63, 2**64, "abc", 1.0])],
    "fault-068": [("stop", ["abc", ("",), ("a", ""), (1,), None, b"abc"])],
    "other": [
        ("repetition_penalty", [0, -1, NAN, INF]),
        ("presence_penalty", [NAN, INF, -INF]),
        ("frequency_penalty", [NAN, INF, -INF]),
        ("no_repeat_ngram_size", [-1, 2.0]),
        ("ignore_eos", [1, None, "no"]),
        ("logprobs", [-1, 101, 1.0, True]),
        ("logit_bias", [{-1: 0.0}, {"1": 0.0}, {1: NAN}, {1: INF}, {1: "x"}, None]),
        ("sequence_bias", [{(): 0.0}, {1: 0.0}, {(1, -2): 0.0}, {(1,): NAN}, []]),
    ],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{fault}-{name}-{value!r}"[:60])
        for fault, rows in REFUSED.items()
        for name, values in rows
        for value in values
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=rf"{name} must be .*, got ") as caught:
        SamplingParams(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "accepted",
    [
        pytest.param({"temperature": 0}, id="fault-064-zero"),
        pytest.param({"temperature": 1e-45}, id="fault-064-tiny"),
        pytest.param({"top_k": 10**9, "top_p": 5e-324, "min_p": 1}, id="fault-065-extreme"),
        pytest.param({"max_new_tokens": 0}, id="fault-066-none-at-all"),
        pytest.param({"max_new_tokens": 10**9}, id="fault-066-more-than-any-context"),
        pytest.param({"max_new_tokens": None, "min_new_tokens": 10**9}, id="no-upper-bound"),
        pytest.param({"seed": MAX_SEED}, id="fault-067-largest-seed"),
        pytest.param({"stop": ("x" * 1000,)}, id="fault-068-long-stop-string"),
        pytest.param({"logit_bias": {0: -INF}, "sequence_bias": {(0, 1): -INF}}, id="bans"),
    ],
)
def test_the_ends_of_the_ranges_are_accepted(accepted: dict[str, Any]) -> None:
    params = SamplingParams(**accepted)
    assert {name: getattr(params, name) for name in accepted} == accepted


def test_collections_are_copied() -> None:
    stop, bias = ["a"], {1: 2.0}
    params = SamplingParams(stop=stop, logit_bias=bias)  # type: ignore[arg-type]
    stop.append("b")
    bias[1] = 3.0
    assert params.stop == ("a",)
    assert params.logit_bias == {1: 2.0}


def test_replacing_a_field_checks_again() -> None:
    with pytest.raises(RequestError, match="top_p"):
        dataclasses.replace(SamplingParams(), top_p=2)


_anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())
)


@given(st.sampled_from(sorted(f.name for f in dataclasses.fields(SamplingParams))), _anything)
def test_any_value_is_accepted_or_refused_in_one_line(name: str, value: Any) -> None:
    try:
        SamplingParams(**{name: value})
    except RequestError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert refusal == "" or refusal.isprintable()
    assert len(refusal) < 250


def test_a_request_has_either_a_prompt_or_messages() -> None:
    assert GenerationRequest(prompt="").prompt == ""
    assert GenerationRequest(messages=[HELLO], prefill="Hi").messages == (HELLO,)
    with pytest.raises(RequestError, match="either a prompt or messages"):
        GenerationRequest()
    with pytest.raises(RequestError, match="either a prompt or messages"):
        GenerationRequest(prompt="a", messages=[HELLO])


def test_a_prefill_needs_messages() -> None:
    with pytest.raises(RequestError, match="prefill"):
        GenerationRequest(prompt="a", prefill="b")


@pytest.mark.parametrize("message", [{}, {"role": "user"}, {"role": "user", "content": 1}, "hi"])
def test_a_message_has_a_role_and_a_content(message: Any) -> None:
    with pytest.raises(RequestError, match="role and content"):
        GenerationRequest(messages=[message])
