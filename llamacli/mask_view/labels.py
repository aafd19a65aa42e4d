"""Tokens as labels: readable whatever they hold, and as wide as they claim to be."""

import unicodedata
from typing import Literal

Charset = Literal["utf-8", "ascii"]

BLANK, ASCII_BLANK = "·", "_"
_ELLIPSIS = "…"


def label(data: bytes) -> str:
    """A token's bytes as one line of text.

    Blanks are visible; control characters, marks that would change the character before them in
    an unforeseen way, and bytes that are no text are escaped: "·the", "\\\\n", "\\\\xf0\\\\x9f".
    """
    shown = "".join(map(_shown, data.decode("utf-8", "surrogateescape")))
    return f"◌{shown}" if shown and not char_width(shown[0]) else shown


def _shown(char: str) -> str:
    if char == " ":
        return BLANK
    if "\udc80" <= char <= "\udcff":  # a byte that is no text
        return f"\\x{ord(char) - 0xDC00:02x}"
    # Variation selectors widen the character before them in some terminals only.
    is_plain = char.isprintable() and not "\ufe00" <= char <= "\ufe0f"
    return char if is_plain else ascii(char)[1:-1]


def spelled(text: str, charset: Charset) -> str:
    """The label in a character set; in ASCII a blank is _, and other characters are escaped."""
    if charset == "utf-8":
        return text
    return text.replace(BLANK, ASCII_BLANK).encode("ascii", "backslashreplace").decode()


def char_width(char: str) -> int:
    """Columns of a terminal that a character takes."""
    if unicodedata.category(char) in ("Mn", "Me", "Mc", "Cf") or "\u1160" <= char <= "\u11ff":
        return 0  # marks, and the later parts of a Korean syllable
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def text_width(text: str) -> int:
    """Columns of a terminal that a label takes."""
    return sum(map(char_width, text))


def fitted(text: str, width: int, ellipsis: str = _ELLIPSIS) -> str:
    """The label in exactly so many columns: cut, or filled up on the right."""
    if text_width(text) > width:
        kept = ""
        for char in text:
            if text_width(kept + char) > width - len(ellipsis):
                break
            kept += char
        text = kept + ellipsis
    return text + " " * (width - text_width(text))
