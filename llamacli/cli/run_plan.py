"""The memory that a run would take, for people or as JSON."""

import dataclasses
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamacli.memory_estimate import MemoryEstimate

SCHEMA_VERSION = 1


def plan_text(needed: "MemoryEstimate", rows: int, tokens: int, *, as_json: bool) -> str:
    """The sum, what is free, and whether that is enough."""
    if as_json:
        facts = {"schema_version": SCHEMA_VERSION, "rows": rows, "tokens": tokens}
        facts |= dataclasses.asdict(needed)
        facts |= {"total_bytes": needed.total_bytes, "fits": needed.fits}
        return json.dumps(facts) + "\n"
    sizes = {
        "weights": needed.weights_bytes,
        f"cache ({rows:,} × {tokens:,} tokens)": needed.cache_bytes,
        "scratch": needed.scratch_bytes,
        "total": needed.total_bytes,
        "free": needed.available_bytes,
    }
    width = max(map(len, sizes))
    shown = {name: "unknown" if n is None else f"{n / 1e9:.2f} GB" for name, n in sizes.items()}
    lines = [f"{name:<{width}}  {size:>10}" for name, size in shown.items()]
    return "\n".join([*lines, "it fits" if needed.fits else "it does not fit"]) + "\n"
