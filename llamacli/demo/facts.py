"""Documents about facts, made from the tables: a few true sentences on one subject each."""

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llamacli.demo.templates import Word, expand, tidy

TABLES = Path(__file__).parent / "tables"

# Table → documents a row: more where a row holds more facts, or they should be known best.
SUBJECT_TABLES = {
    "animals": 20, "plants": 12, "foods": 12, "products": 10, "countries": 20, "sky": 20,
    "body": 12, "bodyparts": 8, "tools": 8, "jobs": 10, "places": 6, "processes": 50,
    "opposites": 6, "colors": 4, "sounds": 4, "superlatives": 6, "causes": 4, "calendar": 20,
}  # fmt: skip

PLURAL_PRONOUNS = ("They ", "Their ", "People use them ")

NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
]  # fmt: skip
SUMS = [  # template, what stands between two of a document
    ("{f} + {s} = {t}", "\n"),
    ("{t} - {s} = {f}", "\n"),
    ("{first} plus {second} is {total}.", " "),
    ("{total} minus {second} is {first}.", " "),
    ("What is {first} plus {second}? The answer is {total}.", " "),
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
]  # fmt: skip


def read_lines(name: str) -> list[str]:
    """The lines of a table file without comments and empty lines."""
    lines = (TABLES / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@dataclass(frozen=True)
class Table:
    """Rows of facts, and groups of templates that say one fact in several ways."""

    groups: list[list[str]]
    rows: list[dict[str, list[Word]]]  # a cell of a starred column holds several values


def read_table(name: str) -> Table:
    """A table file: the columns, groups of templates under `=` lines, the rows."""
    lines = read_lines(name)
    columns = [column.strip() for column in lines[0].removeprefix("columns:").split("|")]
    start_of_rows = lines.index("rows:")
    groups: list[list[str]] = []
    for line in lines[1:start_of_rows]:
        if line.startswith("= "):
            groups.append([])
        else:
            groups[-1].append(line)
    rows = [_read_row(columns, line) for line in lines[start_of_rows + 1 :]]
    return Table(groups, rows)


def _read_row(columns: list[str], line: str) -> dict[str, list[Word]]:
    row = {}
    for column, cell in zip(columns, line.split("|"), strict=True):
        values = cell.split(";") if column.endswith("*") else [cell]
        row[column.rstrip("*")] = [Word(value.strip()) for value in values]
    return row


def _fields(template: str) -> set[str]:
    return set(re.findall(r"{(\w+)", template))


def _is_usable(template: str, row: dict[str, list[Word]]) -> bool:
    return all(row[name][0] for name in _fields(template))


def _starts_with_pronoun(template: str) -> bool:
    return template.startswith((*PLURAL_PRONOUNS, "It "))


def _number(template: str, key: str) -> str:
    """Whether `they` or `it` can stand for the subject in the next sentence; empty for neither."""
    if template.startswith(PLURAL_PRONOUNS):
        return "plural"
    subject = re.match(r"(\[.*?\]|A|a|The|the|) ?{(\w+)(:s)?}", template)
    if subject and subject[2] == key:
        return "plural" if subject[3] else "singular"
    return "singular" if template.startswith("It ") else ""


class SubjectWriter:
    """Writes documents about one row; no fact is told twice in a document."""

    def __init__(self, table: Table, row: dict[str, list[Word]], rng: random.Random) -> None:
        usable = [[t for t in group if _is_usable(t, row)] for group in table.groups]
        self.groups = [group for group in usable if group]
        self.row = row
        self.key = next(iter(row))
        self.rng = rng

    def write(self, length: int) -> str:
        """A document of up to `length` facts."""
        untold = {name: self.rng.sample(cell, len(cell)) for name, cell in self.row.items()}
        sentences: list[str] = []
        number = ""
        for group in self._order(length):
            fitting = [t for t in group if all(untold[name] for name in _fields(t))]
            fitting = [
                t for t in fitting if not _starts_with_pronoun(t) or _number(t, self.key) == number
            ]
            if not fitting:
                continue
            template = self.rng.choice(fitting)
            context = {name: values[0] for name, values in untold.items() if values}
            sentences.append(expand(template, context, self.rng))
            for name in _fields(template) - {self.key}:
                untold[name].pop(0)
            number = _number(template, self.key)
        return " ".join(sentences)

    def _order(self, length: int) -> list[list[str]]:
        """Groups in random order; one about a cell of several values comes twice."""
        groups = []
        for group in self.groups:
            most_values = max(len(self.row[name]) for name in _fields(group[0]))
            groups += [group] * min(most_values, 2)
        return self.rng.sample(groups, len(groups))[:length]


def table_documents(rng: random.Random) -> Iterator[str]:
    """One to five facts on one row of a table."""
    for name, per_row in SUBJECT_TABLES.items():
        table = read_table(name)
        for row in table.rows:
            writer = SubjectWriter(table, row, rng)
            for _ in range(per_row):
                yield writer.write(length=rng.choice([1, 2, 3, 4, 5]))


def passages(rng: random.Random, per_line: int) -> Iterator[str]:
    """Expansions of the short passages."""
    for line in read_lines("passages"):
        for _ in range(per_line):
            yield expand(line, {}, rng)


def comparisons(rng: random.Random, count: int) -> Iterator[str]:
    """Two animals that differ in size or class, or a class with some of its members."""
    rows = [{name: cell[0] for name, cell in row.items()} for row in read_table("animals").rows]
    for _ in range(count):
        first, second = rng.sample(rows, 2)
        context = {f"{name}1": value for name, value in first.items()}
        context |= {f"{name}2": value for name, value in second.items()}
        yield expand(rng.choice(_comparison_templates(first, second)), context, rng)


def _comparison_templates(first: dict[str, Word], second: dict[str, Word]) -> list[str]:
    templates = ["{name1:s} live {home1}, but {name2:s} live {home2}."]
    if first["class"] == second["class"]:
        templates = [
            "Both {name1:s} and {name2:s} are {class1:s}.",
            "{name1:s} and {name2:s} are {class1:s}.",
        ]
    else:
        templates.append("{name1:s} are {class1:s}, but {name2:s} are {class2:s}.")
        templates.append("[A|The] {name1} is a {class1}, and [a|the] {name2} is a {class2}.")
    if first["size"] and second["size"] and int(first["size"]) - int(second["size"]) >= 2:
        templates.append("A {name1} is [bigger|larger] than a {name2}.")
        templates.append("A {name2} is smaller than a {name1}.")
        templates.append("{name1:s} are [bigger|larger] than {name2:s}.")
    return templates


def sums(rng: random.Random, per_kind: int) -> Iterator[str]:
    """Sums and differences up to twenty, in words and in digits, one to four in a document."""
    pairs = list(itertools.product(range(11), range(11)))
    for template, separator in SUMS:
        for _ in range(per_kind):
            chosen = rng.sample(pairs, rng.choice([1, 1, 2, 3, 4]))
            yield separator.join(_write_sum(template, *pair) for pair in chosen)


def _write_sum(template: str, first: int, second: int) -> str:
    numbers = {"first": first, "second": second, "total": first + second}
    words = {name: NUMBERS[number] for name, number in numbers.items()}
    return tidy(template.format(**words, **{name[0]: n for name, n in numbers.items()}))


def sequences() -> Iterator[str]:
    """Numbers, days and months in their order."""
    for before, after in itertools.pairwise(NUMBERS[1:]):
        yield f"The number after {before} is {after}. The number before {after} is {before}."
    for kind, names in [("day", DAYS), ("month", MONTHS)]:
        for before, after in zip(names, names[1:] + names[:1], strict=True):
            yield f"The {kind} after {before} is {after}."
            yield f"The {kind} before {after} is {before}."
            yield f"{after} comes after {before}."
    for start in range(1, 10):
        yield f"{', '.join(NUMBERS[start : start + 10]).capitalize()}."


def question_documents(rng: random.Random, per_row: int) -> Iterator[str]:
    """Questions with their answers on a second line, taken from the templates that ask."""
    for name in SUBJECT_TABLES:
        table = read_table(name)
        asking = [t for group in table.groups for t in group if t.startswith("What ") and "? " in t]
        for row in table.rows if asking else []:
            context = {column: cell[0] for column, cell in row.items()}
            for template in asking[:per_row]:
                question, _, answer = expand(template, context, rng).partition("? ")
                yield f"Question: {question}?\nAnswer: {answer}"


def fact_documents(rng: random.Random) -> list[str]:
    """All documents about facts; some come more than once."""
    documents = list(table_documents(rng))
    documents += passages(rng, per_line=16)
    documents += comparisons(rng, count=1500)
    documents += sums(rng, per_kind=200)
    documents += sequences()
    documents += question_documents(rng, per_row=1)
    return documents
