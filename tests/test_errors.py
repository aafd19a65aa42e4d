import pytest
from hypothesis import given, strategies as st

from llamacli.errors import LlamacliError, RequestError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, naïve, 日本語, 🦙", "plain text, naïve, 日本語, 🦙"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("two\nlines\ttabbed", "two\\nlines\\ttabbed"),
        ("\u202eright to left", "\\u202eright to left"),
        ("lone \ud800", "lone \\ud800"),
        (17, "17"),
    ],
)
def test_printable_escapes_what_a_terminal_would_obey(text: object, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(), max_size=400))
def test_printable_is_one_short_line_that_can_be_encoded(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= 120
    shown.encode()


def test_printable_cuts_long_text_visibly() -> None:
    assert printable("x" * 120) == "x" * 120
    assert printable("x" * 121) == "x" * 119 + "…"


def test_an_error_carries_a_message_and_at_most_one_hint() -> None:
    assert RequestError("no").hint is None
    error = RequestError("no", hint="try this")
    assert (str(error), error.hint) == ("no", "try this")
    assert isinstance(error, LlamacliError)
