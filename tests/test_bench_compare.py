"""Verdicts on samples made by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llamacli.benchmark.compare import change, is_beyond_noise, read_report
from llamacli.benchmark.record import Change, Row
from llamacli.benchmark.report import to_json
from llamacli.errors import ArtifactError, NotFoundError
from tests.test_bench_report import SUBJECT, row


def at(*speeds: float) -> Row:
    return row([4 / speed for speed in speeds])


def verdict(new: Row, old: Row, folder: Path) -> Change:
    path = folder / "old.json"
    path.write_text(to_json([old], {}))
    return change(new, read_report(path))


# Welch's t of 10, 11, 12 against 13, 14, 15: 3 / sqrt(1/3 + 1/3) = 3.67, with 4 degrees of freedom,
# where 2.776 is the limit; against 12, 13, 14 it is 2.45.
def test_the_noise_is_that_of_welch() -> None:
    assert is_beyond_noise([10, 11, 12], [13, 14, 15])
    assert not is_beyond_noise([10, 11, 12], [12, 13, 14])
    assert is_beyond_noise([1, 1], [2, 2])
    assert not is_beyond_noise([1, 1], [1, 1])
    assert is_beyond_noise([10, 11] * 20, [11, 12] * 20)


@pytest.mark.parametrize(
    ("new", "old", "found"),
    [
        ((20, 22, 24), (10, 11, 12), "+100.0% faster"),
        ((10, 11, 12), (20, 22, 24), "-50.0% slower"),
        ((10, 11, 12), (12, 13, 14), "-15.4% same"),
        ((10,), (20, 22, 24), "-54.5% unknown"),
    ],
)
def test_a_verdict(
    new: tuple[float, ...], old: tuple[float, ...], found: str, tmp_path: Path
) -> None:
    assert str(verdict(at(*new), at(*old), tmp_path)) == found


def test_rows_are_the_same_only_if_they_measure_the_same(tmp_path: Path) -> None:
    other = replace(at(1, 2), subject=replace(SUBJECT, threads=1))
    assert verdict(at(1, 2), other, tmp_path) == Change(None, "new")


def test_only_what_noise_does_not_explain_is_under_a_limit() -> None:
    assert Change(0.9, "slower").is_under(0.95)
    assert Change(0.9, "unknown").is_under(0.95)
    assert not Change(0.9, "same").is_under(0.95)
    assert not Change(0.96, "slower").is_under(0.95)
    assert not Change(None, "new").is_under(0.95)


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"schema_version": 2, "rows": []},
        {"schema_version": 1},
        {"schema_version": 1, "rows": [{"test": "pp1"}]},
        {"schema_version": 1, "rows": "none"},
        json.loads(to_json([row([1.0])], {})) | {"rows": [row([1.0]).to_dict() | {"samples": []}]},
        json.loads(to_json([row([1.0])], {})) | {"rows": [row([1.0]).to_dict() | {"samples": [0]}]},
    ],
)
def test_what_is_no_report_is_refused(report: object, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(report))
    with pytest.raises(ArtifactError) as raised:
        read_report(path)
    assert raised.value.hint == "llamacli bench -o json > OLD.json writes one"


def test_a_report_that_is_missing_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_report(tmp_path / "old.json")
