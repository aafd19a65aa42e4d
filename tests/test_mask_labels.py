import unicodedata

import pyte
import pytest
from hypothesis import given, strategies as st
from rich.cells import cell_len

from llamacli.mask_view.labels import char_width, fitted, label, spelled, text_width


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"ants", "ants"),
        (b" the", "·the"),
        (b"   ", "···"),
        (b"", ""),
        (b"\n", "\\n"),
        (b"\t\x1b[2J\x9b", "\\t\\x1b[2J\\x9b"),
        (b"\x00", "\\x00"),
        (b"\xf0\x9f", "\\xf0\\x9f"),
        ("漢字🦙".encode(), "漢字🦙"),
        ("\u202eabc\u200b".encode(), "\\u202eabc\\u200b"),
        ("e\u0301".encode(), "e\u0301"),
        ("\u0301".encode(), "◌\u0301"),
        ("❤\ufe0f".encode(), "❤\\ufe0f"),
    ],
)
def test_a_token_is_readable_whatever_it_holds(data: bytes, shown: str) -> None:
    assert label(data) == shown


@given(
    st.binary(max_size=12) | st.text(max_size=8).map(lambda text: text.encode("utf-8", "replace"))
)
def test_a_label_moves_no_cursor_and_takes_the_columns_that_it_claims(data: bytes) -> None:
    shown = label(data)
    assert all(char.isprintable() for char in shown)
    screen = pyte.Screen(200, 2)
    pyte.Stream(screen).feed(spelled(shown, "ascii"))
    assert screen.cursor.x == text_width(spelled(shown, "ascii"))


def test_widths_are_those_of_terminals() -> None:
    known = [*map(chr, range(0x20, 0x2600)), *"漢字カナｱＡ🦙한글☂⚡", "e\u0301"]
    for text in known:
        if all(unicodedata.category(char)[0] in "LNPSZM" and char.isprintable() for char in text):
            assert text_width(text) == cell_len(text), hex(ord(text[0]))
    assert char_width("漢") == 2


def test_a_label_is_cut_or_filled_to_its_columns() -> None:
    assert fitted("ab", 4) == "ab  "
    assert fitted("abcdef", 4) == "abc…"
    assert fitted("漢字漢字", 4) == "漢… "
    assert fitted("漢", 3) == "漢 "
    assert fitted("abcdef", 4, "~") == "abc~"


def test_labels_can_be_spelled_in_ascii() -> None:
    assert spelled("·é漢", "ascii") == "_\\xe9\\u6f22"
    assert spelled("·é漢", "utf-8") == "·é漢"
    assert spelled("\\n", "ascii") == "\\n"
