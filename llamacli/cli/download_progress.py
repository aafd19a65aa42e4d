"""What a download shows on stderr: how much is missing, a bar with a line for each file, waits."""

from contextlib import ExitStack
from math import ceil
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Self

from llamacli.background import Progress, Step
from llamacli.cli.console import Terminal
from llamacli.cli.progress import progress
from llamacli.errors import printable

if TYPE_CHECKING:
    from llamacli.cli.progress import Report
    from llamacli.hub import Snapshot


class DownloadDisplay:
    """Is called with each step of a download, and shows it."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._stack = ExitStack()
        self._advance: Report | None = None
        self._files: dict[str, list[float]] = {}  # name → bytes that came, of those that lacked
        self._verified: set[str] = set()
        self._waits = ""
        self._name, self._came, self._began = "", 0.0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self._stack.close()
        if self._advance is not None and problem == (None, None, None):
            self._tell(self._summary())

    def __call__(self, event: Progress) -> None:
        """Show one step."""
        step, name, amount = event
        if step is not Step.WAIT:
            self._waits = ""
        if step is Step.BEGIN:
            self._begin(name, amount)
        elif step is Step.WAIT:
            self._wait(f"{printable(name)}: next try in {ceil(amount)} s")
        elif step is Step.LOCKED:
            self._wait(f"another process downloads {printable(name)}: waiting for it")
        elif step is Step.FILE:
            self._files[name] = [0, amount]
        elif step is Step.BYTES and self._advance:
            self._came += amount
            if name in self._files:
                self._files[name][0] += amount
            self._advance(name, int(amount))
        elif step is Step.VERIFY:
            self._verify(name)
        elif step is Step.DONE:
            self._files.pop(name, None)

    def _begin(self, name: str, nbytes: float) -> None:
        self._name, self._began = name, monotonic()
        title = f"downloading {name}:"
        shown = progress(self._terminal, title, int(nbytes), lines=self._lines)
        self._advance = self._stack.enter_context(shown)

    def _lines(self) -> list[str]:
        from rich.filesize import decimal

        lines = []
        for name, (came, lacked) in [*self._files.items()]:
            state = f"{decimal(int(came))} of {decimal(int(lacked))}"
            state = "verifying" if name in self._verified else state
            lines.append(f"  {state}  {printable(name)}")
        return [*lines, f"  {self._waits}"] if self._waits else lines

    def _wait(self, text: str) -> None:
        if not self._waits and not self._terminal.can_redraw:
            self._tell(text)
        self._waits = text
        if self._terminal.print_above is None:  # there is no bar yet
            self._terminal.status(text)

    def _verify(self, name: str) -> None:
        if self._advance is None:
            self._terminal.status(f"verifying {printable(name)} …")
        elif not self._verified and not self._terminal.can_redraw:
            self._tell("verifying …")
        self._verified.add(name)

    def _summary(self) -> str:
        from rich.filesize import decimal

        took = monotonic() - self._began
        speed = decimal(int(max(0.0, self._came) / max(took, 0.001)))
        return f"{self._name}: {decimal(int(max(0.0, self._came)))} in {took:.1f} s ({speed}/s)"

    def _tell(self, text: str) -> None:
        if not self._terminal.quiet:
            self._terminal.tell(f"llamacli: {text}")


def resolve_model(
    terminal: Terminal,
    model: str | Path,
    revision: str | None,
    *,
    offline: bool,
    weights: bool = True,
) -> "Snapshot":
    """The folder of a model; what is missing is downloaded before the user's eyes."""
    from llamacli import hub

    with DownloadDisplay(terminal) as display:
        return hub.resolve(
            model, revision=revision, offline=offline, weights=weights, report=display
        )
