"""The progress of a long job: a bar on a terminal, one line elsewhere."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llamacli.cli.console import Color, Terminal
from llamacli.errors import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.progress import Progress

Report = Callable[[str, int], None]
Lines = Callable[[], Sequence[str]]

SHORT_JOB_S = 0.3  # ends before a bar could be read
_ROOM_FOR_CTRL_C = 3  # a terminal writes ^C behind the bar; in the last column it would wrap


@contextmanager
def progress(
    terminal: Terminal,
    title: str,
    total_bytes: int,
    total_items: int = 0,
    unit: str = "tensors",
    lines: Lines | None = None,
) -> Iterator[Report]:
    """Show on stderr how far a job is: a bar that disappears, or one line if that cannot be shown.

    Within it the job calls what it is given, in this thread and as often as it likes, with the
    name of an item and the bytes just done of it; how many names came is shown too. `lines` gives
    what stands below the bar, for a job that does several items at once.
    """
    from rich.filesize import decimal

    title = printable(title)
    items = f"{total_items:,} {unit}" if total_items else ""
    size = decimal(total_bytes)
    phase = f"{title} {items}, {size} …" if items else f"{title} {size} …"
    begin(terminal, phase)
    if terminal.can_redraw:
        with _bar(terminal, title, total_bytes, items, lines) as report:
            yield report
    else:
        yield lambda name, nbytes: None


def begin(terminal: Terminal, phase: str) -> None:
    """Say what takes long from here on: as a status where one can be shown, elsewhere as a line."""
    if terminal.can_redraw:
        terminal.status(phase)
    elif not terminal.quiet:
        terminal.tell(f"llamacli: {phase}")


@contextmanager
def _bar(
    terminal: Terminal, title: str, total_bytes: int, items: str, lines: Lines | None
) -> Iterator[Report]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[items]}", style="progress.download"),
        TimeRemainingColumn(compact=True),
    )
    task = bar.add_task(title, total=total_bytes, items="", name="")
    live = _live_display(terminal, bar, lines)
    names: set[str] = set()

    def report(name: str, nbytes: int) -> None:
        names.add(name)
        begun = f"{len(names):,}/{items}" if items else ""
        bar.update(task, advance=nbytes, items=begun, name=printable(name))
        if not live.is_started and (bar.tasks[task].elapsed or 0) >= SHORT_JOB_S:
            terminal.end_line()
            live.start()  # its thread draws: a signal, raised in this one, would tear a frame
            terminal.print_above = lambda text: live.console.print(Text(text), soft_wrap=True)

    try:
        yield report
    finally:
        terminal.print_above = None
        live.stop()
        terminal.end_line()


def _live_display(terminal: Terminal, bar: "Progress", lines: Lines | None) -> "Live":
    """Lines that redraw themselves: the bar of the only task, its bytes and speed, its name."""
    from rich.console import Console, Group
    from rich.constrain import Constrain
    from rich.live import Live
    from rich.progress import DownloadColumn, TransferSpeedColumn
    from rich.text import Text

    size, speed = DownloadColumn(), TransferSpeedColumn()

    def draw() -> "RenderableType":
        (task,) = bar.tasks
        facts = Text.assemble(size.render(task), "  ", speed.render(task))
        if lines is None:
            facts.append(f"  {task.fields['name']}")
        below = [facts, *map(Text, lines() if lines else ())]
        for line in below:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Constrain(Group(bar, *below), console.width - _ROOM_FOR_CTRL_C)

    console = Console(
        file=_Stderr(terminal),
        force_terminal=True,
        no_color={Color.ALWAYS: False, Color.NEVER: True}.get(terminal.color),  # None: NO_COLOR
    )
    return Live(
        console=console,
        transient=True,
        refresh_per_second=10,
        redirect_stdout=False,
        redirect_stderr=False,
        get_renderable=draw,
    )


class _Stderr(io.StringIO):
    """The terminal's stderr as a text file, for rich."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def write(self, text: str) -> int:
        self._terminal.write_stderr(text)
        return len(text)
