"""The picture of a mask as data: cells of kinds, labels, counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from llamacli.mask_view.kinds import Kind, share_level, weight_level
from llamacli.mask_view.labels import label
from llamacli.mask_view.layout import Layout, MaskOptions, make_layouts
from llamacli.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]

_FEW = 2**16  # pairs that Python counts in the time of an import
_SAMPLES = 2048  # queries, and keys of each, that very many pairs are estimated by


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What the mask adds up to; of very many pairs it is estimated."""

    visible: int
    pairs: int
    reach: int  # the longest distance between a query and a key that it sees
    exact: bool = True

    def __str__(self) -> str:
        if self.exact:
            return f"{self.visible:,} of {self.pairs:,} pairs visible, longest reach {self.reach:,}"
        share = f"about {self.visible / self.pairs:.1%} of {self.pairs:,} pairs visible"
        return f"{share}, longest reach about {self.reach:,}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is drawn of a row.

    Attributes:
        cells: for each query, or block of queries, the kinds of all keys or blocks of keys.
        queries, keys: the positions that they begin at.
        block: how many queries and keys a cell stands for.
    """

    cells: list[list[Kind]]
    queries: range
    keys: range
    block: tuple[int, int] = (1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRow:
    """One row of a batch: its tokens, and who of them sees whom.

    Attributes:
        labels: of each position; empty where there is no text.
        token_ids: of each position, padding as None; empty where there is no text.
        title: says what is shown.
        weights: of the model's attention, (T, S), or None for the mask alone.
    """

    layout: Layout
    title: str
    labels: Sequence[str] = ()
    token_ids: Sequence[int | None] = ()
    weights: Sequence[Sequence[float]] | None = None

    def label(self, position: int) -> str:
        """The label of a position; a slot of the cache that is still empty has none."""
        is_there = position < min(len(self.labels), self.layout.queries.stop)
        return self.labels[position] if is_there else ""

    def mask(self) -> list[list[bool]]:
        """The mask (T, S); True = may attend."""
        queries, keys, rule = self.layout.queries, self.layout.keys, self.layout.rule
        if len(queries) * len(keys) <= _FEW:  # importing numpy takes longer
            return [[bool(rule(query, key)) for key in keys] for query in queries]
        import numpy as np

        mask: list[list[bool]] = rule(np.array(queries)[:, None], np.array(keys)).tolist()
        return mask

    def kinds(self) -> list[list[Kind]]:
        """Why each pair is visible or not, (T, S)."""
        kind, keys = self.layout.kind, self.layout.keys
        return [
            [kind(query, key, is_visible) for key, is_visible in zip(keys, line, strict=True)]
            for query, line in zip(self.layout.queries, self.mask(), strict=True)
        ]

    def grid(self) -> Grid:
        """A cell for each pair; where there are weights, their levels take the visible ones."""
        layout, cells = self.layout, self.kinds()
        if self.weights is not None:
            for row, weights in zip(cells, self.weights, strict=True):
                row[:] = [
                    weight_level(weight) if kind.is_visible else kind
                    for kind, weight in zip(row, weights, strict=True)
                ]
        return Grid(cells=cells, queries=layout.queries, keys=layout.keys)

    def density(self, block: tuple[int, int]) -> Grid:
        """A cell for each block of pairs: the share that is visible, or the largest weight."""
        import numpy as np

        mask, queries, keys = self._sample()
        edges = _edges(queries, block[0]), _edges(keys, block[1])
        visible = _by_block(np.add, mask.astype(float), *edges)
        if self.weights is not None:
            weights = np.asarray(self.weights)[np.ix_(queries - queries[0], keys)]
            level: Callable[[float], Kind] = weight_level
            values = _by_block(np.maximum, weights, *edges)
        else:
            level = share_level
            values = visible / _by_block(np.add, np.ones(mask.shape), *edges)
        cells = [
            [level(value) if seen else Kind.NONE for value, seen in zip(*both, strict=True)]
            for both in zip(values.tolist(), visible.tolist(), strict=True)
        ]
        return Grid(
            cells=cells,
            queries=self.layout.queries[:: block[0]],
            keys=self.layout.keys[:: block[1]],
            block=block,
        )

    def counts(self) -> Counts:
        """How much of the mask is visible; exact up to 2,048 tokens."""
        layout = self.layout
        pairs = len(layout.queries) * len(layout.keys)
        if pairs <= _FEW:
            lines = zip(layout.queries, self.mask(), strict=True)
            seen = [q - k for q, line in lines for k in layout.keys if line[k]]
            return Counts(visible=len(seen), pairs=pairs, reach=max(seen))
        mask, queries, keys = self._sample()
        reach = (queries - keys[mask.argmax(axis=1)])[mask.any(axis=1)]
        visible = round(int(mask.sum()) / mask.size * pairs)
        exact = mask.size == pairs
        return Counts(visible=visible, pairs=pairs, reach=int(reach.max(initial=0)), exact=exact)

    def _sample(self) -> "tuple[Array, Array, Array]":
        """The mask at evenly spaced queries and keys, all of them unless they are many."""
        import numpy as np

        queries, keys = self.layout.queries, self.layout.keys
        queries = queries[:: ceil(len(queries) / _SAMPLES)]
        keys = keys[:: ceil(len(keys) * len(queries) / _SAMPLES**2)]
        places = np.asarray(queries), np.asarray(keys)
        return self.layout.rule(places[0][:, None], places[1]), *places


def _edges(positions: "Array", block: int) -> "Array":
    """Where each block begins among the positions."""
    import numpy as np

    return np.searchsorted(positions, np.arange(positions[0], positions[-1] + 1, block))


def _by_block(combine: "np.ufunc", values: "Array", rows: "Array", columns: "Array") -> "Array":
    """One value for each block of a matrix."""
    return combine.reduceat(combine.reduceat(values, rows, axis=0), columns, axis=1)


def text_rows(texts: Sequence[str], tokenizer: Tokenizer, options: MaskOptions) -> list[MaskRow]:
    """The rows that texts make, each with BOS and EOS as the model has them.

    Raises:
        RequestError: see `make_layouts`.
    """
    encoded = [tokenizer.encode(text, split_special_tokens=True) for text in texts]
    layouts = make_layouts(list(map(len, encoded)), options)
    if options.packed:
        encoded = [[token_id for ids in encoded for token_id in ids]]
    rows = []
    for number, (layout, ids) in enumerate(zip(layouts, encoded, strict=True), 1):
        padded = [None] * layout.begin + ids + [None] * (layout.length - layout.end)
        labels = [token_label(token_id, tokenizer) for token_id in padded]
        title = _title(layout, number, len(layouts))
        rows.append(MaskRow(layout=layout, title=title, labels=labels, token_ids=padded))
    return rows


def token_rows(lengths: Sequence[int], options: MaskOptions) -> list[MaskRow]:
    """The rows that so many tokens make, without any text.

    Raises:
        RequestError: see `make_layouts`.
    """
    layouts = make_layouts(lengths, options)
    titles = [_title(layout, number, len(layouts)) for number, layout in enumerate(layouts, 1)]
    return [MaskRow(layout=each, title=title) for each, title in zip(layouts, titles, strict=True)]


def token_label(token_id: int | None, tokenizer: Tokenizer) -> str:
    """What stands beside a row: the token's name if it is special, else its text."""
    if token_id is None:
        return tokenizer.pad_token or "<pad>"
    if token_id in tokenizer.all_special_ids:
        return label("".join(tokenizer.convert_ids_to_tokens([token_id])).encode())
    return label(tokenizer.id_to_bytes(token_id))


def _title(layout: Layout, number: int, total: int) -> str:
    options = layout.options
    prefix = options.prefix_length
    parts = [f"prefix-LM mask, prefix of {prefix:,}" if prefix else "causal mask"]
    if options.sliding_window:
        parts.append(f"sliding window of {options.sliding_window:,}")
    if options.packed:
        parts.append(f"{len(layout.starts):,} packed documents")
    if options.step is not None:
        parts.append(f"decode step of token {options.step:,}")
    if options.static_cache:
        parts.append(f"static cache of {options.static_cache:,} slots")
    if total > 1:
        parts.append(f"row {number:,} of {total:,}")
    return ", ".join(parts)
