import re
import textwrap
import threading

import pytest

from llamacli.cli import progress as module
from llamacli.cli.console import Color
from llamacli.cli.progress import progress
from tests.test_console import Window, err, out, terminal

# Python 3.12 and later warn of a fork beside torch's threads; pexpect starts a program right away.
pytestmark = pytest.mark.filterwarnings("ignore:.*forkpty:DeprecationWarning")

NAME = "model.layers.0.mlp.down_proj.weight"
PHASE = "quantizing 291 tensors, 13.5 GB …"
BEGIN = f"report({NAME!r}, 4_600_000_000)\n"
UNTIL_SHOWN = f"{BEGIN}while terminal.print_above is None: report({NAME!r}, 0)\n"
WITHOUT_END = f"{BEGIN}while True: report({NAME!r}, 0); time.sleep(0.01)\n"


def job(body: str) -> str:
    """A scene of the probe: code that has a `report` to call."""
    return (
        "import time; from llamacli.cli.progress import progress\n"
        "with progress(terminal, 'quantizing', 13_500_000_000, 291) as report:\n"
        + textwrap.indent(body, "    ")
    )


def lines(window: Window) -> list[str]:
    return [line.rstrip() for line in window.screen.display if line.strip()]


# ------------------------------------------------------------------------------------ a terminal


def test_a_bar_shows_items_bytes_time_and_name_and_disappears() -> None:
    more = "for i in range(121): report(str(i), 2_000_000)\nreport('model.norm.weight', 0)"
    window = Window(job(UNTIL_SHOWN + more))
    window.wait_for("model.norm.weight")
    bar, below = lines(window)
    assert re.fullmatch(r"quantizing ━{14}╺━{25} 123/291 tensors [\d:-]+", bar)
    assert re.fullmatch(r"4\.8/13\.5 GB  \S+ \wB/s  model\.norm\.weight", below)
    assert window.screen.cursor.hidden
    assert window.finish() == ["1", "=0="]
    assert not window.screen.cursor.hidden


@pytest.mark.parametrize("columns", [80, 40, 20])
def test_fault_077_ctrl_c_leaves_a_clean_line_and_the_cursor(columns: int) -> None:
    window = Window(job(WITHOUT_END), columns)
    window.wait_for("4.6/13.5 GB")
    window.wait_for("4.6/13.5 GB")
    assert window.screen.cursor.hidden
    window.child.sendintr()
    assert window.finish() == ["1", "=130="]
    assert not window.screen.cursor.hidden


def test_fault_080_a_narrow_window_does_not_wrap() -> None:
    window = Window(job(UNTIL_SHOWN), columns=40)
    window.wait_for("model.layers.0.mlp")
    window.wait_for("\r")
    assert lines(window) == [
        "quantizing ━━╺━━━ 1/291 tensors --:--",
        "4.6/13.5 GB  ?  model.layers.0.mlp.d…",
    ]


def test_fault_073_a_hostile_name_shows_itself() -> None:
    name = "\x1b[2J[red]a[/red]\x9b31m\r\n:smile:{task}"
    window = Window(job(UNTIL_SHOWN.replace(repr(NAME), repr(name))))
    window.wait_for("{task}")
    bar, below = lines(window)
    assert bar.startswith("quantizing ━")
    assert below == r"4.6/13.5 GB  ?  \x1b[2J[red]a[/red]\x9b31m\r\n:smile:{task}"


def test_a_note_stands_above_the_bar() -> None:
    note = "llamacli: note: " + "a stray tensor [red] " * 5
    window = Window(job(f"{UNTIL_SHOWN}terminal.note({note[16:]!r})\n"))
    window.wait_for("llamacli: note: ")
    window.wait_for(NAME)
    told = [note[:80].rstrip(), note[80:].rstrip()]
    assert lines(window)[:2] == told
    assert [line.split()[0] for line in lines(window)[2:]] == ["quantizing", "4.6/13.5"]
    assert window.finish() == [*told, "1", "=0="]


def test_an_error_takes_the_place_of_the_bar() -> None:
    raises = "from llamacli.errors import LocalIOError\nraise LocalIOError('disk full')"
    window = Window(job(UNTIL_SHOWN + raises))
    assert window.finish() == ["llamacli: error: disk full", "1", "=7="]
    assert not window.screen.cursor.hidden


# -------------------------------------------------------------------------- in the test's process


@pytest.fixture
def shown_at_once(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(module, "SHORT_JOB_S", 0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("color", "no_color", "colored"),
    [
        (Color.AUTO, "", True),
        (Color.AUTO, "1", False),
        (Color.NEVER, "", False),
        (Color.ALWAYS, "1", True),
    ],
)
def test_fault_081_the_bar_has_color_where_it_is_wanted(
    shown_at_once: pytest.MonkeyPatch, color: Color, no_color: str, colored: bool
) -> None:
    shown_at_once.setenv("NO_COLOR", no_color)
    world = terminal(tty=True)
    world.color = color
    with progress(world, "downloading", 10, 2, "files") as report:
        report("model.safetensors", 5)
    assert b"downloading" in err(world)
    assert (re.search(rb"\x1b\[[\d;]*m", err(world)) is not None) is colored
    assert out(world) == b""


def test_nothing_goes_on_after_the_end(shown_at_once: pytest.MonkeyPatch) -> None:
    world = terminal(tty=True)
    before = set(threading.enumerate())
    with progress(world, "quantizing", 10) as report:
        report("a", 5)
        (refresher,) = set(threading.enumerate()) - before
    refresher.join(60)
    assert not refresher.is_alive()
    world.note("done")
    assert err(world).endswith(b"\x1b[2Kllamacli: note: done\n")


def test_fault_076_a_stderr_that_cannot_be_written_does_not_stop_the_job(
    shown_at_once: pytest.MonkeyPatch,
) -> None:
    world = terminal(tty=True)
    done = []
    with open("/dev/full", "wb", 0) as world.stderr, progress(world, "quantizing", 10) as report:
        report("a", 5)
        world.note("note")
        done.append("a")
    assert done == ["a"]


def test_a_short_job_shows_a_status_and_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORT_JOB_S", 3600)
    world = terminal(tty=True)
    with progress(world, "quantizing", 13_500_000_000, 291) as report:
        report("a", 1)
    assert err(world).decode() == f"\r\x1b[K{PHASE}\r\x1b[K"


@pytest.mark.parametrize("tty", [False, True])
def test_without_a_terminal_that_can_redraw_there_is_one_line(tty: bool) -> None:
    world = terminal(tty=tty, TERM="dumb")
    with progress(world, "quantizing", 13_500_000_000, 291) as report:
        report("a", 1)
        world.note("a note")
    assert err(world).decode() == f"llamacli: {PHASE}\nllamacli: note: a note\n"
    assert out(world) == b""


def test_without_a_count_of_items_the_line_tells_the_bytes() -> None:
    world = terminal()
    with progress(world, "downloading a\x1b[2J", 1_500_000):
        pass
    assert err(world) == "llamacli: downloading a\\x1b[2J 1.5 MB …\n".encode()


@pytest.mark.parametrize("tty", [False, True])
def test_quiet_says_nothing(tty: bool) -> None:
    world = terminal(tty=tty)
    world.quiet = True
    with progress(world, "quantizing", 10, 1) as report:
        report("a", 10)
    assert err(world) == b""
