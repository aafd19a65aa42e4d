"""Biases by word: `--logit-bias word=-2` becomes token ids and sequences."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from llamacli.errors import RequestError, printable
from llamacli.tokenizer import Tokenizer

_MOST_TOKENS = 4  # a banned word is rarely spelled in more; the number of ways grows fast


class Biases(NamedTuple):
    """As `SamplingParams.logit_bias` and `SamplingParams.sequence_bias`."""

    tokens: Mapping[int, float]
    sequences: Mapping[tuple[int, ...], float]


def parse_biases(specs: Iterable[str], tokenizer: Tokenizer) -> Biases:
    """Read specifications ID=BIAS and WORD=BIAS; a bias of -inf bans.

    A word stands for itself after a blank and at the start of a line, so that every way to begin
    it is biased. A banned word is banned in other spellings too: without " garden" the model
    would say " gar" and "den". A word of digits alone is an id.

    Raises:
        RequestError: not of that form, or no such id.
    """
    tokens: dict[int, float] = {}
    sequences: dict[tuple[int, ...], float] = {}
    for spec in specs:
        target, bias = _split(spec)
        if target.isascii() and target.isdecimal():
            tokens[_token_id(target, tokenizer)] = bias
            continue
        ways = word_ids(target, tokenizer)
        if bias == -math.inf:
            ways |= spellings(target, tokenizer)
        for ids in ways:
            if len(ids) == 1:
                tokens[ids[0]] = bias
            else:
                sequences[ids] = bias
    return Biases(tokens, sequences)


def word_ids(word: str, tokenizer: Tokenizer) -> set[tuple[int, ...]]:
    """The token ids of a word after a blank and at the start of a line."""
    found = set()
    for before, after in (("a", " " + word.strip()), ("\n", word.strip())):
        context = tokenizer.encode_segments([before])
        ids = tokenizer.encode_segments([before + after])
        if ids[: len(context)] == context:
            found.add(tuple(ids[len(context) :]))
    return found - {()}


def spellings(word: str, tokenizer: Tokenizer) -> set[tuple[int, ...]]:
    """Every way to write a word in up to four tokens, with a blank before it and without."""
    text = f" {word.strip()}".encode()
    pieces = {tokenizer.id_to_bytes(token_id): token_id for token_id in range(tokenizer.vocab_size)}
    pieces = {piece: token_id for piece, token_id in pieces.items() if piece and piece in text}
    found: set[tuple[int, ...]] = set()
    begun: list[tuple[bytes, tuple[int, ...]]] = [(text, ()), (text[1:], ())]
    for _ in range(_MOST_TOKENS):
        begun = [
            (rest[len(piece) :], (*ids, token_id))
            for rest, ids in begun
            for piece, token_id in pieces.items()
            if rest.startswith(piece)
        ]
        found |= {ids for rest, ids in begun if not rest}
    return found


def _split(spec: str) -> tuple[str, float]:
    target, equals, number = spec.rpartition("=")
    try:
        bias = float(number)
    except ValueError:
        bias = math.nan
    if not (equals and target.strip()) or math.isnan(bias):
        shown = printable(spec)
        raise RequestError(f"a logit bias is ID=BIAS or WORD=BIAS, such as 'moon=-3', got {shown}")
    return target, bias


def _token_id(digits: str, tokenizer: Tokenizer) -> int:
    if len(digits) > 9 or int(digits) >= tokenizer.vocab_size:
        size = f"{tokenizer.vocab_size:,}"
        raise RequestError(f"logit bias: there is no token {printable(digits)} among {size}")
    return int(digits)
