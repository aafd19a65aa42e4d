"""Where in a text its tokens stand."""

from typing import TYPE_CHECKING, NamedTuple

from llamacli.errors import TokenizerError, printable
from llamacli.tokenizer_bytes import scalar_text

if TYPE_CHECKING:
    from llamacli.tokenizer import Tokenizer


class PlacedToken(NamedTuple):
    """A token, and the characters start … end-1 of the text that it stands for."""

    id: int
    start: int
    end: int


def place_tokens(tokenizer: "Tokenizer", text: str) -> list[PlacedToken]:
    """The tokens of a text, without BOS and EOS.

    A token with a blank before its word covers the blank, too. One that is a part of a character
    covers all of it.

    Raises:
        TokenizerError: the tokens spell another text, because the tokenizer changes it.
    """
    text = scalar_text(text)
    segments = tokenizer.split(text)
    placed: list[PlacedToken] = []
    cursor = 0
    for count, segment in enumerate(segments, 1):
        ids = tokenizer.encode_segments(segments[:count])[len(placed) :]
        shown = segment if isinstance(segment, str) else tokenizer.id_to_token(segment)
        cursor = text.find(shown, cursor) if isinstance(segment, int) else cursor
        pieces = [tokenizer.id_to_bytes(token_id) for token_id in ids]
        placed += _place(ids, pieces, shown, cursor)
        cursor += len(shown)
    return placed


def _place(ids: list[int], pieces: list[bytes], text: str, offset: int) -> list[PlacedToken]:
    spelled, wanted = b"".join(pieces), text.encode()
    if spelled == b" " + wanted:
        pieces = [pieces[0].removeprefix(b" "), *pieces[1:]]  # the blank that SentencePiece adds
    elif spelled != wanted:
        shown = printable(repr(text))
        raise TokenizerError(f"the tokens of {shown} spell another text, and have no places in it")
    owners = [index for index, character in enumerate(text) for _ in character.encode()]
    placed, byte = [], 0
    for token_id, piece in zip(ids, pieces, strict=True):
        start = owners[byte]
        byte += len(piece)
        placed.append(PlacedToken(token_id, offset + start, offset + owners[max(byte, 1) - 1] + 1))
    return placed
