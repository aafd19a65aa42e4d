"""Speed over depth, batch or threads: an SVG with error bars, and a line of blocks."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from llamacli.benchmark.record import Row, spread
from llamacli.errors import printable

_AXES: Mapping[str, Callable[[Row], int]] = {
    "depth": lambda row: row.case.depth,
    "batch": lambda row: row.case.batch,
    "threads": lambda row: row.subject.threads,
    "prompt": lambda row: row.case.prompt_tokens,
    "new tokens": lambda row: row.case.new_tokens,
}
_BLOCKS = "▁▂▃▄▅▆▇█"
# Okabe and Ito's colors, which color-blind readers can tell apart.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 400, 70, 20, 40, 50
_LINE_HEIGHT = 18


class Series(NamedTuple):
    """Rows that differ only in what the axis shows; `points` are (x, mean, deviation)."""

    name: str
    points: list[tuple[int, float, float]]


def axis_of(rows: Sequence[Row]) -> str:
    """The first of depth, batch, threads, … that differs between rows."""
    return next((name for name, of in _AXES.items() if len(set(map(of, rows))) > 1), "depth")


def series_of(rows: Sequence[Row], axis: str) -> list[Series]:
    """The rows as lines of a plot, in the order of the report."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for row in rows:
        point = (_AXES[axis](row), row.tokens_per_second, spread(row.samples))
        found.setdefault(_name(row, axis), []).append(point)
    return [Series(name, sorted(points)) for name, points in found.items()]


def _name(row: Row, axis: str) -> str:
    """Everything of a row but what the axis shows."""
    case, subject = row.case, row.subject
    kinds = {"pp": case.prompt_tokens, "tg": case.new_tokens}
    whole = axis in ("prompt", "new tokens")
    test = "+".join(kind if whole else f"{kind}{count}" for kind, count in kinds.items() if count)
    parts = [f"{printable(subject.model)} {subject.weights}", test]
    rest = {
        "depth": f"d{case.depth}" if case.depth else "",
        "batch": f"b{case.batch}" if case.batch > 1 else "",
    }
    rest["threads"] = f"{subject.threads} threads"
    return " ".join([*parts, *(text for name, text in rest.items() if text and name != axis)])


def sparkline(series: Series) -> str:
    """A block for each point, from 0 to the fastest, and the ends in numbers."""
    speeds = [speed for _, speed, _ in series.points]
    blocks = "".join(_BLOCKS[round(speed / max(speeds) * (len(_BLOCKS) - 1))] for speed in speeds)
    (first, begin, _), (last, end, _) = series.points[0], series.points[-1]
    return f"{series.name}  {blocks}  {first:,}: {begin:,.1f} … {last:,}: {end:,.1f} tok/s"


# ----------------------------------------------------------------------------------------------
# SVG


def to_svg(rows: Sequence[Row]) -> str:
    """The picture; points stand at equal distances, as their numbers mostly double."""
    axis = axis_of(rows)
    lines = series_of(rows, axis)
    ticks = sorted({x for line in lines for x, _, _ in line.points})
    top = _round_up(max(speed + error for line in lines for _, speed, error in line.points))
    height = _HEIGHT + _LINE_HEIGHT * len(lines)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"'
        f' width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(_LEFT, 24, f"tokens per second over {axis}, with standard deviation", "start"),
        *_frame(axis, ticks, top),
    ]
    for number, line in enumerate(lines):
        body += _drawn(number, line, ticks, top)
    return "\n".join([*body, "</svg>"]) + "\n"


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, …"""
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value:
        power /= 10
    return next(power * step for step in (1, 2, 5, 10, 20) if power * step >= value)


def _x(position: int, count: int) -> float:
    return _LEFT + (position + 0.5) * (_WIDTH - _LEFT - _RIGHT) / count


def _y(speed: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - speed / top * (_HEIGHT - _BOTTOM - _TOP)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(points: Sequence[tuple[float, float]], color: str) -> str:
    shown = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{shown}" stroke="{color}" fill="none"/>'


def _frame(axis: str, ticks: Sequence[int], top: float) -> list[str]:
    """Lines across with their speeds, and the numbers below."""
    found = []
    for speed in (top * step / 5 for step in range(6)):
        y = _y(speed, top)
        found.append(_line([(_LEFT, y), (_WIDTH - _RIGHT, y)], "#dddddd"))
        found.append(_text(_LEFT - 8, y + 4, f"{speed:,.10g}", "end"))
    below = _HEIGHT - _BOTTOM + 18
    found += [_text(_x(n, len(ticks)), below, f"{x:,}", "middle") for n, x in enumerate(ticks)]
    return [*found, _text(_WIDTH / 2, below + 18, axis, "middle")]


def _drawn(number: int, line: Series, ticks: Sequence[int], top: float) -> list[str]:
    """A line, its points with their error bars, and its entry of the legend."""
    color = _COLORS[number % len(_COLORS)]
    places = [(_x(ticks.index(x), len(ticks)), speed, error) for x, speed, error in line.points]
    found = [_line([(x, _y(speed, top)) for x, speed, _ in places], color)]
    for x, speed, error in places:
        low, high = _y(max(0, speed - error), top), _y(speed + error, top)
        whisker = f"M{x:.1f} {low:.1f}V{high:.1f}m-4 0h8M{x - 4:.1f} {low:.1f}h8"
        found.append(f'<path d="{whisker}" stroke="{color}" fill="none"/>')
        found.append(f'<circle cx="{x:.1f}" cy="{_y(speed, top):.1f}" r="4" fill="{color}"/>')
    y = _HEIGHT + _LINE_HEIGHT * number
    found.append(f'<rect x="{_LEFT}" y="{y - 10}" width="12" height="12" fill="{color}"/>')
    return [*found, _text(_LEFT + 18, y, line.name, "start")]
