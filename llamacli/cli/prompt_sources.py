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
from llamacli.json_files import parse_json
from llamacli.request import Message, SamplingParams

_SAMPLING_KEYS = {f.name for f in fields(SamplingParams)} - {"logit_bias", "sequence_bias"}
_STDIN = "-"  # as the name of a file, or as an argument


class Records(StrEnum):
    """How the input is cut into prompts; most values are the options that ask for it."""

    WHOLE = "whole"
    LINES = "lines"
    NULL = "null"
    JSONL = "jsonl"
    LINES_OR_WHOLE = "lines or whole"  # lines of stdin and the file; without any, the arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRecord:
    """One prompt as it was given.

    Attributes:
        where: names it among many; empty when there is only one.
        prompt: the text, or None when `messages` is given.
        messages: turns of a chat.
        id: the record's own name, repeated in the result.
        overrides: sampling parameters of this record alone.
    """

    where: str = ""
    prompt: str | None = None
    messages: Sequence[Message] | None = None
    id: object = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


def collect_prompts(
    terminal: Terminal,
    arguments: Sequence[str],
    prompt_file: Path | None,
    records: Records,
    *,
    required: bool = True,
) -> list[PromptRecord]:
    """Every prompt, in order; none, if no input holds anything, where none is `required`.

    Stdin, file and arguments are joined in this order, by a newline; one newline at the end of
    each belongs to the pipe, not to the prompt. Of many records each is joined with the arguments.
    A terminal is read only where "-" stands for a file or an argument.

    Raises:
        RequestError: no prompt, an empty one, or a malformed record.
        NotFoundError, LocalIOError: the prompt file cannot be read.
    """
    inputs = _read_inputs(terminal, prompt_file, _STDIN in arguments)
    words = " ".join(word for word in arguments if word != _STDIN)
    ending = terminal.decode(os.fsencode(words), "the prompt argument")
    if not (inputs or ending or required):
        return []
    if records is Records.LINES_OR_WHOLE:
        records = Records.LINES if inputs else Records.WHOLE
    if records is Records.WHOLE:
        parts = [_without_last_newline(text) for _, text in inputs] + [ending]
        found = [PromptRecord(prompt="\n".join(filter(None, parts)))]
    elif records is Records.JSONL and ending:
        raise RequestError("--jsonl takes its prompts from stdin or a file, not from arguments")
    else:
        found = [
            _record(chunk, where, ending, records)
            for source, text in inputs
            for where, chunk in _chunks(text, source, records)
        ]
    if not found:
        raise RequestError(f"--{records} takes its prompts from stdin or a file, and got none")
    for record in found:
        if record.prompt is not None and not record.prompt.strip():
            raise RequestError(f"{record.where or 'the prompt'} is empty")
    return found


def _read_inputs(
    terminal: Terminal, path: Path | None, read_terminal: bool
) -> list[tuple[str, str]]:
    """(name, text) of stdin and of the file, as far as they hold any."""
    data = []
    if read_terminal or path == Path(_STDIN) or not terminal.stdin_is_tty:
        data.append(("stdin", terminal.read_stdin()))
    if path is not None and path != Path(_STDIN):
        data.append((printable(path), read_input_file(path)))
    texts = [(name, terminal.decode(read, name)) for name, read in data]
    return [(name, text) for name, text in texts if text]


def read_input_file(path: Path) -> bytes:
    """The bytes of a file that an option names.

    Raises:
        NotFoundError, LocalIOError: it is not there, or cannot be read.
        RequestError: it is larger than MAX_INPUT_BYTES.
    """
    shown = printable(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_INPUT_BYTES + 1)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {shown}") from None
    except OSError as problem:
        raise LocalIOError(f"cannot read {shown}: {problem.strerror}") from problem
    if len(data) > MAX_INPUT_BYTES:
        raise RequestError(f"{shown} is larger than {MAX_INPUT_BYTES:,} bytes")
    return data


def _without_last_newline(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def _chunks(text: str, source: str, records: Records) -> list[tuple[str, str]]:
    """(name, text) of each record of a source. Without an end the last record counts as well."""
    if records is Records.NULL:
        chunks = text.removesuffix("\0").split("\0")
        return [(f"record {n} of {source}", chunk) for n, chunk in enumerate(chunks, 1)]
    lines = _without_last_newline(text).split("\n")
    named = [(f"line {n} of {source}", line.removesuffix("\r")) for n, line in enumerate(lines, 1)]
    return [line for line in named if line[1].strip() or records is Records.LINES]


def _record(chunk: str, where: str, ending: str, records: Records) -> PromptRecord:
    if records is Records.JSONL:
        return _json_record(chunk, where)
    return PromptRecord(where=where, prompt="\n".join(filter(None, (chunk, ending))))


def _json_record(line: str, where: str) -> PromptRecord:
    """{"prompt": … or "messages": …, "id": …, and sampling parameters}."""
    values = json_object(line, where)
    prompt, messages = values.pop("prompt", None), values.pop("messages", None)
    if (prompt is None) == (messages is None):
        raise RequestError(f'{where} needs either "prompt" or "messages"')
    if prompt is not None and not isinstance(prompt, str):
        raise RequestError(f'{where}: "prompt" must be a string, got {printable(repr(prompt))}')
    if messages is not None and not isinstance(messages, list):
        raise RequestError(f'{where}: "messages" must be a list, got {printable(repr(messages))}')
    name = values.pop("id", None)
    if unknown := sorted(values.keys() - _SAMPLING_KEYS):
        hint = f"known are prompt, messages, id, {', '.join(sorted(_SAMPLING_KEYS))}"
        raise RequestError(f"{where} has an unknown key {printable(unknown[0])!r}", hint=hint)
    given = {key: value for key, value in values.items() if value is not None}
    return PromptRecord(where=where, prompt=prompt, messages=messages, id=name, overrides=given)


def json_object(line: str, where: str) -> dict[str, Any]:
    """The object that a line holds; `where` names the line.

    Raises:
        RequestError: it is no JSON object.
    """
    try:
        values = parse_json(line)
    except json.JSONDecodeError as problem:
        reason = f"{problem.msg} (column {problem.colno})"
        raise RequestError(f"{where} is not valid JSON: {reason}") from None
    except (ValueError, RecursionError) as problem:
        raise RequestError(f"{where} is refused: {printable(problem)}") from None
    if not isinstance(values, dict):
        raise RequestError(f"{where} must be a JSON object, got {printable(line)}")
    return values
