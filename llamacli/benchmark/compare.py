"""Whether a row changed since an earlier report, or only its noise did."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from llamacli.benchmark.record import Change, Row
from llamacli.benchmark.report import SCHEMA_VERSION
from llamacli.errors import ArtifactError, printable
from llamacli.json_files import read_json_object

# What makes rows of two reports the same test.
_KEY = ("model", "weights", "dtype", "device", "threads", "test")

# Student's t for 95 %, both sides, by degrees of freedom 1, 2, …; beyond them 2 is near enough.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


Report = Mapping[tuple[Any, ...], Sequence[float]]


def read_report(path: Path) -> Report:
    """The samples of an earlier JSON report.

    Raises:
        ArtifactError: it is none.
        NotFoundError, LocalIOError: as `read_json_object`.
    """
    report: dict[str, Any] = read_json_object(path, error=ArtifactError)
    hint = "llamacli bench -o json > OLD.json writes one"
    if report.get("schema_version") != SCHEMA_VERSION:
        message = f"{printable(path)} is no report of llamacli bench (schema {SCHEMA_VERSION})"
        raise ArtifactError(message, hint=hint)
    try:
        found = {_key(row): [float(each) for each in row["samples"]] for row in report["rows"]}
        if not all(found.values()) or min(min(samples) for samples in found.values()) <= 0:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        message = f"the rows of {printable(path)} are not those of llamacli bench"
        raise ArtifactError(message, hint=hint) from None
    return found


def change(row: Row, old: Report) -> Change:
    """How a row differs from that of an earlier report."""
    before = old.get(_key(row.to_dict()))
    if before is None:
        return Change(None, "new")
    ratio = fmean(row.samples) / fmean(before)
    if len(before) < 2 or len(row.samples) < 2:
        return Change(ratio, "unknown")
    if not is_beyond_noise(row.samples, before):
        return Change(ratio, "same")
    return Change(ratio, "faster" if ratio > 1 else "slower")


def is_beyond_noise(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether means differ by more than chance explains in 19 of 20 cases: Welch's t-test.

    B. L. Welch, "The generalization of Student's problem", Biometrika 34, 1947.
    """
    errors = [variance(values) / len(values) for values in (one, other)]
    difference, error = abs(fmean(one) - fmean(other)), math.sqrt(sum(errors))
    if error == 0:
        return difference > 0
    counts = (len(one), len(other))
    freedom = sum(errors) ** 2 / sum(
        part**2 / (count - 1) for part, count in zip(errors, counts, strict=True)
    )
    degrees = max(1, math.floor(freedom))
    return difference > error * (_T[degrees - 1] if degrees <= len(_T) else 2.0)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return *(row[name] for name in _KEY), row.get("tp", 1)  # reports of before --tp lack it
