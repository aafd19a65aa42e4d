"""JSON from files that nobody vouches for: sizes bounded, numbers finite, keys unique."""

import json
from collections import Counter
from pathlib import Path

from llamacli.errors import ArtifactError, LocalIOError, NotFoundError, printable

MAX_CONFIG_BYTES = 10_000_000


class _Refused(ValueError):
    """Valid for Python's json module, but not for us."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _Refused(f"key {printable(twice)!r} occurs twice")
    return found


def _finite(literal: str) -> float:
    value = float(literal)
    if value - value != 0:  # inf and nan
        raise _Refused(f"{printable(literal)} is not a finite number")
    return value


def parse_json(text: str) -> object:
    """JSON without what Python's module adds to it.

    Raises:
        ValueError: not JSON, a key twice, a number not finite.
        RecursionError: nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)


def read_file(path: Path, *, error: type[ArtifactError], max_bytes: int) -> bytes:
    """The bytes of a regular file.

    Raises:
        NotFoundError: there is no such file.
        LocalIOError: it may not be read.
        error: it is not a regular file, or larger than `max_bytes`.
    """
    shown = printable(path)
    try:
        if not path.is_file():
            if path.exists():
                raise error(f"{shown} is not a regular file")
            raise NotFoundError(f"{shown} does not exist")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as problem:
        raise LocalIOError(f"cannot read {shown}: {problem.strerror}") from problem
    if len(data) > max_bytes:
        raise error(f"{shown} is larger than {max_bytes:,} bytes")
    return data


def read_json_object(
    path: Path, *, error: type[ArtifactError], max_bytes: int = MAX_CONFIG_BYTES
) -> dict[str, object]:
    """The JSON object in a file.

    Raises:
        NotFoundError, LocalIOError: as `read_file`.
        error: too large, not UTF-8, not JSON, not an object, a key twice, a number not finite.
    """
    data = read_file(path, error=error, max_bytes=max_bytes)
    shown = printable(path)
    try:
        value = parse_json(data.decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        raise error(f"{shown} is not UTF-8 text (byte {problem.start:,})") from problem
    except json.JSONDecodeError as problem:
        where = f"line {problem.lineno}, column {problem.colno}"
        raise error(f"{shown} is not valid JSON: {problem.msg} ({where})") from problem
    except (ValueError, RecursionError) as problem:
        reason = "nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        raise error(f"{shown} is refused: {printable(reason)}") from problem
    if not isinstance(value, dict):
        raise error(f"{shown} must hold a JSON object, got {type(value).__name__}")
    return value
