import io
import os
import shlex
import time
from pathlib import Path
from typing import Any

import pexpect
import pyte
import pytest
from hypothesis import given, strategies as st

from llamacli.cli.console import Color, Terminal, visible
from llamacli.errors import LocalIOError, RequestError
from tests import probe

# Python 3.12 and later warn of a fork beside torch's threads; pexpect starts a program right away.
pytestmark = pytest.mark.filterwarnings("ignore:.*forkpty:DeprecationWarning")


class Tty(io.BytesIO):
    def isatty(self) -> bool:
        return True


def terminal(stdin: bytes = b"", *, tty: bool = False, **environ: str) -> Terminal:
    stream = Tty if tty else io.BytesIO
    return Terminal(io.BytesIO(stdin), stream(), stream(), environ)


def out(world: Terminal) -> bytes:
    return world.stdout.getvalue()  # type: ignore[attr-defined, no-any-return]


def err(world: Terminal) -> bytes:
    return world.stderr.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_without_a_terminal_stdout_is_80_columns_wide_or_as_the_variable_says() -> None:
    assert terminal().stdout_size == (80, None)
    assert terminal(COLUMNS="132").stdout_size == (132, None)
    assert terminal(COLUMNS="0").stdout_size == terminal(COLUMNS="-1").stdout_size == (80, None)


# --------------------------------------------------------------------------------- text on a stdout

HARMLESS = "plain\ttext\n é 你好 🦙 👩‍👩‍👧 می‌خواهم [bold] [/x] :smile: https://x.y \xa0 \u3000"
HARMFUL = {
    "\x1b[31mred": "\\x1b[31mred",
    "\x1b]52;c;aGk=\x07": "\\x1b]52;c;aGk=\\x07",
    "\x1b]8;;http://x\x1b\\link": "\\x1b]8;;http://x\\x1b\\link",
    "a\rb\x08\x0b\x0c\x00\x7f": "a\\rb\\x08\\x0b\\x0c\\x00\\x7f",
    "\x9b31m\x85\x80": "\\x9b31m\\x85\\x80",
    "\u202eevil\u2066x\u2069": "\\u202eevil\\u2066x\\u2069",
    "\u200e\u200f\u061c": "\\u200e\\u200f\\u061c",
    "\u2028\u2029": "\\u2028\\u2029",
    "zero\u200bwidth\u2060\ufeff\xad": "zero\\u200bwidth\\u2060\\ufeff\\xad",
    "\U000e0041\U000e007f": "\\U000e0041\\U000e007f",
    "\ud800": "\\ud800",
}


@pytest.mark.parametrize(("text", "shown"), HARMFUL.items())
def test_fault_073_on_a_terminal_harmful_text_is_visible(text: str, shown: str) -> None:
    world = terminal(tty=True)
    world.write(text)
    world.write_styled(text, "32")
    assert out(world).decode() == f"{shown}\x1b[32m{shown}\x1b[0m"


@pytest.mark.parametrize("tty", [True, False])
def test_fault_074_harmless_text_and_markup_stay_as_they_are(tty: bool) -> None:
    world = terminal(tty=tty)
    world.write(HARMLESS)
    assert out(world) == HARMLESS.encode()


@given(st.text())
def test_in_a_pipe_text_is_exact_utf8(text: str) -> None:
    world = terminal()
    world.write(text)
    assert out(world) == text.encode("utf-8", "replace")


@given(st.text())
def test_what_is_made_visible_is_so_for_good(text: str) -> None:
    assert visible(visible(text)) == visible(text)
    assert all(c in "\n\t" or ord(c) >= 32 for c in visible(text))


def test_each_piece_is_written_at_once() -> None:
    scene = "terminal.write('piece'); import time; time.sleep(60)"
    with probe.start("play", scene) as process:
        assert process.stdout.read(5) == b"piece"
        process.kill()


def test_fault_076_a_full_disk_is_told() -> None:
    world = terminal()
    world.stdout = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with world.stdout, pytest.raises(LocalIOError, match="cannot write to stdout: No space left"):
        world.write("text")


# ------------------------------------------------------------------------------------------- colors


@pytest.mark.parametrize(
    ("tty", "color", "environ", "colored"),
    [
        (True, Color.AUTO, {}, True),
        (True, Color.AUTO, {"TERM": "xterm", "NO_COLOR": ""}, True),
        (True, Color.AUTO, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        (True, Color.AUTO, {"TERM": "dumb"}, False),
        (True, Color.NEVER, {"FORCE_COLOR": "1"}, False),
        (False, Color.AUTO, {}, False),
        (False, Color.AUTO, {"FORCE_COLOR": "1"}, True),
        (False, Color.ALWAYS, {"NO_COLOR": "1"}, True),
    ],
)
def test_fault_081_color_is_written_where_it_is_wanted(
    tty: bool, color: Color, environ: dict[str, str], colored: bool
) -> None:
    world = terminal(tty=tty, **environ)
    world.color = color
    world.write_styled("text", "1;32")
    assert out(world) == (b"\x1b[1;32mtext\x1b[0m" if colored else b"text")


def test_fault_081_no_escape_reaches_a_pipe() -> None:
    scene = "terminal.status('s'); terminal.note('n'); terminal.write_styled('text', '32')"
    assert probe.run("play", scene) == (0, b"text", "llamacli: note: n\n")


# ------------------------------------------------------------------------------------------- stderr


def test_a_message_is_one_line_and_harmless() -> None:
    world = terminal()
    world.note("two\nlines \x1b[2J")
    world.error("bad\r\nname", hint="a\n b")
    assert err(world).decode().splitlines() == [
        "llamacli: note: two lines \\x1b[2J",
        "llamacli: error: bad name",
        "hint: a b",
    ]


def test_quiet_drops_notes_and_status_but_no_errors() -> None:
    world = terminal(tty=True)
    world.quiet = True
    world.note("note")
    world.status("status")
    world.error("error")
    assert err(world) == b"llamacli: error: error\n"


def screen(world: Terminal, columns: int = 80) -> list[str]:
    """The lines of a screen that shows what went to stdout and stderr, which are one stream."""
    picture = pyte.Screen(columns, 8)
    pyte.ByteStream(picture).feed(out(world).replace(b"\n", b"\r\n"))
    return [line.rstrip() for line in picture.display if line.strip()]


def one_screen() -> Terminal:
    world = terminal(tty=True)
    world.stderr = world.stdout
    return world


def test_a_status_is_replaced_and_leaves_nothing_behind() -> None:
    world = one_screen()
    world.status("loading the weights …")
    world.status("thinking …")
    assert screen(world) == ["thinking …"]
    world.write("text\n")
    world.status("more …")
    world.note("done")
    assert screen(world) == ["text", "llamacli: note: done"]


def test_a_note_does_not_stick_to_text() -> None:
    world = one_screen()
    world.write("text")
    world.note("done")
    world.write("more")
    assert screen(world) == ["text", "llamacli: note: done", "more"]


def test_a_dumb_terminal_gets_no_status() -> None:
    world = terminal(tty=True, TERM="dumb")
    world.status("loading")
    assert err(world) == b""


# -------------------------------------------------------------------------------------------- stdin


def test_stdin_is_read_whole() -> None:
    assert terminal(b"a\r\n\0b").read_stdin() == b"a\r\n\0b"


def test_fault_063_stdin_is_limited() -> None:
    assert terminal(b"12345").read_stdin(limit=5) == b"12345"
    with pytest.raises(RequestError, match="stdin holds more than 2 MB"):
        terminal(b"1" * 2_000_001).read_stdin(limit=2_000_000)


def test_a_stdin_that_cannot_be_read_is_told() -> None:
    world = terminal()
    world.stdin = os.fdopen(os.open(os.devnull, os.O_WRONLY), "rb")
    with world.stdin, pytest.raises(LocalIOError, match="cannot read stdin: Bad file descriptor"):
        world.read_stdin()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\r\nb\r\n", "a\r\nb\r\n"),
        (b"nul\0inside", "nul\0inside"),
        (b"\xef\xbb\xbfmarked", "marked"),
        ("é🦙".encode(), "é🦙"),
    ],
)
def test_utf8_is_decoded_without_a_note(data: bytes, text: str) -> None:
    world = terminal()
    assert world.decode(data, "stdin") == text
    assert err(world) == b""


def test_fault_058_bytes_that_are_not_utf8_are_replaced_with_one_note() -> None:
    world = terminal()
    assert world.decode(b"ab\xffcd\xfe", "stdin") == "ab\ufffdcd\ufffd"
    note = "llamacli: note: stdin is not UTF-8 at byte 2; bad bytes became U+FFFD\n"
    assert err(world).decode() == note


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_fault_058_utf16_is_refused_with_a_way_out(encoding: str) -> None:
    with pytest.raises(RequestError, match="stdin is UTF-16, expected UTF-8") as caught:
        terminal().decode("\ufeffhello".encode(encoding), "stdin")
    assert "iconv" in str(caught.value.hint)


def test_fault_060_an_argument_that_is_not_utf8_is_replaced() -> None:
    world = terminal()
    assert world.decode(os.fsencode("a\udcff"), "the prompt") == "a\ufffd"
    assert err(world).startswith(b"llamacli: note: the prompt is not UTF-8 at byte 1")


# ---------------------------------------------------------------------------------- a real terminal


class Window:
    """The program in a pseudo-terminal, and what its screen shows."""

    def __init__(self, scene: str, columns: int = 80, **variables: str) -> None:
        self.screen = pyte.Screen(columns, 24)
        self.stream = pyte.ByteStream(self.screen)
        command = shlex.join([*probe.PROGRAM, "play", scene])
        self.child: Any = pexpect.spawn(
            "bash",
            ["-c", f"{command}; code=$?; stty -a | tr '\\n' ' ' | grep -c ' echo '; echo =$code="],
            dimensions=(24, columns),
            cwd=str(Path(__file__).parents[1]),
            env=probe.environment(**variables),
            timeout=30,
        )

    def wait_for(self, text: str) -> None:
        self.child.expect_exact(text)
        self.stream.feed(self.child.before + self.child.after)

    def finish(self) -> list[str]:
        self.child.expect(pexpect.EOF)
        self.stream.feed(self.child.before)
        return [line.rstrip() for line in self.screen.display if line.strip()]


def test_fault_073_a_hostile_text_changes_neither_title_nor_screen() -> None:
    scene = r"terminal.write('\x1b]0;title\x07\x1b[2J\x1b[5;5Hmoved\x1b]52;c;aGk=\x07\rback\n')"
    window = Window(scene, TERM="xterm")
    lines = window.finish()
    assert lines[0].startswith("\\x1b]0;title\\x07\\x1b[2J\\x1b[5;5Hmoved")
    assert lines[-1] == "=0="
    assert window.screen.title == ""


def test_fault_077_ctrl_c_ends_the_line_and_leaves_the_terminal_as_it_was() -> None:
    scene = "terminal.write_styled('one two', '32')\nwhile True: pass"
    window = Window(scene)
    window.wait_for("two")
    started = time.monotonic()
    window.child.sendintr()
    assert window.finish() == ["one two^C", "1", "=130="]
    assert time.monotonic() - started < 10
    assert not window.screen.cursor.hidden
    assert window.screen.cursor.attrs.fg == "default"


def test_fault_080_a_narrow_window_shows_a_status_of_one_line() -> None:
    scene = "terminal.status('a status of more than twenty columns'); terminal.write('text\\n')"
    assert Window(scene, columns=20).finish() == ["text", "1", "=0="]


def test_fault_081_no_color_is_obeyed_on_a_terminal() -> None:
    window = Window("terminal.write_styled('text\\n', '32')", NO_COLOR="1")
    window.child.expect(pexpect.EOF)
    assert b"\x1b" not in window.child.before


def test_fault_056_a_terminal_is_known_as_one() -> None:
    scene = "terminal.write(f'{terminal.stdin_is_tty} {terminal.stdout_is_tty}\\n')"
    assert Window(scene).finish()[0] == "True True"
