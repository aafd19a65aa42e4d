"""The picture of a mask as a file; the ending of its name says in which format."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamacli.atomic import atomic_write, check_writable
from llamacli.errors import RequestError, printable
from llamacli.mask_view.drawing import draw as draw_shapes
from llamacli.mask_view.labels import Charset
from llamacli.mask_view.png import check_pillow, png
from llamacli.mask_view.rows import MaskRow
from llamacli.mask_view.svg import html, svg
from llamacli.mask_view.text import MAX_WIDTH, Paper, draw

SCHEMA_VERSION = 1
MAX_PAIRS = 2**22  # in a file that holds each of them: 2,048 tokens

Facts = Mapping[str, Any]


def to_json(rows: Sequence[MaskRow], facts: Facts) -> str:
    """One JSON object in one line, as the README documents it."""
    _check_size(rows)
    legend: dict[str, str] = {}
    shown = []
    for row in rows:
        kinds, counts = row.kinds(), row.counts()
        legend |= {k.ascii: k.meaning for line in kinds for k in line}
        shown.append(
            {
                "title": row.title,
                "tokens": _tokens(row),
                "queries": [*row.layout.queries],
                "mask": [[int(kind.is_visible) for kind in line] for line in kinds],
                "cells": ["".join(kind.ascii for kind in line) for line in kinds],
                "weights": row.weights,
                "visible": counts.visible,
                "pairs": counts.pairs,
                "longest_reach": counts.reach,
            }
        )
    record = {"schema_version": SCHEMA_VERSION, **facts, "legend": legend, "rows": shown}
    return json.dumps(record, ensure_ascii=False) + "\n"


def _tokens(row: MaskRow) -> list[dict[str, Any]]:
    layout = row.layout
    return [
        {
            "position": position,
            "id": row.token_ids[position] if row.token_ids else None,
            "label": row.label(position),
            "padding": not layout.begin <= position < layout.end,
        }
        for position in range(layout.queries.stop)
    ]


def to_csv(rows: Sequence[MaskRow]) -> str:
    """A table with a line for each query and a column for each key: 1 and 0, or weights."""
    _check_size(rows)
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    for number, row in enumerate(rows):
        layout = row.layout
        if number == 0:  # other rows of a batch have other tokens, so there the keys are numbers
            names = [_name(row, key) if len(rows) == 1 else key for key in layout.keys]
            table.writerow(["row", "query", *names])
        values = row.weights or [[*map(int, line)] for line in row.mask()]
        for query, line in zip(layout.queries, values, strict=True):
            table.writerow([number, _name(row, query), *line])
    return file.getvalue()


def _name(row: MaskRow, position: int) -> str:
    return f"{position} {row.label(position)}".rstrip()


def _check_size(rows: Sequence[MaskRow]) -> None:
    layout = rows[0].layout
    pairs = len(rows) * len(layout.queries) * len(layout.keys)
    if pairs > MAX_PAIRS:
        what = f"JSON and CSV hold every pair: {pairs:,} are more than {MAX_PAIRS:,}"
        raise RequestError(what, hint="the other formats draw the density")


# Ending of a file's name → its bytes; a text in ASCII is spelled with escapes.
FORMATS: dict[str, Callable[[Sequence[MaskRow], Facts, Charset], bytes]] = {
    ".svg": lambda rows, facts, charset: svg(draw_shapes(rows, charset)).encode(),
    ".html": lambda rows, facts, charset: html(draw_shapes(rows, charset)).encode(),
    ".png": lambda rows, facts, charset: png(draw_shapes(rows, "ascii")),
    ".txt": lambda rows, facts, charset: draw(
        rows, Paper(width=MAX_WIDTH, ascii=charset == "ascii")
    ).encode(),
    ".csv": lambda rows, facts, charset: to_csv(rows).encode(),
    ".json": lambda rows, facts, charset: to_json(rows, facts).encode(),
}


def check_output(path: Path) -> None:
    """Before the work, not after it.

    Raises:
        RequestError: the ending is not one of FORMATS, or Pillow is missing.
        LocalIOError: there is no such folder, or a folder has this name.
    """
    if path.suffix.lower() not in FORMATS:
        known = ", ".join(FORMATS)
        raise RequestError(f"a picture's name ends with {known}, got {printable(path.name)}")
    if path.suffix.lower() == ".png":
        check_pillow()
    check_writable(path)


def save(path: Path, rows: Sequence[MaskRow], facts: Facts, charset: Charset = "utf-8") -> None:
    """Write the picture; the file appears when it is whole.

    Raises:
        RequestError: Pillow is missing, or the mask is too large for the format.
        LocalIOError: the disk refused.
    """
    data = FORMATS[path.suffix.lower()](rows, facts, charset)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
