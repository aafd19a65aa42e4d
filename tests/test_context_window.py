import pytest
from hypothesis import given, strategies as st

from llamacli.context_window import token_budget, truncate
from llamacli.errors import RequestError


def test_budget_is_what_is_asked_for_within_the_room() -> None:
    assert token_budget(100, 60, 10) == 10
    assert token_budget(100, 60, 1_000_000) == 40
    assert token_budget(100, 60, None) == 40
    assert token_budget(100, 60, 0) == 0


def test_fault_061_a_prompt_that_fills_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(RequestError, match=r"5,000 tokens, the model's context 4,096"):
        token_budget(4096, 5000, 1)
    with pytest.raises(RequestError, match="empty"):
        token_budget(4096, 0, 1)


def test_cut_sides() -> None:
    ids = list(range(12))
    assert truncate(ids, 10, 4, "left") == [0, 7, 8, 9, 10, 11]
    assert truncate(ids, 10, 4, "right") == [0, 1, 2, 3, 4, 5]
    assert truncate(ids, 10, 4, "middle") == [0, 1, 2, 9, 10, 11]
    assert truncate(ids, 100, 4, "left") == ids


@given(
    length=st.integers(1, 300),
    context=st.integers(2, 120),
    new=st.none() | st.integers(0, 500),
    side=st.sampled_from(["left", "right", "middle"]),
)
def test_a_cut_prompt_always_fits(length: int, context: int, new: int | None, side: str) -> None:
    cut = truncate(range(length), context, new, side)  # type: ignore[arg-type]
    assert cut[0] == 0
    assert len(cut) < context
    assert token_budget(context, len(cut), new) >= min(new or 1, 1)
