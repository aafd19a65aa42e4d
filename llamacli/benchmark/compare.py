"""Whether a row changed since an earlier report, or only its noise did.

The samples of a run share its minute, its place in memory and its neighbors on the machine, so many
of them tell no more about the next run than one. A run counts as one observation, then, whose
spread is that of its samples; and what is known to have changed on the machine counts as noise.
"""

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


# Runs of one program on an idle machine differ by up to so much.
_LEAST_NOISE = 0.05
_ROOFS = {"new_tokens": "bandwidth", "prompt_tokens": "peak_flops"}  # count → what limits it

Report = Mapping[tuple[Any, ...], Mapping[str, Any]]


def read_report(path: Path) -> Report:
    """The rows of an earlier JSON report.

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
        found = {_key(row): row for row in report["rows"]}
        numbers = [
            [*row["samples"], *(row[roof] for roof in _ROOFS.values())] for row in found.values()
        ]
        taken = [row["taken_by_others"] for row in found.values()]
        if min(map(min, numbers), default=1) <= 0 or min(taken, default=0) < 0:
            raise ValueError
        if not all(row["samples"] for row in found.values()):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        message = f"the rows of {printable(path)} are not those of llamacli bench"
        raise ArtifactError(message, hint=hint) from None
    return found


def change(row: Row, old: Report) -> Change:
    """How a row differs from that of an earlier report."""
    now = row.to_dict()
    before = old.get(_key(now))
    if before is None:
        return Change(None, None, "new")
    ratio = fmean(now["samples"]) / fmean(before["samples"])
    if min(len(now["samples"]), len(before["samples"])) < 2:
        return Change(ratio, None, "unknown")
    noise = noise_of(now, before)
    if max(ratio, 1 / ratio) <= 1 + noise:
        return Change(ratio, noise, "same")
    return Change(ratio, noise, "faster" if ratio > 1 else "slower")


def noise_of(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The share of the speed by which two rows may differ where nothing was changed."""
    ratios = [float(one[roof] / other[roof]) for count, roof in _ROOFS.items() if one[count]]
    roofs = [max(ratio, 1 / ratio) - 1 for ratio in ratios]
    taken = max(float(each["taken_by_others"]) for each in (one, other))
    return _LEAST_NOISE + interval(one["samples"], other["samples"]) + taken + max(roofs)


def interval(one: Sequence[float], other: Sequence[float]) -> float:
    """Within which the relative difference of two single samples lies in 19 of 20 cases.

    Degrees of freedom by B. L. Welch, "The generalization of Student's problem", Biometrika 34,
    1947.
    """
    variances = [variance(values) / fmean(values) ** 2 for values in (one, other)]
    if not any(variances):
        return 0.0
    freedom = sum(variances) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(variances, (one, other), strict=True)
    )
    degrees = max(1, math.floor(freedom))
    return math.sqrt(sum(variances)) * (_T[degrees - 1] if degrees <= len(_T) else 2.0)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return *(row[name] for name in _KEY), row.get("tp", 1)  # reports of before --tp lack it
