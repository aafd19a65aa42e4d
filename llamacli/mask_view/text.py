"""The picture of a mask as text, as large as fits: cells, half-blocks, or a picture of density."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil

from llamacli.mask_view.kinds import WEIGHTS, Kind, explained
from llamacli.mask_view.labels import fitted, spelled, text_width
from llamacli.mask_view.rows import MaskRow

MAX_WIDTH = 1024  # wider pictures than this nobody looks at, and they grow with its square
_MAX_LABEL = 16
_FRAME = 7  # lines around the cells: title, two of numbers, sum, two of legend, the shell's prompt
_HALVES, _ASCII_HALVES = " ▄▀█", " .':"  # neither of two cells is visible, the lower, upper, both
_BOLD, _DIM = "1", "2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """What a picture is written on.

    Attributes:
        width, height: columns and lines that it has; a height of None is an endless roll.
        color: ANSI escape codes are understood.
        ascii: nothing but ASCII is.
    """

    width: int = 80
    height: int | None = None
    color: bool = False
    ascii: bool = False

    def paint(self, text: str, style: str) -> str:
        """The text in a style of ANSI codes, if there is color."""
        return f"\x1b[{style}m{text}\x1b[0m" if self.color and text.strip() else text

    def glyph(self, kind: Kind) -> str:
        """The character of a kind."""
        return kind.ascii if self.ascii else kind.glyph

    def label(self, text: str, width: int) -> str:
        """A label in exactly so many columns."""
        return fitted(self.spelled(text), width, "~" if self.ascii else "…")

    def spelled(self, text: str) -> str:
        """A label in characters that are understood."""
        return spelled(text, "ascii" if self.ascii else "utf-8")

    def has_room(self, columns: int, lines: int) -> bool:
        """Whether so many columns, and lines of cells, fit."""
        is_high_enough = self.height is None or lines <= self.height - _FRAME
        return columns <= min(self.width, MAX_WIDTH) and is_high_enough


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """How large the cells are.

    Attributes:
        separator: between the cells of a line.
        rows_a_line: 2 for half-blocks.
        label_width: of each row's label, 0 for none.
        block: queries and keys that a cell stands for.
    """

    separator: str = ""
    rows_a_line: int = 1
    label_width: int = 0
    block: tuple[int, int] = (1, 1)


def draw(rows: Sequence[MaskRow], paper: Paper) -> str:
    """The rows of a batch, one below the other, and the legend of what they show."""
    form = _choose_form(rows, paper)
    lines: list[str] = []
    shown: set[Kind] = set()
    for row in rows:
        lines += [paper.paint(row.title, _BOLD), *_picture(row, form, paper, shown)]
        lines += [str(row.counts())]
    lines += _legend(shown, form, paper)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _choose_form(rows: Sequence[MaskRow], paper: Paper) -> _Form:
    """The largest cells for which there is room."""
    layout = rows[0].layout
    queries, keys = len(layout.queries), len(layout.keys)
    number = len(str(layout.queries[-1])) + 1
    label = min(_longest_label(rows, paper), _MAX_LABEL)
    one, two = (label + 1, 2 * (label + 1)) if label else (0, 0)
    if paper.has_room(one + number + 2 * keys - 1, queries):
        return _Form(separator=" ", label_width=label)
    if paper.has_room(one + number + keys, queries):
        return _Form(label_width=label)
    if paper.color or rows[0].weights is None:  # levels of a weight differ only by color
        if paper.has_room(two + number + keys, ceil(queries / 2)):
            return _Form(rows_a_line=2, label_width=label)
        if paper.has_room(number + keys, ceil(queries / 2)):
            return _Form(rows_a_line=2)
    return _Form(block=_block(queries, keys, min(paper.width, MAX_WIDTH) - number, paper.height))


def _longest_label(rows: Sequence[MaskRow], paper: Paper) -> int:
    labels = {row.label(query) for row in rows if row.labels for query in row.layout.queries}
    return max((text_width(paper.spelled(label)) for label in labels), default=0)


def _block(queries: int, keys: int, columns: int, height: int | None) -> tuple[int, int]:
    """The smallest block whose cells fit; as characters are, twice as high as wide."""
    across = ceil(keys / max(columns, 1))
    if height is not None:
        across = max(across, ceil(queries / (2 * max(height - _FRAME, 1))))
    return min(2 * across, queries), across


def _picture(row: MaskRow, form: _Form, paper: Paper, shown: set[Kind]) -> Iterable[str]:
    """The numbers of the columns, then the lines of cells; the kinds in them are added to shown."""
    grid = row.grid() if form.block == (1, 1) else row.density(form.block)
    shown.update(*grid.cells)
    number_width = len(str(grid.queries[-1]))
    label_width = form.label_width and form.rows_a_line * (form.label_width + 1)
    for numbers in _numbers(grid.keys, 1 + len(form.separator)):
        yield paper.paint(" " * (label_width + number_width + 1) + numbers, _DIM)
    for first in range(0, len(grid.cells), form.rows_a_line):
        queries = grid.queries[first : first + form.rows_a_line]
        names = [*map(row.label, queries), ""][: form.rows_a_line]
        labels = [paper.label(name, form.label_width) + " " for name in names]
        beside = "".join(labels) if form.label_width else ""
        number = paper.paint(f"{queries[0]:>{number_width}}", _DIM)
        cells = grid.cells[first : first + form.rows_a_line]
        line = _cells if form.rows_a_line == 1 else _halves
        yield f"{beside}{number} {line(cells, form, paper)}"


def _numbers(keys: range, width: int) -> Iterable[str]:
    """Every tenth number in full, and below it the last digit of each, where it differs."""
    single = keys.step == 1
    every = 20 if len(str(keys[-1])) > 8 else 10
    line = ""
    for index in range(0, len(keys), every):
        number = str(keys[index])
        if index * width + len(number) <= len(keys) * width:
            line = line.ljust(index * width) + number
    if len(keys) > 10 or not single:
        yield line
    if single:
        yield (" " * (width - 1)).join(str(key % 10) for key in keys)


def _cells(cells: Sequence[Sequence[Kind]], form: _Form, paper: Paper) -> str:
    return form.separator.join(
        paper.paint(form.separator.join(paper.glyph(kind) for _ in run), f"38;5;{kind.color}")
        for kind, run in groupby(cells[0])
    )


def _halves(cells: Sequence[Sequence[Kind]], form: _Form, paper: Paper) -> str:
    """Two rows of cells in one line; the second is missing at the end of an odd number."""
    upper, lower = cells[0], cells[1] if len(cells) > 1 else [Kind.NONE] * len(cells[0])
    pairs = groupby(zip(upper, lower, strict=True))
    return "".join(_half(*pair, sum(1 for _ in run), paper) for pair, run in pairs)


def _half(upper: Kind, lower: Kind, count: int, paper: Paper) -> str:
    glyphs = _ASCII_HALVES if paper.ascii else _HALVES
    glyph = glyphs[2 * upper.is_visible + lower.is_visible]
    style = f"38;5;{(upper if upper.is_visible else lower).color}"
    if upper.is_visible and lower.is_visible and upper != lower and paper.color and not paper.ascii:
        glyph, style = "▀", f"{style};48;5;{lower.color}"
    return paper.paint(glyph * count, style)


def _legend(shown: set[Kind], form: _Form, paper: Paper) -> Iterable[str]:
    """What the glyphs mean, in lines that fit."""
    line, width = "", 0
    for glyph, kind, text in _entries(shown, form, paper):
        entry = f"{glyph} {text}" if glyph else text
        if width and width + 2 + len(entry) > paper.width:
            yield line
            line, width = "", 0
        gap = "  " if width else ""
        line += gap + paper.paint(glyph, f"38;5;{kind.color}") + entry.removeprefix(glyph)
        width += len(gap) + len(entry)
    yield line


def _entries(shown: set[Kind], form: _Form, paper: Paper) -> Iterable[tuple[str, Kind, str]]:
    """Glyph, its color's kind and meaning."""
    if form.rows_a_line == 1:
        for kind in explained(shown):
            yield paper.glyph(kind).replace(" ", "' '"), kind, kind.meaning
    else:
        seen = [kind for kind in explained(shown) if kind.is_visible]
        both = (_ASCII_HALVES if paper.ascii else _HALVES)[3]
        for kind in seen if paper.color else [Kind.VISIBLE]:
            yield both, kind, kind.meaning
        yield "", Kind.HIDDEN, "(two rows a line, blank is hidden)"
    if form.block != (1, 1):
        what = "largest weight" if shown & {*WEIGHTS} else "visible share"
        size = f"{form.block[0]:,} by {form.block[1]:,}"
        yield "", Kind.HIDDEN, f"(density: a character is the {what} of {size} pairs)"
