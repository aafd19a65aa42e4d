"""Every fault of the catalogue that is promised so far has a test of its number."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

FAULTS = {*range(1, 127)}

NOT_TESTED: dict[int, str] = {}  # number → reason


def numbers(path: Path) -> Iterator[int]:
    """Those in names of test functions and in ids of their parameters."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            found = re.match(r"test_fault_(\d{3})_", node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = re.match(r"fault-(\d{3})\b", node.value)
        else:
            continue
        if found:
            yield int(found[1])


def test_every_fault_has_a_test_or_a_reason() -> None:
    tested = {number for path in Path(__file__).parent.glob("*.py") for number in numbers(path)}
    assert FAULTS - tested == NOT_TESTED.keys()
