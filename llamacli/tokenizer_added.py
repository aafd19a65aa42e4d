"""Added tokens: those matched whole inside text, before the tokenizer's model sees it."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from llamacli.errors import TokenizerError, printable

_BLANKS = re.compile(r"\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """One token that is matched whole. It is matched inside words, and before normalization.

    Attributes:
        content: the text that it matches.
        special: decode leaves it out with `skip_special_tokens`.
        lstrip: it swallows the blanks on its left.
        rstrip: it swallows the blanks on its right.

    Raises:
        TokenizerError: a value of the wrong type.
    """

    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False

    def __post_init__(self) -> None:
        if not is_token(self.content):
            raise TokenizerError(f"an added token must be text, got {printable(self.content)!r}")
        for name in ("special", "lstrip", "rstrip"):
            if not isinstance(value := getattr(self, name), bool):
                where = f"{name} of added token {printable(self.content)!r}"
                raise TokenizerError(f"{where} must be true or false, got {printable(value)!r}")

    @classmethod
    def from_entry(cls, entry: object) -> Self:
        """An entry of `added_tokens` in tokenizer.json or of `added_tokens_decoder`."""
        if not isinstance(entry, Mapping) or "content" not in entry:
            raise TokenizerError(f"an added token must have a content, got {printable(entry)!r}")
        names = {f.name for f in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in entry.items() if key in names})


class AddedTokens:
    """All added tokens of a tokenizer.

    Attributes:
        by_id: the tokens by their id.
        ids: the ids by the text of the token.
    """

    def __init__(self) -> None:
        self.by_id: dict[int, AddedToken] = {}
        self.ids: dict[str, int] = {}

    def add(
        self, token_id: int, token: AddedToken, model_token: str | None, model_id: int | None
    ) -> None:
        """Add a token, or the same token with other settings.

        Args:
            token_id: its id.
            token: the token.
            model_token: what the tokenizer's model has under this id.
            model_id: where the model has the same text.

        Raises:
            TokenizerError: the id is another token's, or the text has another id.
        """
        shown = printable(repr(token.content))
        known = self.by_id.get(token_id)
        owner = known.content if known else model_token
        if owner not in (None, token.content):
            other = printable(repr(owner))
            raise TokenizerError(f"added token {shown} has id {token_id}, which is that of {other}")
        place = self.ids.get(token.content, model_id)
        if place not in (None, token_id):
            raise TokenizerError(f"added token {shown} has two ids, {token_id} and {place}")
        self.by_id[token_id] = token
        self.ids[token.content] = token_id

    def split(self, text: str) -> list[str | int]:
        """Cut a text at the tokens: plain text as str, a token as its id; the longest one wins."""
        segments: list[str | int] = []
        start = 0
        for match in self._pattern.finditer(text):
            token_id = self.ids[match.group()]
            token = self.by_id[token_id]
            before = text[start : match.start()]
            segments += (before.rstrip() if token.lstrip else before, token_id)
            start = match.end()
            if token.rstrip and (blanks := _BLANKS.match(text, start)):
                start = blanks.end()
        segments.append(text[start:])
        return [segment for segment in segments if segment != ""]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.ids, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def is_token(value: object) -> bool:
    """Text, not empty, without the lone surrogates that JSON can spell."""
    return isinstance(value, str) and bool(value) and not re.search("[\ud800-\udfff]", value)
