"""The picture of a mask as shapes on a plane, in pixels: what an SVG file and a PNG file draw."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import ceil
from typing import Literal

from llamacli.mask_view.kinds import WEIGHTS, Kind, explained
from llamacli.mask_view.labels import Charset, fitted, spelled, text_width
from llamacli.mask_view.rows import Grid, MaskRow

Polygon = Sequence[tuple[float, float]]
Anchor = Literal["start", "middle", "end"]

MAX_SIDE = 256  # cells; of more tokens the density is drawn
_WIDTH = 880  # of the cells, about
_MARGIN, _LINE, _GAP = 16, 20, 6
_FONT_SIZE, _CHAR = 12, 7.25  # the width of a character of a monospaced font of that size
_MAX_LABEL = 24
_MAX_HOVERS = 1024
_INK, _FAINT, _PAPER = "#1a1a1a", "#6b6b6b", "#ffffff"


@dataclass(frozen=True, slots=True)
class Area:
    """Polygons of one color."""

    color: str
    polygons: Sequence[Polygon]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A line of text; (x, y) is on its baseline, at the anchor. Vertical text reads upwards."""

    x: float
    y: float
    text: str
    color: str = _INK
    size: int = _FONT_SIZE
    anchor: Anchor = "start"
    vertical: bool = False
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Hover:
    """A square that tells something where the mouse rests on it."""

    x: float
    y: float
    side: float
    text: str


@dataclass(slots=True)
class Drawing:
    """Shapes, later ones above earlier ones."""

    title: str
    width: int = 0
    height: int = _MARGIN
    shapes: list[Area | Text | Hover] = field(default_factory=list)

    def write(self, x: float, text: str, bold: bool = False) -> None:
        """Add a line of text below everything."""
        self.height += _LINE
        self.shapes.append(Text(x=x, y=self.height - 6, text=text, bold=bold))
        self.reach(x + text_width(text) * _CHAR)

    def reach(self, x: float) -> None:
        """Be at least so wide, and a margin."""
        self.width = max(self.width, ceil(x) + _MARGIN)


def _box(x: float, y: float, width: float, height: float) -> Polygon:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


_RISING = [(0.2, 0.7), (0.7, 0.2), (0.8, 0.3), (0.3, 0.8)]
_FALLING = [(x, 1 - y) for x, y in reversed(_RISING)]  # turns the same way: no hole in the ×
# In a cell of side 1: what tells a kind apart without color.
MARKS: dict[Kind, tuple[str, list[Polygon]]] = {
    Kind.SELF: (_PAPER, [[(0.5, 0.18), (0.82, 0.5), (0.5, 0.82), (0.18, 0.5)]]),
    Kind.CACHED: (_PAPER, [_box(0.32, 0.32, 0.36, 0.36)]),
    Kind.AHEAD: (_PAPER, [[(0.5, 0.22), (0.8, 0.76), (0.2, 0.76)]]),
    Kind.IGNORED: (_PAPER, [_box(0.2, 0.2, 0.6, 0.6)]),
    Kind.HIDDEN: ("#a8a8a8", [_box(0.43, 0.43, 0.14, 0.14)]),
    Kind.WINDOW: ("#c4763f", [_RISING]),
    Kind.DOCUMENT: ("#ad6f95", [_RISING, _FALLING]),
    Kind.PADDING: ("#8c8c8c", [_box(0.2, 0.3, 0.6, 0.1), _box(0.2, 0.6, 0.6, 0.1)]),
    Kind.EMPTY: (
        "#a8a8a8",
        [
            _box(0.2, 0.2, 0.6, 0.08),
            _box(0.2, 0.72, 0.6, 0.08),
            _box(0.2, 0.2, 0.08, 0.6),
            _box(0.72, 0.2, 0.08, 0.6),
        ],
    ),
}


def draw(rows: Sequence[MaskRow], charset: Charset = "utf-8") -> Drawing:
    """The rows of a batch one below the other, and the legend of what they show.

    What the labels hold outside the character set is escaped.
    """
    drawing = Drawing(title="; ".join(row.title for row in rows))
    shown: set[Kind] = set()
    layout = rows[0].layout
    side = ceil(max(len(layout.queries), len(layout.keys)) / MAX_SIDE)
    for row in rows:
        grid = row.grid() if side == 1 else row.density((side, side))
        shown.update(*grid.cells)
        drawing.write(_MARGIN, row.title, bold=True)
        _Plot(drawing, row, grid, charset).draw()
        drawing.write(_MARGIN, str(row.counts()))
        drawing.height += 2 * _GAP
    if side > 1:
        what = "largest weight" if rows[0].weights else "visible share"
        drawing.write(_MARGIN, f"density: a cell is the {what} of {side:,} by {side:,} pairs")
    _draw_legend(drawing, shown)
    drawing.height += _MARGIN
    return drawing


class _Plot:
    """The cells of one row, with labels and numbers around them."""

    def __init__(self, drawing: Drawing, row: MaskRow, grid: Grid, charset: Charset) -> None:
        self.charset = charset
        self.drawing, self.row, self.grid = drawing, row, grid
        self.columns, self.lines = len(grid.keys), len(grid.cells)
        self.side = max(3, min(24, _WIDTH // max(self.columns, self.lines)))
        self.is_pairs = grid.block == (1, 1)
        self.has_labels = self.is_pairs and bool(row.labels) and self.side >= 12
        labels = [*map(self.label, grid.keys)] if self.has_labels else [""]
        room = max(map(text_width, labels)) * _CHAR
        numbers = len(str(grid.queries[-1])) * _CHAR
        self.left = round(_MARGIN + room + numbers + 2 * _GAP)
        self.top = round(drawing.height + room + _LINE + _GAP)

    def label(self, position: int) -> str:
        """The label beside and above the cells."""
        text = spelled(self.row.label(position), self.charset)
        return fitted(text, _MAX_LABEL) if text_width(text) > _MAX_LABEL else text

    def draw(self) -> None:
        """Add everything to the drawing."""
        shapes = self.drawing.shapes
        shapes += self._areas()
        shapes += self._numbers()
        if self.has_labels:
            shapes += self._labels()
        if self.is_pairs and self.row.weights is not None and self.side >= 20:
            shapes += self._percents(self.row.weights)
        if self.is_pairs and self.lines * self.columns <= _MAX_HOVERS:
            shapes += self._hovers()
        self.drawing.height = self.top + self.lines * self.side + _GAP
        self.drawing.reach(self.left + self.columns * self.side)

    def _place(self, line: float, column: float) -> tuple[float, float]:
        return self.left + column * self.side, self.top + line * self.side

    def _cells(self) -> Iterator[tuple[int, int, Kind]]:
        for line, cells in enumerate(self.grid.cells):
            for column, kind in enumerate(cells):
                yield line, column, kind

    def _areas(self) -> Iterator[Area]:
        """A rectangle for each run of a kind, lines between the cells, and marks in them."""
        runs: dict[Kind, list[Polygon]] = {}
        for line, cells in enumerate(self.grid.cells):
            column = 0
            for kind, run in groupby(cells):
                count = sum(1 for _ in run)
                box = _box(*self._place(line, column), count * self.side, self.side)
                runs.setdefault(kind, []).append(box)
                column += count
        for kind in sorted(runs, key=[*Kind].index):
            yield Area(kind.fill, runs[kind])
        if self.side >= 8:
            yield Area(_PAPER, [*self._grid_lines()])
            yield from self._marks()

    def _grid_lines(self) -> Iterator[Polygon]:
        width, height = self.columns * self.side, self.lines * self.side
        for line in range(1, self.lines):
            yield _box(*self._place(line, 0), width, 1)
        for column in range(1, self.columns):
            yield _box(*self._place(0, column), 1, height)

    def _marks(self) -> Iterator[Area]:
        for kind, (color, marks) in MARKS.items():
            places = [self._place(*place) for *place, found in self._cells() if found is kind]
            if places:
                yield Area(color, [p for place in places for p in _scaled(marks, place, self.side)])

    def _numbers(self) -> Iterator[Text]:
        """Of every row and column, or of every so many where they are small."""
        needed = (len(str(self.grid.keys[-1])) + 0.5) * _CHAR
        every = next((n for n in (1, 10, 20) if n * self.side >= needed), 50)
        for column in range(0, self.columns, every):
            x, y = self._place(0, column + 0.5)
            number = str(self.grid.keys[column])
            yield Text(x=x, y=y - _GAP, text=number, color=_FAINT, anchor="middle")
        for line in range(0, self.lines, every):
            x, y = self._place(line + 0.5, 0)
            number = str(self.grid.queries[line])
            yield Text(x=x - _GAP, y=y + 4, text=number, color=_FAINT, anchor="end")

    def _labels(self) -> Iterator[Text]:
        """Tokens before the numbers of rows and above those of columns."""
        before = len(str(self.grid.queries[-1])) * _CHAR + 2 * _GAP
        for line, query in enumerate(self.grid.queries):
            x, y = self._place(line + 0.5, 0)
            yield Text(x=x - before, y=y + 4, text=self.label(query), anchor="end")
        for column, key in enumerate(self.grid.keys):
            x, y = self._place(0, column + 0.5)
            yield Text(x=x + 4, y=y - _LINE, text=self.label(key), vertical=True)

    def _percents(self, weights: Sequence[Sequence[float]]) -> Iterator[Text]:
        for line, column, kind in self._cells():
            if kind in WEIGHTS:
                x, y = self._place(line + 0.5, column + 0.5)
                color = _PAPER if WEIGHTS.index(kind) >= 4 else _INK
                text = f"{100 * weights[line][column]:.0f}"
                yield Text(x=x, y=y + 3, text=text, size=9, color=color, anchor="middle")

    def _hovers(self) -> Iterator[Hover]:
        for line, column, kind in self._cells():
            query, key = self.grid.queries[line], self.grid.keys[column]
            pair = f"{query} {self.row.label(query)} → {key} {self.row.label(key)}"
            what = kind.meaning
            if self.row.weights is not None and kind in WEIGHTS:
                what = f"{self.row.weights[line][column]:.2%}"
            text = " ".join(f"{pair}: {what}".split())
            yield Hover(*self._place(line, column), self.side, text)


def _scaled(marks: Iterable[Polygon], place: tuple[float, float], side: float) -> Iterator[Polygon]:
    for mark in marks:
        yield [(round(place[0] + x * side, 1), round(place[1] + y * side, 1)) for x, y in mark]


def _draw_legend(drawing: Drawing, shown: set[Kind]) -> None:
    """A small cell and the words of each kind, in lines as wide as the drawing."""
    side, x = 14, float(_MARGIN)
    drawing.reach(480)
    drawing.height += _LINE
    for kind in explained(shown):
        needed = side + _GAP + text_width(kind.meaning) * _CHAR
        if x > _MARGIN and x + needed > drawing.width - _MARGIN:
            x, drawing.height = _MARGIN, drawing.height + _LINE
        y = drawing.height - side - 3
        drawing.shapes.append(Area("#a8a8a8", [_box(x - 1, y - 1, side + 2, side + 2)]))
        drawing.shapes.append(Area(kind.fill, [_box(x, y, side, side)]))
        color, marks = MARKS.get(kind, (_PAPER, []))
        drawing.shapes.append(Area(color, [*_scaled(marks, (x, y), side)]))
        drawing.shapes.append(Text(x=x + side + _GAP, y=y + 11, text=kind.meaning))
        x += needed + 2 * _GAP
