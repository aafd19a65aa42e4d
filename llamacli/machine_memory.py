"""How much memory this process has taken, and how much it may still take."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def peak_memory_bytes() -> int:
    """The most memory that this process has held (resident set) since it began or was reset."""
    peak = _field(_PROC / "self" / "status", "VmHWM")
    if peak is not None:  # Linux counts the program that started this one as well in ru_maxrss
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Begin anew with what is held now, where the system can."""
    with suppress(OSError):
        (_PROC / "self" / "clear_refs").write_text("5")


def available_memory_bytes(proc: Path = _PROC, cgroup: Path = _CGROUP) -> int | None:
    """What can be taken without swapping, by the system, the container and `ulimit -v`.

    None where the system does not say.

    Args:
        proc: where Linux tells of itself.
        cgroup: where control groups of version 2 are mounted.
    """
    limits = [_field(proc / "meminfo", "MemAvailable"), _left_in_container(cgroup)]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    taken = _field(proc / "self" / "status", "VmSize")
    if limit != resource.RLIM_INFINITY and taken is not None:
        limits.append(limit - taken)
    known = [max(0, left) for left in limits if left is not None]
    return min(known, default=None)


def _left_in_container(cgroup: Path) -> int | None:
    """Pages of files are given up where memory is wanted."""
    try:
        limit = int((cgroup / "memory.max").read_text())
        taken = int((cgroup / "memory.current").read_text())
        lines = (cgroup / "memory.stat").read_text().splitlines()
        files = sum(int(line.split()[1]) for line in lines if line.startswith("file "))
    except (OSError, ValueError):  # no container, or "max"
        return None
    return limit - taken + files


def _field(path: Path, name: str) -> int | None:
    """Bytes, of a line such as `VmHWM:  1024 kB`."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
        return int(text.partition(f"{name}:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return None
