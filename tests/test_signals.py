import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

from tests import probe

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
# Short sleeps: a signal between Python's last look and the start of one long sleep would wait for
# its end. And Python looks only where it runs code of its own: a map in C would sleep to the end.
WAIT = "[terminal.write('ready\\n'), *(__import__('time').sleep(0.05) for _ in range(1200))]"


def interrupted(scene: str, *signums: int, after: float = 0) -> tuple[int, bytes, str]:
    """The end of a scene that gets signals once it has written a line, and again after each."""
    with probe.start("play", scene) as process:
        out = b""
        for signum in signums:
            out += process.stdout.readline()
            time.sleep(after)
            process.send_signal(signum)
        rest, err = process.communicate(timeout=60)
    return process.returncode, out + rest, err.decode()


@pytest.mark.parametrize("signum", SIGNALS)
def test_fault_079_a_signal_ends_after_cleaning_up(signum: int, tmp_path: Path) -> None:
    scene = f"import tempfile\nwith tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):\n    {WAIT}"
    assert interrupted(scene, signum) == (128 + signum, b"ready\n", "")
    assert not list(tmp_path.iterdir())


def test_fault_077_a_second_signal_does_not_wait_for_the_cleanup() -> None:
    scene = f"try: {WAIT}\nfinally: {WAIT}"
    ended = interrupted(scene, signal.SIGINT, signal.SIGINT)
    assert ended == (130, b"ready\nready\n", "")


@pytest.mark.parametrize("signum", SIGNALS)
def test_fault_078_imports_that_swallow_everything_end_at_once(signum: int) -> None:
    scene = (
        "import time\n"
        "with terminal.importing():\n"
        "    terminal.write('ready\\n')\n"
        "    for _ in range(600):\n"
        "        try: time.sleep(0.1)\n"
        "        except BaseException: pass\n"
    )
    assert interrupted(scene, signum) == (128 + signum, b"ready\n", "")


@pytest.mark.parametrize("after", [0.02, 0.2, 0.4, 0.7])
def test_fault_078_a_signal_while_torch_is_imported_leaves_no_traceback(after: float) -> None:
    scene = "terminal.write('ready\\n')\nwith terminal.importing(): import torch\n" + WAIT
    code, out, err = interrupted(scene, signal.SIGINT, after=after)
    assert (code, err) == (130, "")
    assert out.startswith(b"ready\n")


def test_fault_078_from_the_first_import_on_no_signal_leaves_a_traceback() -> None:
    script = (
        "import sys, builtins, signal, os\n"
        "from llamacli.cli import app\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "app.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, b"", b"")


def test_fault_079_a_signal_that_is_ignored_stays_ignored() -> None:
    scene = "import os, signal; os.kill(os.getpid(), signal.SIGHUP); terminal.write('on')"
    command = shlex.join([*probe.PROGRAM, "play", scene])
    assert probe.in_shell(f"trap '' HUP; {command}") == (0, "on", "")


def test_fault_080_the_program_can_be_stopped_and_continued() -> None:
    scene = "terminal.write('ready\\n'); import time; time.sleep(0.3); terminal.write('done\\n')"
    with probe.start("play", scene) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=60) == (b"done\n", b"")
    assert process.returncode == 0


@pytest.mark.filterwarnings("ignore:.*forkpty:DeprecationWarning")
@pytest.mark.parametrize(("term", "written"), [("xterm", "\x1b[?25h\r\n"), ("dumb", "\r\n")])
def test_a_signal_that_ends_at_once_shows_the_cursor(term: str, written: str) -> None:
    """A progress bar may have hidden it."""
    code = (
        "import os; from llamacli.cli import signals;"
        "signals.end_at_once(); os.kill(os.getpid(), 15)"
    )
    out, exit_code = pexpect.run(
        shlex.join([sys.executable, "-c", code]),
        env=probe.environment(TERM=term),
        encoding="utf-8",
        withexitstatus=True,
    )
    assert (out, exit_code) == (written, 128 + signal.SIGTERM)
