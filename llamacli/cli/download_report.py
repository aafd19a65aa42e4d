"""Tables and JSON of `download`: a plan, the cache, what its files are like."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from llamacli.cli.console import Terminal
from llamacli.errors import printable
from llamacli.machine_memory import available_memory_bytes

if TYPE_CHECKING:
    from llamacli.hub.cache import CachedModel
    from llamacli.hub.download import Plan
    from llamacli.hub.listing import HubFile
    from llamacli.hub.verify import Verified


def size(nbytes: int) -> str:
    """Bytes for people: 2.2 GB."""
    from rich.filesize import decimal

    return decimal(nbytes)


def table(terminal: Terminal, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as narrow as they can be; the first one is folded where a terminal is narrow."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="")
    for number, title in enumerate(header):
        side: Literal["left", "right"] = "right" if title == "size" else "left"
        made.add_column(title, justify=side, no_wrap=bool(number), overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    text = io.StringIO()
    Console(file=text, width=terminal.stdout_columns, color_system=None).print(made)
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def _json(facts: Mapping[str, Any]) -> str:
    return json.dumps({"schema_version": 1} | dict(facts), indent=2) + "\n"


# ------------------------------------------------------------------------------------------- plan


def skipped_note(plan: "Plan") -> str:
    """What was left aside, and how much that saves; empty if nothing was."""
    skipped = plan.choice.skipped
    largest = sorted(skipped, key=lambda reason: -_sum(skipped[reason]))
    parts = [f"{reason} ({size(_sum(skipped[reason]))})" for reason in largest]
    count = sum(map(len, skipped.values()))
    files = f"{count:,} {'file' if count == 1 else 'files'}"
    saved = size(plan.choice.skipped_nbytes)
    return f"{files} skipped, {saved} saved: {', '.join(parts)}" if parts else ""


def _sum(files: Iterable["HubFile"]) -> int:
    return sum(file.size for file in files)


def plan_text(terminal: Terminal, plan: "Plan", *, as_json: bool) -> str:
    """The files, what is there of them, and whether all fits."""
    if as_json:
        return _json(_plan_facts(plan))
    weights, memory = _weights(plan), available_memory_bytes()
    rows = [
        (printable(file.path), size(file.size), _there(plan, file)) for file in plan.choice.wanted
    ]
    skipped = [
        f"skipped: {len(files):,} × {reason}, {size(_sum(files))}"
        for reason, files in plan.choice.skipped.items()
    ]
    where = printable(plan.target.existing_folder)
    facts = [
        f"to download: {size(plan.nbytes)} of {size(plan.choice.nbytes)}",
        f"disk: {size(plan.free)} free in {where}: {_fits(plan.disk_bytes, plan.free)}",
        f"memory: {size(weights)} of weights",
    ]
    if memory is not None:
        facts[-1] += f", {size(memory)} available: {_fits(weights, memory)}"
    lines = [f"{printable(plan.name)} at commit {plan.listing.commit}", ""]
    body = table(terminal, ("file", "size", ""), rows)
    return "\n".join([*lines, body, *skipped, *facts]) + "\n"


def _there(plan: "Plan", file: "HubFile") -> str:
    present = plan.missing.get(file, file.size)
    return "there" if file not in plan.missing else f"{size(present)} there" if present else ""


def _weights(plan: "Plan") -> int:
    return _sum(file for file in plan.choice.wanted if file.path.endswith(".safetensors"))


def _fits(needed: int, free: int) -> str:
    return "fits" if needed <= free else "does not fit"


def _plan_facts(plan: "Plan") -> dict[str, Any]:
    memory = available_memory_bytes()
    return {
        "repo": plan.name,
        "revision": plan.listing.commit,
        "path": str(plan.target.folder),
        "files": [
            {
                "path": file.path,
                "size": file.size,
                "hash": file.etag,
                "bytes_there": plan.missing.get(file, file.size),
            }
            for file in plan.choice.wanted
        ],
        "skipped": [
            {"path": file.path, "size": file.size, "reason": reason}
            for reason, files in plan.choice.skipped.items()
            for file in files
        ],
        "bytes_to_download": plan.nbytes,
        "disk_bytes": plan.disk_bytes,
        "disk_free_bytes": plan.free,
        "fits_disk": plan.disk_bytes <= plan.free,
        "weights_bytes": _weights(plan),
        "memory_available_bytes": memory,
        "fits_memory": None if memory is None else _weights(plan) <= memory,
    }


# ------------------------------------------------------------------------------------------ cache


def cache_text(terminal: Terminal, models: Iterable["CachedModel"], *, as_json: bool) -> str:
    """The models in the cache; each commit with the branches that it is."""
    rows, facts = [], []
    for model in models:
        nbytes, commits = model.nbytes, model.commits()
        states = {commit: "whole" if model.is_whole(commit) else "partial" for commit in commits}
        refs = {commit: model.revisions(commit) for commit in commits}
        for commit in commits:
            names = ", ".join(refs[commit])
            rows.append((model.name, size(nbytes), states[commit], commit[:8], names))
        facts.append(
            {
                "repo": model.name,
                "bytes": nbytes,
                "commits": [
                    {
                        "commit": commit,
                        "refs": refs[commit],
                        "state": states[commit],
                        "path": str(model.snapshot(commit)),
                    }
                    for commit in commits
                ],
            }
        )
    if as_json:
        return _json({"models": facts})
    return table(terminal, ("model", "size", "state", "commit", "refs"), rows)


def verified_text(
    terminal: Terminal, found: Mapping[str, Sequence["Verified"]], *, as_json: bool
) -> str:
    """The state of each commit, and the files that are missing or were wrong."""
    every = [(name, each) for name, commits in found.items() for each in commits]
    if as_json:
        return _json({"models": [{"repo": name, **each._asdict()} for name, each in every]})
    rows = [
        (name, each.state, (each.commit or "")[:8], ", ".join(map(printable, each.files)))
        for name, each in every
    ]
    return table(terminal, ("model", "state", "commit", "files"), rows)
