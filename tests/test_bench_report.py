"""Statistics by numbers worked out by hand, and the formats by reading them."""

import csv
import io
import json
from dataclasses import replace
from typing import Any

import pytest

from llamacli.benchmark.cases import Case
from llamacli.benchmark.record import Change, Row, Subject, Versus, percentiles, spread
from llamacli.benchmark.report import COUNTED, json_line, to_csv, to_json, to_markdown

SUBJECT = Subject(
    model="tiny",
    revision=None,
    weights="int4",
    dtype="bfloat16",
    parameters=1_100_000_000,
    model_bytes=700_000_000,
    device="cpu",
    device_name="A CPU",
    threads=2,
    kernels="avx512",
    torch="2.13",
    version="0.1",
    commit="abc",
    load_s=1.25,
    bandwidth=20e9,
    peak_flops=4e12,
    taken_by_others=0.0,
)


def row(seconds: list[float], *, subject: Subject = SUBJECT, **values: Any) -> Row:
    """A decode of 4 tokens a row; all steps of a repetition take as long."""
    case = Case(new_tokens=4, depth=values.pop("depth", 0), batch=values.pop("batch", 1))
    given = {
        "subject": subject,
        "case": case,
        "seconds": seconds,
        "prefill_s": (),
        "steps_s": [each / 4 for each in seconds for _ in range(4)],
        "step_bytes": 1e9,
        "prefill_flops": 0.0,
        "peak_memory_bytes": 900_000_000,
    }
    return Row(**given | values)


PREFILL = row(
    [0.25, 0.5],
    case=Case(prompt_tokens=8),
    prefill_s=[0.25, 0.5],
    steps_s=(),
    prefill_flops=3e11,
)


def test_speed_is_the_mean_of_the_samples_with_their_deviation() -> None:
    found = row([1.0, 2.0, 4.0]).to_dict()
    assert found["samples"] == [4, 2, 1]
    assert found["tokens_per_second"] == pytest.approx(7 / 3)
    assert found["stddev"] == pytest.approx((21 / 9) ** 0.5)  # (25 + 1 + 16) / 9 / 2
    assert found["percentiles"] == {"p10": 1.2, "p50": 2, "p90": 3.6, "p99": 3.96}
    assert found["step_s"]["p50"] == 0.5


def test_a_decode_step_reads_and_a_prompt_computes() -> None:
    decode, prefill = row([1.0, 3.0], batch=2).to_dict(), PREFILL.to_dict()
    assert decode["bytes_per_token"] == 5e8
    assert decode["bytes_per_second"] == 2e9  # 8 steps in 4 seconds
    assert decode["bandwidth_share"] == 0.1
    assert decode["flops_per_second"] is decode["time_to_first_token_s"] is None
    assert prefill["flops_per_second"] == 8e11
    assert prefill["peak_flops_share"] == 0.2
    assert prefill["time_to_first_token_s"] == 0.375
    assert prefill["bytes_per_second"] is prefill["bytes_per_token"] is None


def test_a_single_sample_has_no_deviation() -> None:
    assert spread([3.0]) == 0
    assert percentiles([3.0]) == {"p10": 3, "p50": 3, "p90": 3, "p99": 3}
    assert percentiles([]) is None


def test_every_row_says_what_ran() -> None:
    facts = {
        "model", "weights", "dtype", "parameters", "model_bytes", "device", "device_name",
        "threads", "kernels", "torch", "commit", "load_s", "peak_memory_bytes", "test", "samples",
    }  # fmt: skip
    assert facts <= PREFILL.to_dict().keys()


def test_json_is_one_object() -> None:
    found = json.loads(to_json([row([1.0]), PREFILL], {"cores": 2}))
    assert (found["schema_version"], found["machine"]) == (1, {"cores": 2})
    assert found["counted"] == COUNTED
    assert [each["test"] for each in found["rows"]] == ["tg4", "pp8"]
    assert found["rows"][0]["tokens_per_second"] == 4


def test_a_json_line_is_a_row() -> None:
    line = json_line(PREFILL)
    assert line.count("\n") == 1
    assert json.loads(line) == json.loads(json.dumps({"schema_version": 1} | PREFILL.to_dict()))


def test_csv_has_a_header_and_a_line_for_each_row() -> None:
    other = replace(SUBJECT, model='a "b", c')
    first, second = csv.DictReader(io.StringIO(to_csv([PREFILL, row([1.0], subject=other)])))
    assert (first["test"], first["model"], second["model"]) == ("pp8", "tiny", 'a "b", c')
    assert json.loads(first["samples"]) == [32, 16]
    assert (float(second["tokens_per_second"]), first["bytes_per_second"]) == (4, "")


def table(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(set(map(len, lines))) == 1, "columns are aligned"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_markdown_puts_what_all_rows_share_above_the_table() -> None:
    text = to_markdown([PREFILL, row([1.0, 3.0])])
    heading = text.partition("|")[0]
    for fact in ("llamacli 0.1 (abc)", "torch 2.13", "A CPU", "model tiny", "weights int4",
                 "size 0.70 GB", "parameters 1.10 B", "threads 2", "kernels avx512", "load 1.2 s",
                 "reads 20.0 GB/s", "multiplies 4,000 GFLOP/s",
                 "other programs took 0%", COUNTED):  # fmt: skip
        assert fact in heading
    header, rule, *cells = table(text)
    assert header == ["test", "tok/s", "of the roof", "TTFT", "memory"]
    assert set("".join(rule)) == {"-", ":"}
    assert cells == [
        ["pp8", "24.0 ± 11.3", "800 GFLOP/s (20%)", "375 ms", "0.90 GB"],
        ["tg4", "2.7 ± 1.9", "2.0 GB/s (10%)", "", "0.90 GB"],
    ]
    assert max(map(len, text.splitlines())) <= 80


def test_markdown_makes_a_column_of_what_differs() -> None:
    rows = [row([1.0], subject=replace(SUBJECT, threads=n, bandwidth=n * 1e10)) for n in (1, 2)]
    header, _, *cells = table(to_markdown(rows))
    assert header[:2] == ["threads", "test"]
    assert [line[0] for line in cells] == ["1", "2"]
    assert "reads 10.0 GB/s / 20.0 GB/s" in to_markdown(rows)
    assert [line[3] for line in cells] == ["4.0 GB/s (40%)", "4.0 GB/s (20%)"]


def test_markdown_shows_peers_and_changes() -> None:
    peer = Versus(peer="llama.cpp", about="b1", samples=[1.0, 3.0], ratios=[4.0, 2.0])
    header, _, cells = table(
        to_markdown([row([1.0], versus=[peer], change=Change(1.031, 0.08, "same"))])
    )
    assert header[-3:] == ["llama.cpp", "ratio", "change"]
    assert cells[-3:] == ["2.0 ± 1.4", "3.00 ± 1.41", "+3.1% (±8%) same"]


def test_a_hostile_name_cannot_act_on_a_terminal() -> None:
    assert "\x1b" not in to_markdown([row([1.0], subject=replace(SUBJECT, model="a\x1b[2Jb"))])
