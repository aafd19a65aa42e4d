"""Text and bytes in a vocabulary: GPT-2's byte-level alphabet, SentencePiece's pieces."""

import re

BLANK = "▁"  # SentencePiece's blank, U+2581


def _byte_level_alphabet() -> dict[int, str]:
    """A printable character for each byte (`bytes_to_unicode` in GPT-2's encoder.py)."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {b: chr(256 + i) for i, b in enumerate(others)}


BYTE_TO_CHAR = _byte_level_alphabet()
_CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a byte-level token; an added token outside the alphabet is its own text."""
    try:
        return bytes(map(_CHAR_TO_BYTE.__getitem__, token))
    except KeyError:
        return token.encode()


def sentencepiece_bytes(token: str) -> bytes:
    """The bytes of a SentencePiece piece: one for `<0x0A>`, those of the text for another."""
    if byte := re.fullmatch("<0x([0-9A-F]{2})>", token):
        return bytes.fromhex(byte[1])
    return token.replace(BLANK, " ").encode()


def scalar_text(text: str) -> str:
    """Text that UTF-8 can write: a surrogate pair becomes its character, a lone one U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
