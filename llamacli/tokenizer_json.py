"""What tokenizers accepts of a tokenizer.json, and llamacli does not: checked before it loads."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamacli.errors import TokenizerError, printable
from llamacli.json_files import read_json_object
from llamacli.tokenizer_added import AddedToken
from llamacli.tokenizer_config import MAX_VOCABULARY_BYTES, checked_id

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_DECODERS = {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
_ATOM = r"(?:\\[pP]\{\^?\w+\}|\\[^gkpP0-9]|\[(?:\\.|[^\[\]\\])+\]|[^\\\[\](){}*+?|^$.])"
_REPEAT = r"(?:[*+]\+?|\{\d(?:,\d?)?\})"
_CONTRACTIONS = r"'?\(\?i?:[a-z'|\[\]]+\)"  # as (?i:'s|'t|'re)
_ALTERNATIVE = (
    rf"(?:{_CONTRACTIONS}|(?:{_ATOM}(?:\?\+?)?){{0,2}}"
    rf"(?:{_ATOM}{_REPEAT}?(?:{_ATOM}{_REPEAT}?)?(?:{_CONTRACTIONS}\?)?"
    rf"|{_ATOM}{_REPEAT}(?:\(\?!\\S\)|\$)))"
)
_PATTERN = re.compile(rf"{_ALTERNATIVE}(?:\|{_ALTERNATIVE})*")
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def load_tokenizer_json(path: Path) -> tuple["Tokenizer", int]:
    """The tokenizer in a tokenizer.json, and the size of its model: its largest id plus one.

    Raises:
        NotFoundError: there is no such file.
        TokenizerError: it does not hold a BPE model fit for a Llama.
    """
    from tokenizers import Tokenizer

    shown = printable(path)
    data = read_json_object(path, error=TokenizerError, max_bytes=MAX_VOCABULARY_BYTES)
    try:
        model_size = _check_model(data.get("model"))
        _check_parts(data)
        added = _added_ids(data.get("added_tokens"))
        tokenizer = Tokenizer.from_file(str(path))
    except TokenizerError as problem:
        raise TokenizerError(f"{shown}: {problem}") from problem
    except Exception as problem:  # tokenizers raises nothing more precise
        raise TokenizerError(f"{shown}: {printable(problem)}") from problem
    for content, wanted in added.items():
        if (got := tokenizer.token_to_id(content)) != wanted:
            token = printable(repr(content))
            raise TokenizerError(f"{shown}: added token {token} wants id {wanted}, which is {got}")
    return tokenizer, model_size


def components(part: object) -> Iterator[Mapping[str, Any]]:
    """A normalizer, pre-tokenizer, post-processor or decoder, with a sequence taken apart."""
    if not isinstance(part, Mapping):
        return
    if part.get("type") != "Sequence":
        yield part
        return
    for value in part.values():
        for component in value if isinstance(value, list) else ():
            yield from components(component)


def _check_model(model: object) -> int:
    kind = model.get("type", "BPE") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or kind != "BPE":
        raise TokenizerError(f"the model must be BPE, got {printable(kind)}")
    vocab = model.get("vocab")
    if not isinstance(vocab, Mapping) or not vocab:
        raise TokenizerError("the model has no vocabulary")
    for token, value in vocab.items():
        if type(value) is not int:
            shown = printable(f"{token!r} has id {value!r}")
            raise TokenizerError(f"token {shown}, which is no whole number")
    owners = {value: token for token, value in vocab.items()}
    for token, value in vocab.items() if len(owners) < len(vocab) else ():
        if owners[value] != token:
            both = f"{token!r} and {owners[value]!r}"
            raise TokenizerError(f"tokens {printable(both)} have one id, {value}")
    checked_id(min(owners))
    return checked_id(max(owners)) + 1


def _added_ids(entries: object) -> dict[str, int]:
    if not isinstance(entries, list | None):
        raise TokenizerError("added_tokens must be a list")
    owners: dict[int, str] = {}
    for entry in entries or ():
        token, number = AddedToken.from_entry(entry), checked_id(entry.get("id"))
        if number in owners:
            both = f"{owners[number]!r} and {token.content!r}"
            raise TokenizerError(f"added tokens {printable(both)} have one id, {number}")
        owners[number] = token.content
    return {content: number for number, content in owners.items()}


def _check_parts(data: Mapping[str, object]) -> None:
    types = {str(component.get("type")) for component in components(data.get("decoder"))}
    if not types or types - _DECODERS:
        got = printable(", ".join(sorted(types)) or None)
        raise TokenizerError(f"the decoder must be of {', '.join(sorted(_DECODERS))}, got {got}")
    for part in _PARTS:
        for pattern in _patterns(data.get(part)):
            _check_pattern(pattern)


def _patterns(part: object) -> Iterator[str]:
    if isinstance(part, Mapping):
        if isinstance(pattern := part.get("Regex"), str):
            yield pattern
        part = list(part.values())
    if isinstance(part, list):
        for value in part:
            yield from _patterns(value)


def _check_pattern(pattern: str) -> None:
    """Accept patterns whose search time is at most quadratic in a run of one kind of character.

    An alternative is at most four characters or classes, of which only the last two may repeat.
    This is how the patterns of Llama, GPT and Qwen look; with nested or chained repeats, a search
    can take exponential time.
    """
    if not _PATTERN.fullmatch(pattern):
        shown = printable(repr(pattern))
        raise TokenizerError(f"the regular expression {shown} may take too long")
