"""How much of the machine other programs take while a benchmark runs."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STAT = Path("/proc/stat")


class Neighbors:
    """Watches the cores while so many threads of this program work, in equal ranks."""

    def __init__(self, threads: int, stat: Path = _STAT, *, ranks: int = 1) -> None:
        self._threads, self._stat, self._ranks = threads, stat, ranks
        self._others_s = self._wall_s = 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count what others compute during the block."""
        before = self._now()
        yield
        others_s, wall_s = (new - old for new, old in zip(self._now(), before, strict=True))
        self._others_s += others_s
        self._wall_s += wall_s

    @property
    def taken(self) -> float:
        """Share of the threads' cores that others wanted, too; 0 where the system does not tell."""
        if not self._wall_s:
            return 0.0
        wanted = self._others_s / self._wall_s + self._threads
        return min(1.0, max(0.0, (wanted - (os.cpu_count() or 1)) / self._threads))

    def _now(self) -> tuple[float, float]:
        """Seconds that others have computed on all cores, and of the clock."""
        try:
            fields = self._stat.read_text(encoding="ascii").partition("\n")[0].split()[1:]
        except OSError:
            return 0.0, time.perf_counter()
        # user, nice, system, idle, iowait, irq, softirq, steal: what is neither idle nor waits
        ticks = sum(int(fields[place]) for place in (0, 1, 2, 5, 6, 7))
        ours = self._ranks * time.process_time()
        return ticks / os.sysconf("SC_CLK_TCK") - ours, time.perf_counter()
