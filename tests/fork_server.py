"""The program in processes of its own that start at once: forks of one that has imported torch."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self

from llamacli.cli import app, signals
from tests.probe import environment

LIBRARIES = [
    f"llamacli.{name}"
    for name in (
        "cli.commands cli.quantize_report quantization_report quantization_plan conversion"
        " output_folder loading hub model_folder"
    ).split()
]


class ForkServer:
    """Runs command lines one after the other, and may send each a signal on its way."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            env=environment(),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def run(self, *args: object, signum: int = 0, after: float = 0) -> tuple[int, str, str]:
        """Exit code, stdout and stderr; `after` so many seconds it gets the signal, 0 is none."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        print(json.dumps([[*map(str, args)], signum, after]), file=stdin, flush=True)
        code, out, err = json.loads(stdout.readline())
        return code, out, err


def serve() -> None:
    """Answer requests until there are no more."""
    for library in LIBRARIES:
        importlib.import_module(library)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where pytest runs in the background
    signals.end_at_once()
    for line in sys.stdin:
        print(json.dumps(run_fork(*json.loads(line))), flush=True)
    os._exit(0)  # Python would take torch apart


def run_fork(args: list[str], signum: int, after: float) -> tuple[int, str, str]:
    with TemporaryFile() as out, TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv[1:] = args
            app.main()
        time.sleep(after)
        os.kill(pid, signum)  # nobody else has its number before it is waited for
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return code, *(os.pread(file.fileno(), 1_000_000, 0).decode() for file in (out, err))


if __name__ == "__main__":
    serve()
