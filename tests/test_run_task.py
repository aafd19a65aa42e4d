"""llamacli run --task, and the flags of `transformers run`."""

import json
from pathlib import Path
from typing import Any

import pytest

from llamacli.pipelines.factory import pipeline
from tests.command_line import Done, here, refused
from tests.test_pipelines import CONTEXT, HEADS, QUESTION, TEXT, write

EXAMPLE = {"question": QUESTION, "context": CONTEXT}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tasks")
    return {task: write(root / task, task) for task in HEADS}


@pytest.fixture
def classify(folders: dict[str, Path]) -> Any:
    def run(*args: object, task: str = "text-classification", stdin: bytes = b"") -> Done:
        return here("run", "--task", task, "-m", folders[task], *args, stdin=stdin)

    return run


def result(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a task found, without what stands around it."""
    around = ("schema_version", "index", "id")
    assert [record["schema_version"] for record in records] == [1] * len(records)
    assert [record["index"] for record in records] == list(range(len(records)))
    return [{k: v for k, v in record.items() if k not in around} for record in records]


def expected(folders: dict[str, Path], task: str, inputs: Any, **options: Any) -> Any:
    return pipeline(task, folders[task], device="cpu", **options)(inputs)


def test_each_line_of_text_has_a_label(classify: Any, folders: dict[str, Path]) -> None:
    texts = ["The sun", TEXT]
    done = classify(stdin="\n".join(texts).encode())
    assert done.err == ""
    assert result(done.records) == expected(folders, "text-classification", texts)
    assert result(classify("The sun").records) == result(done.records)[:1]


def test_json_lines_come_and_go_with_their_ids(classify: Any, folders: dict[str, Path]) -> None:
    inputs = [{"text": "sun"}, {"text": "sun", "text_pair": "moon"}]
    lines = [json.dumps(record | {"id": f"n{n}"}) for n, record in enumerate(inputs)]
    records = classify(stdin="\n".join(lines).encode()).records
    assert [record["id"] for record in records] == ["n0", "n1"]
    assert result(records) == expected(folders, "text-classification", inputs)
    named = [json.dumps({"review": "sun"})]
    for column in ("review", "text=review"):
        done = classify("--column", column, stdin="\n".join(named).encode())
        assert result(done.records) == result(records)[:1]


def test_entities_have_their_places(classify: Any, folders: dict[str, Path]) -> None:
    task = "token-classification"
    for options in ({}, {"aggregation_strategy": "simple"}):
        flags = [arg for k, v in options.items() for arg in ("--" + k.replace("_", "-"), v)]
        done = classify(*flags, task=task, stdin=json.dumps({"text": TEXT}).encode())
        assert result(done.records) == [{"entities": expected(folders, task, TEXT, **options)}]


def test_questions_are_answered_from_json_and_csv(
    classify: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    task = "question-answering"
    answer = expected(folders, task, EXAMPLE)
    done = classify(task=task, stdin=json.dumps(EXAMPLE).encode())
    assert result(done.records) == [answer]
    (tmp_path / "in.csv").write_text(f'id,q,c\n7,{QUESTION},"{CONTEXT}"\n')
    for column in ("q,c", "context=c,question=q"):
        args = ("--input", tmp_path / "in.csv", "--column", column)
        found = classify(*args, task=task).records
        assert (result(found), found[0]["id"]) == ([answer], "7")
    refused(classify("Who?", task=task), "JSON objects or CSV", '"question"')


def test_results_can_go_to_a_file(classify: Any, tmp_path: Path) -> None:
    shown = classify("The sun")
    path = tmp_path / "out.jsonl"
    written = classify("The sun", "--output", path, "--format", "pipe")
    assert (written.code, written.out, written.err) == (0, b"", "")
    assert path.read_bytes() == shown.out
    failed = classify("--output", path, stdin=b'{"text": "sun"}\n{"text": 5}')
    refused(failed, "line 2 of stdin needs a text under 'text'")
    assert path.read_bytes() == shown.out


@pytest.mark.parametrize(
    ("args", "stdin", "words"),
    [
        (["--format", "json"], b"sun", ["line 1 of stdin is not valid JSON"]),
        (["--format", "csv"], b"text", ["no rows"]),
        (["--format", "csv"], b'text\n"a', ["not valid CSV"]),
        (["--column", "a,b"], b'{"a": "b"}', ["--column must name text"]),
        ([], b'{"text": null}', ["needs a text under 'text'"]),
        ([], b"sun " * 300, ["line 1 of stdin: the text has", "takes 1 to 256"]),
        (["--temperature", "1"], b"sun", ["--temperature has no effect with --task text-c"]),
        (["--stats"], b"sun", ["--stats has no effect"]),
        (["--aggregation-strategy", "max"], b"sun", ["--aggregation-strategy has no effect"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(
    classify: Any, args: list[str], stdin: bytes, words: list[str]
) -> None:
    refused(classify(*args, stdin=stdin), *words)


def test_a_model_with_the_head_is_needed(folders: dict[str, Path]) -> None:
    refused(here("run", "--task", "token-classification", "sun"), "-m MODEL")
    other = folders["text-generation"]
    done = here("run", "--task", "text-classification", "-m", other, "sun")
    assert done.code == 3
    assert "the weights lack score.weight" in done.err


def test_the_flags_of_transformers_run_continue_a_text(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model, prompt = folders["text-generation"], tmp_path / "prompt.txt"
    prompt.write_text("The")
    flags = ("--task", "text-generation", "--model", model, "--raw", "-n", 3)
    done = here("run", *flags, "--input", prompt, "--device", -1)
    assert done.text == " moon sees river\n"
    refused(here("run", *flags, "--device", "99", stdin=b"The"), "no device cuda:99", code=8)
    refused(here("run", *flags, "--format", "csv", stdin=b"The"), "--format has no effect")
    assert (
        here("run", *flags, stdin=b"The", LLAMACLI_FORMAT="csv", LLAMACLI_OUTPUT="x").text
        == done.text
    )
