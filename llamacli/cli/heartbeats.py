"""Ranks that torchrun started see by each other's heartbeats that one of them stands still.

torchrun itself sees only those that end.
"""

import os
import signal
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from llamacli.cli.console import Terminal
from llamacli.cli.exit_codes import ExitCode
from llamacli.ranks import Place

_BEAT_S = 0.5
_STOPPED_S = 6.0  # a rank without a heartbeat for so long is lost
_LEFT = 1 << 40  # more beats than there will ever be


class Heartbeats:
    """Beats for one rank and watches those of the others, in a thread, until it leaves."""

    def __init__(self, place: Place, terminal: Terminal) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self._place, self._terminal = place, terminal
        address, port = terminal.environ["MASTER_ADDR"], int(terminal.environ["MASTER_PORT"])
        self._store = TCPStore(
            address, port, is_master=False, timeout=timedelta(seconds=60), wait_for_workers=False
        )
        self._store.set(f"pid/{place.rank}", str(os.getpid()))
        threading.Thread(target=self._watch, daemon=True).start()

    def leave(self) -> None:
        """End well: from now on silence is no fault."""
        self._add(self._place.rank, _LEFT)

    def _add(self, rank: int, beats: int) -> int:
        return int(self._store.add(f"beats/{rank}", beats))

    def _watch(self) -> None:
        others = [rank for rank in range(self._place.size) if rank != self._place.rank]
        seen, silent = dict.fromkeys(others, 0), dict.fromkeys(others, 0)
        with suppress(RuntimeError):  # the store is gone, and torchrun with it
            while not (lost := [rank for rank in others if silent[rank] * _BEAT_S > _STOPPED_S]):
                self._add(self._place.rank, 1)
                for rank in others:
                    before, seen[rank] = seen[rank], self._add(rank, 0)
                    is_silent = before == seen[rank] < _LEFT
                    silent[rank] = silent[rank] + 1 if is_silent else 0  # in beats of our own
                time.sleep(_BEAT_S)
            self._end(lost)

    def _end(self, lost: list[int]) -> None:
        """End the lost ranks of this machine; the first that still runs tells of it and ends all.

        torchrun alone would wait 30 s for a process that is stopped.
        """
        first_here = self._place.rank - self._place.local_rank
        for rank in set(lost) & set(range(first_here, first_here + self._place.local_size)):
            pid = int(self._store.get(f"pid/{rank}"))
            if _parent_of(pid) == os.getppid():
                os.kill(pid, signal.SIGKILL)
        if self._place.rank == min(set(range(self._place.size)) - set(lost)):
            self._terminal.error(f"rank {lost[0]} of the model stood still for {_STOPPED_S:g} s")
            os._exit(ExitCode.RESOURCES)


def _parent_of(pid: int) -> int | None:
    """Where the system tells it."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None
