import random
from collections.abc import Sequence
from itertools import takewhile

import pytest
from hypothesis import given, strategies as st

from llamacli.lookup import NgramLookup


def drafts(token_ids: Sequence[int], start: int) -> list[tuple[int, int]]:
    """Sizes of drafts, and how much of each came true, if the text from `start` is what comes."""
    lookup, found = NgramLookup(8), []
    while start < len(token_ids):
        draft = lookup.draft(token_ids[:start], len(token_ids) - start - 1)
        pairs = zip(draft, token_ids[start:], strict=False)
        right = len([*takewhile(lambda pair: pair[0] == pair[1], pairs)])
        found.append((len(draft), right))
        start += right + 1
    return found


@pytest.mark.parametrize("token_ids", [[], [5], [5, 6, 7, 8, 9], [5, 6, 7, 8, 6, 7]])
def test_without_a_repeated_trigram_there_is_no_draft(token_ids: list[int]) -> None:
    assert NgramLookup(8).draft(token_ids, 8) == []


def test_the_draft_is_what_followed_the_latest_occurrence() -> None:
    lookup = NgramLookup(8)
    text = [1, 2, 3, 4, 9, 1, 2, 3, 5, 6, 7, 8, 1, 2, 3]
    assert lookup.draft(text, 8) == [5]
    assert lookup.draft([*text, 5, 6], 8) == [7, 8, 1]


def test_a_followed_occurrence_is_kept_while_it_is_right() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 0, 3, 4, 5, 9, 1, 2, 3, 4, 5]
    assert NgramLookup(8).draft(text, 8) == [6, 7, 0]


def test_drafts_grow_with_the_repetition_up_to_their_limits() -> None:
    text = [*range(100)] * 2
    sizes = [size for size, _ in drafts(text, 100)]
    assert sizes[:8] == [0, 0, 0, 1, 3, 7, 8, 8]
    assert max(sizes) == 8
    assert NgramLookup(8).draft(text[:150], 5) == [50, 51, 52, 53, 54]
    assert NgramLookup(8).draft(text[:150], 0) == []


def test_a_loop_shorter_than_the_draft_goes_round() -> None:
    assert NgramLookup(8).draft([1, *[4] * 20], 8) == [4] * 8
    assert NgramLookup(5).draft([1, 2] * 10, 8) == [1, 2, 1, 2, 1]


def test_after_a_wrong_draft_the_next_waits_for_a_longer_repetition() -> None:
    text = [1, 2, 3, 4, 0, 1, 2, 3]
    lookup = NgramLookup(8)
    assert lookup.draft(text, 8) == [4]
    text += [9, 1, 2, 3]  # it was wrong
    assert lookup.draft(text, 8) == []
    assert lookup.draft([*text, 9], 8) == [1, 2]
    text += [9, 1, 2, 3, 9, 7, 1, 2, 3]  # it was right
    assert lookup.draft(text, 8) == [9]


@pytest.mark.parametrize("alphabet", [2, 3, 4, 6, 10, 100])
def test_a_text_without_rule_wastes_few_rows(alphabet: int) -> None:
    chance = random.Random(0)
    found = drafts([chance.randrange(alphabet) for _ in range(2000)], 100)
    assert sum(size - right for size, right in found) < 0.03 * 1900


def test_a_list_whose_entries_begin_alike_and_differ_wastes_few_rows() -> None:
    entries = [[1, 2, 3, *range(10 * i, 10 * i + 5)] for i in range(1, 200)]
    found = drafts([token_id for entry in entries for token_id in entry], 8)
    assert sum(size - right for size, right in found) == 1


class Counted(list[int]):
    """Counts how often it is read."""

    reads = 0

    def __getitem__(self, key: object) -> object:  # type: ignore[override]
        self.reads += 1
        return super().__getitem__(key)  # type: ignore[call-overload, no-any-return]


def test_a_token_costs_the_same_however_long_the_text_is() -> None:
    lookup, text = NgramLookup(8), Counted([1, 2, 3, 4] * 5)
    costs = set()
    for length in (1000, 10_000):
        text.extend([1, 2, 3, 4] * (length // 4))
        lookup.draft(text, 8)
        text.append(1)
        text.reads = 0
        lookup.draft(text, 8)
        text.extend([2, 3, 4])
        costs.add(text.reads)
    assert len(costs) == 1


@given(
    token_ids=st.lists(st.integers(0, 3), max_size=60),
    cuts=st.sets(st.integers(0, 60)),
    limit=st.integers(0, 6),
)
def test_a_draft_always_continues_an_earlier_occurrence(
    token_ids: list[int], cuts: set[int], limit: int
) -> None:
    lookup = NgramLookup(4)
    for length in sorted(cut for cut in cuts if cut <= len(token_ids)):
        text = token_ids[:length]
        draft = lookup.draft(text, limit)
        assert len(draft) <= min(limit, 4)
        whole = text + draft
        assert not draft or any(
            text[end - 3 : end] == text[-3:] and whole[end : end + len(draft)] == draft
            for end in range(3, length)
        )
