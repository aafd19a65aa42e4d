"""What a task is done on: lines of text, JSON objects or rows of CSV, a record each."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llamacli.cli.choices import InputFormat, Task
from llamacli.cli.console import Terminal
from llamacli.cli.prompt_sources import PromptRecord, Records, collect_prompts, json_object
from llamacli.cli.run_options import RunOptions
from llamacli.errors import RequestError, printable


class TaskRecord(NamedTuple):
    """One input, and the record that it came in."""

    source: PromptRecord
    inputs: Any  # what the task's pipeline takes


def collect_records(terminal: Terminal, options: RunOptions) -> list[TaskRecord]:
    """Every input, in order.

    Raises:
        RequestError: an input that is malformed, or lacks a text that the task needs.
        LlamacliError: as `collect_prompts`.
    """
    from_csv = options.format is InputFormat.CSV or (
        options.format is None and options.prompt_file and options.prompt_file.suffix == ".csv"
    )
    records = Records.WHOLE if from_csv else Records.LINES_OR_WHOLE
    found = collect_prompts(terminal, options.prompt or (), options.prompt_file, records)
    if from_csv:
        return [_picked(source, row, options) for source, row in _csv_rows(found[0].prompt or "")]
    lines = [(source, source.prompt or "") for source in found]
    if options.format is InputFormat.JSON or (
        options.format is None and all(text.lstrip().startswith("{") for _, text in lines)
    ):
        return [_json_record(source, text, options) for source, text in lines]
    if options.task is Task.QUESTION_ANSWERING:
        hint = '{"question": "…", "context": "…"}'
        raise RequestError("question-answering takes JSON objects or CSV", hint=hint)
    return [TaskRecord(source, text) for source, text in lines]


def _csv_rows(text: str) -> list[tuple[PromptRecord, Mapping[str, object]]]:
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as problem:
        raise RequestError(f"the input is not valid CSV: {printable(problem)}") from problem
    if not rows:
        raise RequestError("the input has no rows below its line of names")
    return [
        (PromptRecord(where=f"row {n}", id=row.get("id")), row) for n, row in enumerate(rows, 1)
    ]


def _json_record(source: PromptRecord, text: str, options: RunOptions) -> TaskRecord:
    values = json_object(text, source.where or "the input")
    named = PromptRecord(where=source.where, id=values.get("id"))
    return _picked(named, values, options)


def _picked(source: PromptRecord, values: Mapping[str, object], options: RunOptions) -> TaskRecord:
    """The texts that the task takes, each from its column; what else there is stays aside."""
    questions = options.task is Task.QUESTION_ANSWERING
    columns = _columns(options.column, ("question", "context") if questions else ("text",))
    if options.task is Task.TEXT_CLASSIFICATION and "text_pair" in values:
        columns["text_pair"] = "text_pair"
    texts = {name: values.get(column) for name, column in columns.items()}
    for name, column in columns.items():
        if not isinstance(texts[name], str):
            where, shown = source.where or "the input", printable(repr(column))
            raise RequestError(f"{where} needs a text under {shown}")
    is_text = options.task is Task.TOKEN_CLASSIFICATION
    return TaskRecord(source, texts["text"] if is_text else texts)


def _columns(option: str | None, names: Sequence[str]) -> dict[str, str]:
    """Name → column: "a,b" gives them in order, "context=a,question=b" by name."""
    parts = (option or ",".join(names)).split(",")
    pairs = [
        part.split("=", 1) if "=" in part else [name, part]
        for name, part in zip(names, parts, strict=False)
    ]
    columns = dict(pairs)
    if len(parts) != len(names) or set(columns) != set(names):
        shown = printable(repr(option))
        raise RequestError(f"--column must name {' and '.join(names)}, got {shown}")
    return columns
