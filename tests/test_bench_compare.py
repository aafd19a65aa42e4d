"""Verdicts on samples made by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llamacli.benchmark.compare import change, interval, read_report
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


# Single samples of two runs, of which the variance is 1/121 of the mean squared, differ by t times
# the root of 2/121; three values each leave 4 degrees of freedom, where t is 2.776.
def test_a_run_is_one_observation_with_the_spread_of_its_samples() -> None:
    assert interval([10, 11, 12], [20, 22, 24]) == pytest.approx(2.776 * (2 / 121) ** 0.5)
    assert interval([1, 1], [2, 2]) == 0
    many = interval([10, 11, 12] * 20, [10, 11, 12] * 20)  # more samples do not narrow it
    assert many == pytest.approx(2 * (2 / 121 * 40 / 59) ** 0.5)


@pytest.mark.parametrize(
    ("new", "old", "found"),
    [
        ((20, 22, 24), (10, 11, 12), "+100.0% (±41%) faster"),
        ((10, 11, 12), (20, 22, 24), "-50.0% (±41%) slower"),
        ((10, 11, 12), (12, 13, 14), "-15.4% (±43%) same"),
        ((10.7, 10.7), (10, 10), "+7.0% (±5%) faster"),
        ((10.4, 10.4), (10, 10), "+4.0% (±5%) same"),
        ((10,), (20, 22, 24), "-54.5% unknown"),
    ],
)
def test_a_verdict(
    new: tuple[float, ...], old: tuple[float, ...], found: str, tmp_path: Path
) -> None:
    assert str(verdict(at(*new), at(*old), tmp_path)) == found


@pytest.mark.parametrize(
    ("values", "noise"),
    [
        ({"bandwidth": 16e9}, 0.3),
        ({"peak_flops": 5e12}, 0.05),  # decoding is no matter of these
        ({"taken_by_others": 0.4}, 0.45),
    ],
)
def test_what_changed_on_the_machine_is_noise(
    values: dict[str, float], noise: float, tmp_path: Path
) -> None:
    other = replace(at(10, 10), subject=replace(SUBJECT, **values))
    for new, old in ((at(14, 14), other), (other, at(14, 14))):
        assert verdict(new, old, tmp_path).noise == pytest.approx(noise)


def test_rows_are_the_same_only_if_they_measure_the_same(tmp_path: Path) -> None:
    other = replace(at(1, 2), subject=replace(SUBJECT, threads=1))
    assert verdict(at(1, 2), other, tmp_path) == Change(None, None, "new")


def test_only_what_noise_does_not_explain_is_under_a_limit() -> None:
    assert Change(0.9, 0.05, "slower").is_under(0.95)
    assert Change(0.9, None, "unknown").is_under(0.95)
    assert not Change(0.9, 0.05, "same").is_under(0.95)
    assert not Change(0.96, 0.05, "slower").is_under(0.95)
    assert not Change(None, None, "new").is_under(0.95)


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"schema_version": 2, "rows": []},
        {"schema_version": 1},
        {"schema_version": 1, "rows": [row([1.0]).to_dict() | {"bandwidth": 0}]},
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
