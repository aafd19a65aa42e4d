"""`--tp`: several processes that share a model, and one that watches over them.

The ranks are forks: they know the prompts already, and torch is imported once. Only rank 0 writes,
and the watching process tells what became of the others. torchrun's ranks watch each other.
"""

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import typer

from llamacli.cli.console import Terminal
from llamacli.cli.exit_codes import ExitCode
from llamacli.cli.heartbeats import Heartbeats
from llamacli.cli.threads import calm_threads
from llamacli.ranks import Place

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

_TICK_S = 0.05
_GRACE_S = 1.0  # for rank 0 to tell its own error, or to clean up
_STOPPED_S = 5.0  # a rank that stands still for so long is lost


@dataclass
class _Rank:
    """A child process.

    Attributes:
        stderr: what it has to say; rank 0 says it by itself.
        code: exit code, negative for a signal, None while it runs.
        stopped_ticks: how long it has stood still.
    """

    number: int
    pid: int
    stderr: BinaryIO | None
    code: int | None = None
    is_stopped: bool = False
    stopped_ticks: int = 0

    def look(self) -> None:
        """See what has become of it since the last tick."""
        if self.code is not None:
            return
        pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        if pid and (os.WIFSTOPPED(status) or os.WIFCONTINUED(status)):
            self.is_stopped = os.WIFSTOPPED(status)
        elif pid:
            self.code = os.waitstatus_to_exitcode(status)
        # Ticks, not seconds: none passes while all are stopped together, as by Ctrl-Z.
        self.stopped_ticks = self.stopped_ticks + 1 if self.is_stopped else 0

    @property
    def is_lost(self) -> bool:
        """Whether it failed, or stands still."""
        return self.code not in (None, 0) or self.stopped_ticks > _STOPPED_S / _TICK_S

    def kill(self, signum: int) -> None:
        """Send it a signal, if it runs."""
        if self.code is None:
            os.kill(self.pid, signum)  # nobody else has its number before it is waited for


def fork_ranks(count: int, terminal: Terminal) -> Place | int:
    """Become one of so many ranks, or watch them to the end and return the program's exit code.

    To be called once torch is imported, and before it has started threads.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from llamacli.wires import Wires

    wires = Wires.between(count)
    meeting = socket.create_server(("127.0.0.1", 0))
    port = meeting.getsockname()[1]
    lifeline, ours = os.pipe()
    ranks: list[_Rank] = []
    for number in range(count):
        stderr = TemporaryFile() if number else None  # noqa: SIM115
        if (pid := os.fork()) == 0:
            os.close(ours)
            _begin(lifeline, terminal, stderr)
            for other in wires[:number] + wires[number + 1 :]:
                other.close()  # so that the end of a rank is seen
            theirs: dict[str, Any] = {"master_listen_fd": meeting.detach()} if number == 0 else {}
            theirs["wait_for_workers"] = False
            store = TCPStore("127.0.0.1", port, count, number == 0, **theirs)
            return Place(number, count, number, count, store, wires[number])
        ranks.append(_Rank(number, pid, stderr))
    meeting.close()
    for each in wires:
        each.close()
    os.close(lifeline)
    return _watch(ranks, terminal)


def _begin(lifeline: int, terminal: Terminal, stderr: BinaryIO | None) -> None:
    """What a rank does first: it obeys the watching process, and ends with it."""
    for signum in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all
        signal.signal(signum, signal.SIG_IGN)

    def end_with_parent() -> None:
        os.read(lifeline, 1)  # returns when nobody can write there any more
        os._exit(128 + signal.SIGHUP)

    threading.Thread(target=end_with_parent, daemon=True).start()
    for loopback in (name for _, name in socket.if_nameindex() if name.startswith("lo")):
        os.environ["GLOO_SOCKET_IFNAME"] = loopback
    if stderr is not None:
        os.dup2(stderr.fileno(), 2)
        be_silent(terminal)
        terminal.stderr = stderr


def be_silent(terminal: Terminal) -> None:
    """Write nothing but errors: rank 0 speaks for all."""
    terminal.stdout = open(os.devnull, "wb")  # noqa: SIM115
    terminal.stdout_is_tty = terminal.stderr_is_tty = False
    terminal.quiet = True


def _watch(ranks: list[_Rank], terminal: Terminal) -> int:
    """The exit code, once rank 0 is done or another is lost; then all are ended."""
    first = ranks[0]
    try:
        _wait(ranks, lambda: first.code is not None or any(rank.is_lost for rank in ranks))
        _wait(ranks, lambda: first.code is not None, _GRACE_S)
        done = first.code is not None and first.code >= 0
        lost = [replace(rank) for rank in ranks if rank.is_lost]  # as they are before the end
    finally:
        _end(ranks)
    return first.code if done and first.code is not None else _explain(lost[0], terminal)


def _wait(ranks: list[_Rank], is_over: Callable[[], bool], most_s: float = math.inf) -> None:
    ticks = most_s / _TICK_S
    while not is_over() and ticks > 0:
        time.sleep(_TICK_S)
        ticks -= 1
        for rank in ranks:
            rank.look()


def _end(ranks: list[_Rank]) -> None:
    """End those that still run; rank 0 may clean up."""
    for rank in ranks[1:]:
        rank.kill(signal.SIGKILL)
    ranks[0].kill(signal.SIGTERM)
    _wait(ranks, lambda: ranks[0].code is not None, _GRACE_S)
    ranks[0].kill(signal.SIGKILL)
    for rank in ranks:
        if rank.code is None:
            os.waitpid(rank.pid, 0)


def _explain(rank: _Rank, terminal: Terminal) -> int:
    """Tell why a rank was lost."""
    said = b""
    if rank.stderr is not None:
        rank.stderr.seek(0)
        said = rank.stderr.read()
    if rank.code is not None and rank.code > 0 and said:
        terminal.write_stderr(said.decode("utf-8", "replace"))
        return rank.code
    fate, hint = f"stood still for {_STOPPED_S:g} s", None
    if rank.code is not None:
        fate = f"ended with exit code {rank.code}"
        if rank.code < 0:
            fate = f"was killed by signal {-rank.code}"
            hint = "the system kills a process when memory runs out"
    terminal.error(f"rank {rank.number} of the model {fate}", hint)
    return ExitCode.RESOURCES


# ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks that share a model, seen by one of them."""

    place: Place
    mesh: "DeviceMesh"
    heartbeats: Heartbeats | None  # among torchrun's ranks; nobody else watches these

    def share(self, value: T) -> T:
        """What rank 0 has; forks have it already."""
        from llamacli.collectives import share

        return value if self.place.store is not None else share(value)

    def leave(self) -> None:
        """End well: the others need this one no more."""
        if self.heartbeats is not None:
            self.heartbeats.leave()


def meet(terminal: Terminal, count: int, device: str, place: Place | None) -> Ranks | None:
    """Become one of several ranks; None if there is one alone.

    The process that watches over them does not return from here.

    Args:
        terminal: where errors are told.
        count: of the ranks to be started.
        device: that was asked for.
        place: where torchrun has started the ranks.
    """
    if place is None and count == 1:
        return None
    calm_threads()
    with terminal.importing():
        import llamacli.generation
        import llamacli.model  # noqa: F401
        from llamacli.collectives import join
        from llamacli.devices import choose_device
    if place is None:
        found = fork_ranks(count, terminal)
        if isinstance(found, int):
            raise typer.Exit(found)
        place = found
    mesh = join(place, choose_device(device).type)
    return Ranks(place, mesh, Heartbeats(place, terminal) if place.store is None else None)
