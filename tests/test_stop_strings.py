from itertools import pairwise

from hypothesis import given, strategies as st

from llamacli.stop_strings import StopMatcher


def run(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    matcher, out = StopMatcher(stops), ""
    for piece in pieces:
        out += matcher.push(piece)
        if matcher.matched:
            return out, matcher.matched
    return out + matcher.flush(), None


def test_text_is_cut_before_the_stop_string_across_pieces() -> None:
    assert run(["one t", "wo thr", "ee"], ["two"]) == ("one ", "two")


def test_text_that_only_begins_a_stop_string_is_not_lost() -> None:
    assert run(["ab", "ab", "x"], ["abc"]) == ("ababx", None)
    assert run(["ab"], ["abc"]) == ("ab", None)


def test_only_a_possible_beginning_is_held_back() -> None:
    matcher = StopMatcher(["END", "\n\n"])
    assert matcher.push("hello E") == "hello "
    assert matcher.push("at\n") == "Eat"
    assert matcher.push("x") == "\nx"


def test_the_first_complete_stop_string_wins_and_then_the_longer() -> None:
    assert run(["abcd"], ["abcd", "bc"]) == ("a", "bc")
    assert run(["xabc"], ["bc", "abc"]) == ("x", "abc")


@given(
    text=st.text("ab\n", max_size=30),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_fault_068_the_result_does_not_depend_on_the_pieces(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    whole = run([*text], stops)
    assert run(pieces, stops) == whole
    out, stop = whole
    assert text.startswith(out + (stop or ""))
    assert all(s not in out for s in stops)
