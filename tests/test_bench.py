"""The command: what it writes where, and what it refuses."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from signal import SIGINT
from typing import Any

import pytest
import torch

from llamacli.benchmark import session
from llamacli.benchmark.roofs import Roofs
from llamacli.cli import bench_options
from tests.command_line import Done, here, refused, start
from tests.test_bench_report import table
from tests.tiny import write_model

SMALL = ("-p", "4", "-n", "2", "-r", "2", "-q")


@pytest.fixture(autouse=True)
def _quick_roofs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(session, "roofs", lambda *_: Roofs(1e10, 1e12))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "tiny"
    write_model(folder, hidden_size=64, intermediate_size=64)
    return folder


def bench(*args: object, **variables: str) -> Done:
    return here("bench", *args, **variables)


def report(*args: object) -> dict[str, Any]:
    done = bench(*args, "-o", "json")
    assert (done.code, done.err) == (0, "")
    return dict(json.loads(done.out))


def test_the_table_alone_is_on_stdout_and_progress_on_stderr(model: Path) -> None:
    done = bench(model, "-p", "4", "-n", "2", "-r", "2")
    assert done.code == 0
    text = done.out.decode()
    assert [line[0] for line in table(text)[2:]] == ["pp4", "tg2"]
    assert "tokenizing and sampling are not counted" in text
    phases = [line.rpartition(": ")[2] for line in done.err.splitlines()]
    assert phases == [
        "loading the weights …",
        "how fast this machine reads and multiplies …",
        "round 1 of 2 …",
        "round 2 of 2 …",
    ]


def test_every_combination_is_measured(model: Path) -> None:
    found = report(model, *SMALL, "-d", "0,8", "-b", "1-2", "-t", "1,2", "--quantize", "none,int8")
    rows = [(row["weights"], row["threads"], row["test"]) for row in found["rows"]]
    tests = [
        f"{test}{depth}{batch}"
        for batch in ("", " b2")
        for depth in ("", " @ d8")
        for test in ("pp4", "tg2")
    ]
    assert rows == [
        (weights, threads, test)
        for weights in ("float32", "int8")
        for threads in (1, 2)
        for test in tests
    ]
    assert found["machine"]["cores"] > 0
    assert all(len(row["samples"]) == 2 for row in found["rows"])


def test_shapes_models_and_both_together(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 64}  # fmt: skip
    monkeypatch.setitem(bench_options.shape.__globals__["_SHAPES"], "llama-2-7b", tiny)
    found = report(model, *SMALL, "--shape", "llama-2-7b", "--pg", "3,2", "--quantize", "int4")
    rows = [(row["model"], row["weights"], row["test"]) for row in found["rows"]]
    assert rows[2:4] == [("llama-2-7b", "int4", "pp3+tg2"), (str(model), "int4", "pp4")]
    assert {row["device"] for row in found["rows"]} == {"cpu"}


def test_without_a_model_it_is_the_demo() -> None:
    done = bench("-p", "0", "-n", "1", "-r", "1", "-o", "csv")
    (row,) = csv.DictReader(io.StringIO(done.out.decode()))
    assert (row["model"], row["test"], row["threads"]) == ("demo", "tg1", "1")
    assert done.err.startswith("llamacli: note: using the small demo model")


def test_json_lines_come_one_by_one(model: Path) -> None:
    rows = bench(model, *SMALL, "-o", "jsonl").records
    assert [row["test"] for row in rows] == ["pp4", "tg2"]


def test_a_comparison_has_a_verdict_and_may_fail(model: Path, tmp_path: Path) -> None:
    old, fast = tmp_path / "old.json", report(model, *SMALL)
    old.write_text(json.dumps(fast))
    rows = report(model, *SMALL, "--compare", old)["rows"]
    assert {row["change"]["verdict"] for row in rows} <= {"same", "faster", "slower"}
    for row in fast["rows"]:
        row["samples"] = [1e12, 1.1e12]
        row["taken_by_others"] = 0.0
    old.write_text(json.dumps(fast))
    done = bench(model, *SMALL, "--compare", old, "--fail-under", 0.95)
    assert done.code == 9
    changes = [line[-1] for line in table(done.out.decode())[2:]]
    assert all(re.fullmatch(r"-100\.0% \(±\d+%\) slower", each) for each in changes)
    assert done.err == "llamacli: error: slower than 0.95 of the earlier report: pp4, tg2\n"
    done = bench(model, "-n", "3", "-p", "0", "-r", "1", "-q", "--compare", old, "--fail-under", 1)
    assert done.code == 2
    assert "has none of these tests" in done.err


def test_a_plot_is_a_file_and_a_line_of_blocks(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    done = bench(model, "-p", "0", "-n", "2", "-r", "2", "-d", "0,8", "--plot", path)
    assert done.code == 0
    assert ElementTree.fromstring(path.read_text()).tag.endswith("svg")
    assert "tokens per second over depth:" in done.err
    assert "  0: " in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "words", "code"),
    [
        (["-r", "0"], ["'--repetitions'", "1"], 2),
        (["-p", "-1"], ["--n-prompt must be numbers of 0 … 1,000,000", "'-1'"], 2),
        (["-n", "x"], ["--n-gen"], 2),
        (["-d", "1-2-3"], ["--n-depth"], 2),
        (["-b", "0"], ["--batch-size must be numbers of 1"], 2),
        (["-p", "0", "-n", "0"], ["nothing to measure"], 2),
        (["--pg", "1"], ["--pg must be P,N"], 2),
        (["--quantize", "int2"], ["--quantize must be of none, int4 and int8"], 2),
        (["--shape", "gpt-2"], ["--shape must be one of"], 2),
        (["--versus", "vllm"], ["--versus must be"], 2),
        (["--versus", "llama.cpp=/none/a,/none/b"], ["llama.cpp needs /none/a"], 6),
        (["--fail-under", "0.9"], ["--compare OLD.json"], 2),
        (["--compare", "/none/old.json"], ["/none/old.json does not exist"], 6),
        (["--plot", "a.png"], ["must end in .svg"], 2),
        (["--plot", "/none/a.svg"], ["the folder /none does not exist"], 7),
        (["-d", "60"], ["a test needs 572 tokens, the context of", "is 64"], 2),
        (["-p", "4", "-n", "0", "--device", "tpu"], ["device must be one of"], 2),
    ],
)
def test_fault_126_what_cannot_be_measured_is_refused_first(
    args: list[str], words: list[str], code: int, model: Path
) -> None:
    refused(bench(model, "-q", *args), *words, code=code)


def test_fault_126_deviation_and_samples_are_reported(model: Path) -> None:
    (row,) = report(model, "-p", "0", "-n", "1", "-r", "3", "-q")["rows"]
    assert len(row["samples"]) == 3
    assert row["stddev"] >= 0


def test_fault_124_threads_are_at_least_one_and_at_most_the_machine_s(model: Path) -> None:
    for command in ("bench", "run"):
        refused(here(command, "-t", "0", stdin=b"a"), "--threads", code=2)
    done = bench(model, "-p", "0", "-n", "1", "-r", "1", "-t", "10000,20000", "-o", "jsonl")
    (row,) = done.records
    assert row["threads"] <= 10000
    assert "note: 10000 threads are more than this machine runs at once" in done.err
    done = here("run", "-m", model, "-t", "10000", "-n", "1", "a")
    assert done.code == 0
    assert "note: 10000 threads are more" in done.err


def test_ctrl_c_prints_the_rows_that_are_finished(model: Path) -> None:
    tests = ("-p", "0", "-n", "1-40", "-r", "200", "-t", "1")
    with start("bench", model, *tests) as process:
        assert process.stderr is not None
        while b"round 2 " not in process.stderr.readline():
            pass
        process.send_signal(SIGINT)
        out, _ = process.communicate()
    assert process.returncode == 130
    assert table(out.decode())[2][0] == "tg1"
