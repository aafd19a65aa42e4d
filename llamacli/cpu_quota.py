"""How many cores a container may use, where the system limits their time and not their number."""

import math
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cpu_quota(root: Path = CGROUP) -> int | None:
    """Whole cores' worth of time that this process may take, at least 1; None without a limit.

    More threads than that would be stopped for a part of each period, mostly while others wait for
    them.

    Args:
        root: where control groups are mounted, of version 2 or 1.
    """
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return max(1, math.floor(cores)) if cores > 0 else None
