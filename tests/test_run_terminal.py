"""`llamacli run` as a process: terminals, pipes, signals, the locale."""

import json
import shlex
import signal
from pathlib import Path
from typing import Any

import pexpect
import pyte
import pytest

from tests.command_line import PROGRAM, here, in_shell, start, write_chain
from tests.probe import environment

# Each token once: clear the screen, go to its corner, a byte order trick, a C1 code, a title.
HOSTILE = (
    "▁moon <0x1B> <0x5B> <0x32> <0x4A> <0x0D> <0xE2> <0x80> <0xAE> ▁sees <0xC2> <0x9B> "
    "<0x33> <0x31> m ▁river <0x07> <0x0A> ▁bird"
).split()
HOSTILE_TEXT = " moon\x1b[2J\r\u202e sees\x9b31m river\x07\n bird"
SHOWN = [" moon\\x1b[2J\\r\\u202e sees\\x9b31m river\\x07", " bird"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that attacks the terminal."""
    folder = tmp_path_factory.mktemp("models") / "hostile"
    write_chain(folder, HOSTILE)
    return folder


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says " moon sees river" again and again."""
    folder = tmp_path_factory.mktemp("models") / "endless"
    write_chain(folder, ["▁moon", "▁sees", "▁river"], loop=True, max_position_embeddings=10**6)
    return folder


class Window:
    """The program in a pseudo-terminal, and what its screen shows."""

    def __init__(self, *args: object, **variables: str) -> None:
        self.screen = pyte.Screen(80, 24)
        self.bytes = b""
        command = shlex.join([*PROGRAM, *map(str, args)])
        echo = "stty -a | tr '\\n' ' ' | grep -o ' echo '"
        self.child: Any = pexpect.spawn(
            "bash",
            ["-c", f"{command}; code=$?; {echo}; echo code $code"],
            dimensions=(24, 80),
            env=environment(**variables),
            timeout=60,
        )

    def wait_for(self, text: str) -> None:
        self.child.expect_exact(text)
        self.bytes += self.child.before + self.child.after

    def finish(self) -> list[str]:
        """The lines of the screen, when the program has ended."""
        self.child.expect(pexpect.EOF)
        self.bytes += self.child.before
        pyte.ByteStream(self.screen).feed(self.bytes)
        return [line.rstrip() for line in self.screen.display if line.strip()]


# ----------------------------------------------------------------------------------- a terminal


def test_fault_056_a_terminal_without_a_prompt_gets_short_help(hostile: Path) -> None:
    lines = Window("run", "-m", hostile).finish()
    assert lines[0].startswith("llamacli run continues a text.")
    assert "llamacli run --help lists all options." in lines
    assert lines[-1] == "code 2"


def test_fault_073_a_hostile_text_shows_itself_and_changes_nothing(hostile: Path) -> None:
    window = Window("run", "-m", hostile, "The")
    lines = window.finish()
    assert lines == [*SHOWN, " echo", "code 0"]
    assert window.screen.title == ""


def test_logprobs_color_the_tokens_on_a_terminal(endless: Path) -> None:
    window = Window("run", "-m", endless, "The", "-n", 4, "--logprobs", 1, "--temperature", 9)
    window.finish()
    plain = here(
        "run", "-m", endless, "The", "-n", 4, "--logprobs", 1, tty=["stdout"], NO_COLOR="1"
    )
    assert b"\x1b[0m" in window.bytes
    assert b"\x1b" not in plain.out
    assert "shown in color" in plain.err


def test_fault_077_ctrl_c_keeps_the_text_and_restores_the_terminal(endless: Path) -> None:
    window = Window("run", "-m", endless, "-n", -1, "The")
    window.wait_for("river moon sees")
    window.child.sendintr()
    lines = window.finish()
    assert lines[-2:] == [" echo", "code 130"]
    assert lines[-3].endswith("^C")
    text = window.bytes.rpartition(b"\x1b[K")[2]  # after the last status line
    assert text.startswith(b" moon sees river moon sees")
    assert not window.screen.cursor.hidden
    assert window.screen.cursor.attrs.fg == "default"
    assert b"Traceback" not in window.bytes


# ---------------------------------------------------------------------------------------- pipes


def test_fault_073_a_pipe_gets_the_exact_bytes(hostile: Path) -> None:
    done = here("run", "-m", hostile, "The", tty=["stderr"])
    assert done.out == HOSTILE_TEXT.encode() + b"\n"
    lines = here("run", "-m", hostile, "--lines", stdin=b"a\nb", tty=["stdout"])
    assert lines.out.count(b"\n") == 2
    assert b"\x1b" not in lines.out


def test_fault_074_markup_stays_as_it_is(tmp_path: Path) -> None:
    write_chain(tmp_path, "<0x5B> b o l d <0x5D> ▁ <0x3A> se e <0x2F> <0x40>".split())
    for tty in ([], ["stdout"]):
        assert here("run", "-m", tmp_path, "The", tty=tty).out == b"[bold] :see/@\n"


@pytest.mark.parametrize("reader", ["head -c 5", "true"])
def test_fault_075_a_closed_pipe_ends_silently(endless: Path, reader: str) -> None:
    done = in_shell(f"{{llamacli}} run -m {endless} -n -1 The | {reader}")
    assert (done.code, done.err) == (141, "")
    assert done.out == (b" moon" if reader.startswith("head") else b"")


@pytest.mark.parametrize(
    ("stdout", "reason"), [("&-", "Bad file descriptor"), ("/dev/full", "No space left on device")]
)
def test_fault_076_a_stdout_that_cannot_be_written_is_an_error(
    hostile: Path, stdout: str, reason: str
) -> None:
    done = in_shell(f"{{llamacli}} run -m {hostile} The >{stdout}")
    assert (done.code, done.err) == (7, f"llamacli: error: cannot write to stdout: {reason}\n")


def test_fault_057_a_closed_stdin_is_an_empty_prompt(hostile: Path) -> None:
    done = in_shell(f"{{llamacli}} run -m {hostile} <&-")
    assert (done.code, done.out, done.err) == (2, b"", "llamacli: error: the prompt is empty\n")


def test_fault_063_an_endless_stdin_is_refused(hostile: Path) -> None:
    done = in_shell(f"yes | {{llamacli}} run -m {hostile}; exit ${{PIPESTATUS[1]}}")
    assert done.code == 2
    assert done.err == "llamacli: error: stdin holds more than 64 MB\n"


def test_fault_082_a_locale_without_utf8_changes_nothing(tmp_path: Path) -> None:
    write_chain(tmp_path, ["▁moon", "<0xC3>", "<0xA9>"])
    done = in_shell(
        f"{{llamacli}} run -m {tmp_path} $'\\xc3\\xa9 \\xff'", LC_ALL="C", PYTHONIOENCODING="ascii"
    )
    assert (done.code, done.out) == (0, " mooné\n".encode())
    assert done.err == (
        "llamacli: note: the prompt argument is not UTF-8 at byte 3; bad bytes became U+FFFD\n"
    )


def test_fault_084_the_first_run_says_one_note_and_the_text() -> None:
    prompt = "Plants create energy through a process known as"
    done = in_shell(f"echo {shlex.quote(prompt)} | {{llamacli}} run; exit ${{PIPESTATUS[1]}}")
    assert done.code == 0
    assert done.err == "llamacli: note: using the small demo model; -m MODEL names another\n"
    assert done.out.startswith(b" ")
    assert done.out.endswith(b"\n")
    greedy = here("run", "--greedy", "--quiet", stdin=f"{prompt}\n".encode())
    assert greedy.err == ""
    assert greedy.out.startswith(b" photosynthesis")


# -------------------------------------------------------------------------------------- signals


def test_fault_079_termination_keeps_what_was_written(endless: Path) -> None:
    with start("run", "-m", endless, "-n", -1, "The", stdin=None) as process:
        written = process.stdout.read(40)
        process.terminate()
        rest, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, b"")
    text = written + rest
    assert text == (b" moon sees river" * len(text))[: len(text)]


def test_fault_083_interrupted_json_is_whole_lines_or_nothing(endless: Path) -> None:
    requests = [{"prompt": "The", "max_new_tokens": 2}, {"prompt": "The"}]
    command = ("run", "-m", endless, "--jsonl", "-n", -1, "--batch-size", 1)
    with start(*command) as process:
        process.stdin.write("\n".join(map(json.dumps, requests)).encode())
        process.stdin.close()
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        err = process.stderr.read()
    assert (process.returncode, rest, err) == (130, b"", b"")
    assert json.loads(first)["text"] == " moon sees"
