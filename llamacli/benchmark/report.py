"""Rows as Markdown, CSV, JSON or JSON lines."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from llamacli.benchmark.record import Row, Subject, spread
from llamacli.errors import printable

SCHEMA_VERSION = 1
COUNTED = "Tokens per second of the model alone; tokenizing and sampling are not counted."


def to_json(rows: Sequence[Row], machine: Mapping[str, Any]) -> str:
    """One object."""
    found = [row.to_dict() for row in rows]
    report = {"schema_version": SCHEMA_VERSION, "counted": COUNTED, "machine": machine}
    return json.dumps(report | {"rows": found}, indent=2) + "\n"


def json_line(row: Row) -> str:
    """A row as a line."""
    return json.dumps({"schema_version": SCHEMA_VERSION} | row.to_dict()) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """A header, and a line for each row; what is no single value is JSON."""
    out = io.StringIO()
    found = [row.to_dict() for row in rows]
    writer = csv.DictWriter(out, list(found[0]), lineterminator="\n")
    writer.writeheader()
    for values in found:
        nested = {key: json.dumps(v) for key, v in values.items() if isinstance(v, list | dict)}
        writer.writerow(values | nested)
    return out.getvalue()


# ----------------------------------------------------------------------------------------------
# Markdown

Cell = Callable[[Row], str]

# What is the same in all rows stands above the table, the rest is a column, but for what would be
# too much there: its values are listed in the order of the rows.
_FACTS: Mapping[str, Callable[[Subject], str]] = {
    "model": lambda s: printable(s.model),
    "parameters": lambda s: f"{s.parameters / 1e9:.2f} B",
    "weights": lambda s: s.weights,
    "size": lambda s: f"{s.model_bytes / 1e9:.2f} GB",
    "dtype": lambda s: s.dtype,
    "device": lambda s: s.device,
    "threads": lambda s: str(s.threads),
    "tp": lambda s: str(s.tp),
    "kernels": lambda s: s.kernels,
    "load": lambda s: f"{s.load_s:.1f} s",
    "reads": lambda s: f"{s.bandwidth / 1e9:.1f} GB/s",
    "multiplies": lambda s: f"{s.peak_flops / 1e9:,.0f} GFLOP/s",
    "other programs took": lambda s: f"{s.taken_by_others:.0%}",
}
_LISTED = ("parameters", "size", "load", "reads", "multiplies", "other programs took")


def to_markdown(rows: Sequence[Row]) -> str:
    """The table of at least one row, aligned, with what all rows share above it."""
    facts = {title: [cell(row.subject) for row in rows] for title, cell in _FACTS.items()}
    if all(row.subject.tp == 1 for row in rows):
        del facts["tp"]
    columns = {
        title: cells
        for title, cells in facts.items()
        if len(set(cells)) > 1 and title not in _LISTED
    }
    above = {
        title: " / ".join(dict.fromkeys(cells))
        for title, cells in facts.items()
        if title not in columns
    }
    columns |= {title: [cell(row) for row in rows] for title, cell in _columns(rows).items()}
    return f"{_heading(rows[0].subject, above)}\n\n{_table(columns)}"


def _columns(rows: Sequence[Row]) -> dict[str, Cell]:
    found: dict[str, Cell] = {
        "test": lambda row: row.case.test,
        "tok/s": lambda row: with_spread(row.tokens_per_second, spread(row.samples)),
    }
    found["of the roof"] = _share
    if any(row.efficiency is not None for row in rows):
        found["efficiency"] = _efficiency
    if not rows[0].versus and rows[0].change is None:  # what would not fit beside these
        if any(row.prefill_s for row in rows):
            found["TTFT"] = _first_token
        found["memory"] = lambda row: f"{row.peak_memory_bytes / 1e9:.2f} GB"
    for number, other in enumerate(rows[0].versus):
        found[printable(other.peer)] = lambda row, n=number: with_spread(  # type: ignore[misc]
            fmean(row.versus[n].samples), spread(row.versus[n].samples)
        )
        found["ratio" + " " * number] = lambda row, n=number: with_spread(  # type: ignore[misc]
            fmean(row.versus[n].ratios), spread(row.versus[n].ratios), 2
        )
    if rows[0].change is not None:
        found["change"] = lambda row: str(row.change)
    return found


def with_spread(mean: float, deviation: float, digits: int = 1) -> str:
    """Mean ± standard deviation."""
    return f"{mean:,.{digits}f} ± {deviation:.{digits}f}"


def _share(row: Row) -> str:
    """What decode steps read, else what prompts compute, and how much of the roof that is."""
    if (speed := row.bytes_per_second) is not None:
        return f"{speed / 1e9:.1f} GB/s ({speed / row.subject.bandwidth:.0%})"
    flops = row.flops_per_second or 0.0
    return f"{flops / 1e9:,.0f} GFLOP/s ({flops / row.subject.peak_flops:.0%})"


def _efficiency(row: Row) -> str:
    return "" if row.efficiency is None else f"{row.efficiency:.0%}"


def _first_token(row: Row) -> str:
    return f"{fmean(row.prefill_s) * 1000:,.0f} ms" if row.prefill_s else ""


def _heading(subject: Subject, facts: Mapping[str, str]) -> str:
    build = f" ({subject.commit})" if subject.commit else ""
    program = f"llamacli {subject.version}{build}, torch {subject.torch}, {subject.device_name}"
    lines = [program]
    line = ""
    for title, text in facts.items():
        fact = f"{title} {text}"
        if line and len(line) + len(fact) > 76:
            lines.append(line)
            line = ""
        line = f"{line}, {fact}" if line else fact
    return "  \n".join([*lines, line, COUNTED])


def _table(columns: Mapping[str, Sequence[str]]) -> str:
    """Numbers, which all columns hold from "test" on, stand to the right."""
    widths = [max(map(len, (title, *cells))) for title, cells in columns.items()]
    left = [*columns].index("test") + 1

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |\n"

    rules = [
        "-" * width if place < left else "-" * (width - 1) + ":"
        for place, width in enumerate(widths)
    ]
    body = "".join(map(line, zip(*columns.values(), strict=True)))
    return line([*columns]) + line(rules) + body
