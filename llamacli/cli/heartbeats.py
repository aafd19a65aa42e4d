"""Ranks that torchrun started see by each other's heartbeats that one of them stands still.

torchrun itself sees only those that end, and would wait 30 s for one that is stopped.
"""

import os
import select
import signal
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import NoReturn

from llamacli.cli.console import Terminal
from llamacli.cli.exit_codes import ExitCode
from llamacli.ranks import Place

_BEAT_S = 0.5
_STOPPED_S = 6.0  # a rank without a heartbeat for so long is lost
_KILLED_S = _STOPPED_S + 1  # after another has told of it: torchrun ends all when one is killed
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
        self._guard = _start_guard()
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
                with suppress(OSError):  # somebody has killed the guard
                    os.write(self._guard, b".")
                for rank in others:
                    before, seen[rank] = seen[rank], self._add(rank, 0)
                    is_silent = before == seen[rank] < _LEFT
                    silent[rank] = silent[rank] + 1 if is_silent else 0  # in beats of our own
                time.sleep(_BEAT_S)
            self._end(lost[0])

    def _end(self, lost: int) -> None:
        """The first rank that still runs tells which one does not, and ends all."""
        if self._place.rank == (1 if lost == 0 else 0):
            self._terminal.error(f"rank {lost} of the model stood still for {_STOPPED_S:g} s")
            os._exit(ExitCode.RESOURCES)


def _start_guard() -> int:
    """Start a process that kills this one when nothing is written to the returned pipe."""
    pulse, ours = os.pipe()
    guarded = os.getpid()
    if os.fork() == 0:
        os.close(ours)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it ends with its parent
            signal.signal(signum, signal.SIG_IGN)
        _guard(guarded, pulse)
    os.close(pulse)
    return ours


def _guard(pid: int, pulse: int) -> NoReturn:
    silent = 0  # in beats of its own, of which none passes while all are stopped together
    while silent * _BEAT_S <= _KILLED_S:
        ready, _, _ = select.select([pulse], [], [], _BEAT_S)
        if ready and not os.read(pulse, 1 << 16):
            os._exit(0)
        silent = 0 if ready else silent + 1
    if os.getppid() == pid:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)
