"""The memory that a run would take, for people or as JSON."""

import dataclasses
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamacli.memory_estimate import MemoryEstimate
    from llamacli.placement import Part, Placement

SCHEMA_VERSION = 1


def plan_text(
    needed: "MemoryEstimate", rows: int, tokens: int, device: "str | Placement", *, as_json: bool
) -> str:
    """Where the weights go, the sum on the main device, what is free, and whether it fits."""
    parts: list[Part] = [] if isinstance(device, str) else device.parts
    if as_json:
        facts: dict[str, object] = {"schema_version": SCHEMA_VERSION}
        facts |= {"rows": rows, "tokens": tokens} | dataclasses.asdict(needed)
        facts |= {"total_bytes": needed.total_bytes, "fits": needed.fits}
        facts["placement"] = [part._asdict() for part in parts]
        return json.dumps(facts) + "\n"
    from rich.filesize import decimal

    sizes = {
        "weights": needed.weights_bytes,
        f"cache ({rows:,} × {tokens:,} tokens)": needed.cache_bytes,
        "scratch": needed.scratch_bytes,
        "total": needed.total_bytes,
        "free": needed.available_bytes,
    }
    width = max(map(len, sizes))
    shown = {name: "unknown" if n is None else decimal(n) for name, n in sizes.items()}
    lines = [f"{name:<{width}}  {size:>10}" for name, size in shown.items()]
    verdict = "it fits" if needed.fits else "it does not fit"
    return "\n".join([*_table(parts), *lines, verdict]) + "\n"


def _table(parts: "list[Part]") -> list[str]:
    """A line for each part, and an empty one."""
    from rich.filesize import decimal

    width = max((len(part.modules) for part in parts), default=0)
    lines = [f"{p.modules:<{width}}  {p.device:<6}  {decimal(p.nbytes):>10}" for p in parts]
    return [*lines, ""] if lines else []
