"""Where tokens, padding, documents and the cache stand in one row: from there, who sees whom."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from llamacli import masks
from llamacli.errors import RequestError
from llamacli.mask_view.kinds import Kind

MAX_TOKENS = 10**9  # in a row: 64 bits count its pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskOptions:
    """The mask that is asked for; by default the causal one.

    Attributes:
        sliding_window: a token sees so many, itself included.
        prefix_length: this many first tokens of each text see each other in both directions.
        padding: the side on which the shorter texts of a batch are filled up.
        packed: the texts are documents in one row, not rows of a batch.
        step: only the decode step of the token at this position, against the cache.
        static_cache: the cache has so many slots, used or not.

    Raises:
        RequestError: a value outside its range.
    """

    sliding_window: int | None = None
    prefix_length: int | None = None
    padding: Literal["left", "right"] = "left"
    packed: bool = False
    step: int | None = None
    static_cache: int | None = None

    def __post_init__(self) -> None:
        lowest = {"sliding_window": 1, "prefix_length": 1, "step": 0, "static_cache": 1}
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise RequestError(f"{name} must be {low} or more, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One row of a batch; positions are counted from the left, padding included.

    Attributes:
        options: the mask that was asked for.
        length: positions with a token or with padding.
        begin, end: the first real token, and the position after the last.
        starts: the first position of each document.
    """

    options: MaskOptions
    length: int
    begin: int
    end: int
    starts: tuple[int, ...]

    @property
    def queries(self) -> range:
        """The positions that ask: all, or the one of a decode step."""
        step = self.options.step
        return range(self.length) if step is None else range(step, step + 1)

    @property
    def keys(self) -> range:
        """The positions that may be seen, and empty slots of the cache."""
        return range(self.options.static_cache or self.queries.stop)

    @property
    def rule(self) -> masks.Predicate:
        """The mask, for positions as integers or as arrays that broadcast."""
        options = self.options
        rule: masks.Predicate = masks.causal
        if options.prefix_length:
            rule = masks.prefix_lm(rule, self._in_prefix)
        if options.sliding_window:
            rule = masks.sliding_window(rule, options.sliding_window)
        if len(self.starts) > 1:
            rule = masks.packed(rule, self._document_of)
        if self.begin > 0 or self.end < self.keys.stop:
            rule = masks.padded(rule, self.is_token)
        return rule

    def is_token(self, position: Any) -> Any:
        """Whether a real token stands there, not padding, and not an empty slot of the cache."""
        return (position >= self.begin) & (position < min(self.end, self.queries.stop))

    def _document_of(self, position: Any) -> Any:
        return sum(position >= start for start in self.starts)

    def _in_prefix(self, position: Any) -> Any:
        length = self.options.prefix_length or 0
        found = [(position >= start) & (position < start + length) for start in self.starts]
        return sum(found) > 0

    def kind(self, query: int, key: int, is_visible: bool) -> Kind:
        """Why a query sees a key, or why it does not; `is_visible` is what the rule says."""
        if is_visible:
            if query == key:
                return Kind.SELF
            if not self.is_token(query):
                return Kind.IGNORED
            if key > query:
                return Kind.AHEAD
            return Kind.VISIBLE if self.options.step is None else Kind.CACHED
        if key >= self.queries.stop:
            return Kind.EMPTY
        if not self.is_token(key):
            return Kind.PADDING
        if len(self.starts) > 1 and self._document_of(query) != self._document_of(key):
            return Kind.DOCUMENT
        return Kind.HIDDEN if key > query else Kind.WINDOW


def make_layouts(lengths: Sequence[int], options: MaskOptions) -> list[Layout]:
    """The rows that texts of these many tokens make: one each, or one of all packed documents.

    Raises:
        RequestError: too many tokens, a step after the last, or a static cache that is too small.
    """
    total, longest = sum(lengths), max(lengths)
    length = total if options.packed else longest
    for name, value, low, high in (
        ("tokens", length, 1, MAX_TOKENS),
        ("step", options.step, 0, length - 1),
        ("static_cache", options.static_cache, length, MAX_TOKENS),
    ):
        if value is not None and not low <= value <= high:
            raise RequestError(f"{name} must be {low:,} … {high:,} here, got {value:,}")
    if options.packed:
        starts = tuple(accumulate(lengths[:-1], initial=0))
        spans = [(0, total, starts)]
    elif options.padding == "left":
        spans = [(longest - n, longest, (longest - n,)) for n in lengths]
    else:
        spans = [(0, n, (0,)) for n in lengths]
    return [
        Layout(options=options, length=length, begin=begin, end=end, starts=starts)
        for begin, end, starts in spans
    ]
