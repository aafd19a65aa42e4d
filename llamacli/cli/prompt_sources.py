"""Where prompts come from: stdin, a file, arguments; one, or many records."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from llamacli.cli.console import MAX_INPUT_BYTES, Terminal
from llamacli.errors import LocalIOError, NotFoundError, RequestError, printable
from llamacli.request import Message, SamplingParams

_SAMPLING_KEYS = {f.name for f in fields(SamplingParams)} - {"logit_bias", "sequence_bias"}


class Records(StrEnum):
    """How the input is cut into prompts."""

    WHOLE = "whole"
    LINES = "lines"
    NUL = "nul"
    JSONL = "jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRecord:
    """One prompt as it was given.

    Attributes:
        where: names it in errors.
        prompt: the text, or None when `messages` is given.
        messages: turns of a chat.
        id: the record's own name, repeated in the result.
        overrides: sampling parameters of this record alone.
    """

    where: str
    prompt: str | None = None
    messages: Sequence[Message] | None = None
    id: object = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


def collect_prompts(
    terminal: Terminal, arguments: Sequence[str], prompt_file: Path | None, records: Records
) -> list[PromptRecord]:
    """Every prompt, in order. Nothing is read from a terminal.

    Stdin, file and arguments are joined in this order, by a newline; one newline at the end of
    each belongs to the pipe, not to the prompt. Of many records each is joined with the arguments.

    Raises:
        RequestError: no prompt, an empty one, or a malformed record.
        NotFoundError, LocalIOError: the prompt file cannot be read.
    """
    stdin = "" if terminal.stdin_is_tty else terminal.decode(terminal.read_stdin(), "stdin")
    parts = [stdin, _read_prompt_file(terminal, prompt_file)]
    text = "\n".join(_without_last_newline(part) for part in parts if part)
    ending = terminal.decode(os.fsencode(" ".join(arguments)), "the prompt argument")
    if records is Records.JSONL:
        if ending:
            raise RequestError("--jsonl takes its prompts from stdin or a file, not from arguments")
        found = [_json_record(line, number) for number, line in _numbered(text.split("\n"))]
    else:
        found = [
            PromptRecord(where=where, prompt="\n".join(filter(None, (chunk, ending))))
            for where, chunk in _chunks(text, records)
        ]
    for record in found:
        if record.prompt is not None and not record.prompt.strip():
            raise RequestError(f"{record.where} is empty")
    if not found:
        raise RequestError("there is no prompt")
    return found


def _read_prompt_file(terminal: Terminal, path: Path | None) -> str:
    if path is None:
        return ""
    shown = printable(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_INPUT_BYTES + 1)
    except FileNotFoundError:
        raise NotFoundError(f"there is no prompt file {shown}") from None
    except OSError as problem:
        raise LocalIOError(f"cannot read {shown}: {problem.strerror}") from problem
    if len(data) > MAX_INPUT_BYTES:
        raise RequestError(f"{shown} is larger than {MAX_INPUT_BYTES:,} bytes")
    return terminal.decode(data, shown)


def _without_last_newline(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def _chunks(text: str, records: Records) -> list[tuple[str, str]]:
    """(name, text) of each prompt."""
    if records is Records.WHOLE:
        return [("the prompt", text)]
    lines = text.split("\n") if records is Records.LINES else text.removesuffix("\0").split("\0")
    name = "line" if records is Records.LINES else "record"
    return [(f"{name} {n}", line.removesuffix("\r")) for n, line in enumerate(lines, 1)]


def _numbered(lines: Sequence[str]) -> list[tuple[int, str]]:
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _json_record(line: str, number: int) -> PromptRecord:
    """{"prompt": … or "messages": …, "id": …, and sampling parameters}."""
    where = f"line {number}"
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise RequestError(f"{where} is not valid JSON: {printable(problem)}") from None
    if not isinstance(values, dict):
        raise RequestError(f"{where} must be a JSON object, got {printable(line)}")
    prompt, messages = values.pop("prompt", None), values.pop("messages", None)
    if (prompt is None) == (messages is None):
        raise RequestError(f'{where} needs either "prompt" or "messages"')
    if prompt is not None and not isinstance(prompt, str):
        raise RequestError(f'{where}: "prompt" must be a string, got {printable(repr(prompt))}')
    name = values.pop("id", None)
    if unknown := values.keys() - _SAMPLING_KEYS:
        raise RequestError(f"{where} has an unknown key {printable(sorted(unknown)[0])!r}")
    return PromptRecord(where=where, prompt=prompt, messages=messages, id=name, overrides=values)
