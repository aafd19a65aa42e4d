"""What is measured: the cross product of prompts, new tokens, depths and batches."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from llamacli.errors import RequestError, printable

MAX_NUMBER = 1_000_000
_RANGE = re.compile(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One test.

    Attributes:
        prompt_tokens: read at once, 0 is none.
        new_tokens: then decoded one by one, 0 is none.
        depth: tokens that are in the cache before.
        batch: rows that are run together, each with as many tokens.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    depth: int = 0
    batch: int = 1

    @property
    def test(self) -> str:
        """Its name: pp512, tg128, pp512+tg128, with " @ d1024" and " b4" behind it."""
        parts = {"pp": self.prompt_tokens, "tg": self.new_tokens}
        name = "+".join(f"{kind}{count}" for kind, count in parts.items() if count)
        name += f" @ d{self.depth}" if self.depth else ""
        return name + (f" b{self.batch}" if self.batch > 1 else "")

    @property
    def tokens(self) -> int:
        """That are counted, of all rows."""
        return self.batch * (self.prompt_tokens + self.new_tokens)

    @property
    def length(self) -> int:
        """Positions of a row, in the end."""
        return self.depth + self.prompt_tokens + self.new_tokens


def numbers(name: str, text: str, *, low: int = 0) -> list[int]:
    """The numbers that a list such as `512`, `0,1024`, `1-4`, `0-4096+1024` or `1-8*2` means.

    Raises:
        RequestError: it is none, or a number is below `low` or above MAX_NUMBER.
    """
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        bounds = [int(number) for number in match.group(1, 2) if number] if match else []
        if match is None or not all(low <= number <= MAX_NUMBER for number in bounds):
            examples = "512 or 0,1024 or 1-8*2"
            expected = f"numbers of {low} … {MAX_NUMBER:,}, such as {examples}"
            raise RequestError(f"{name} must be {expected}, got {printable(repr(part))}")
        found += _counted(name, bounds[0], bounds[-1], match[3] or "+", int(match[4] or 1))
    return list(dict.fromkeys(found))


def _counted(name: str, first: int, last: int, sign: str, step: int) -> list[int]:
    """First to last, each the one before plus or times the step."""
    found = [first]
    while (number := found[-1] + step if sign == "+" else found[-1] * step) <= last:
        if number <= found[-1] or len(found) == 1000:
            raise RequestError(f"{name} has a range that does not end: {first}-{last}{sign}{step}")
        found.append(number)
    return found


def pairs(name: str, text: str) -> list[tuple[int, int]]:
    """`512,128` as prompt and new tokens; a semicolon separates several.

    Raises:
        RequestError: it is something else.
    """
    found = [numbers(name, part, low=1) for part in text.split(";")]
    counts = [part.split(",") for part in text.split(";")]
    if any(len(count) != 2 or "-" in "".join(count) for count in counts):
        raise RequestError(f"{name} must be P,N such as 512,128, got {printable(repr(text))}")
    return [(both[0], both[-1]) for both in found]


def cases(
    prompts: Iterable[int],
    new_tokens: Iterable[int],
    both: Iterable[tuple[int, int]],
    depths: Sequence[int],
    batches: Sequence[int],
) -> list[Case]:
    """Every test at every depth and in every batch.

    Raises:
        RequestError: there is none.
    """
    tests = [(count, 0) for count in prompts] + [(0, count) for count in new_tokens] + [*both]
    found = [
        Case(prompt_tokens=prompt, new_tokens=new, depth=depth, batch=batch)
        for batch, depth, (prompt, new) in product(batches, depths, tests)
        if prompt or new
    ]
    if not found:
        raise RequestError("there is nothing to measure: all counts are 0")
    return found
