"""The program with one more command, whose argument is Python code that sees a `terminal`."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer

from llamacli.cli import app, commands, options

PROGRAM = [sys.executable, "-m", "tests.probe"]


def play(
    ctx: typer.Context,
    scene: str,
    top_k: options.TopKOption = None,
    dtype: options.DtypeOption = options.Dtype.AUTO,
    color: options.ColorOption = options.Color.AUTO,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Play a scene."""
    exec(scene, {"terminal": ctx.obj})


def register() -> None:
    """Add the command to the program's."""
    commands.app.command("play", cls=commands.Command)(play)


def environment(**variables: str) -> dict[str, str]:
    """What this process has but for what would change the program."""
    ours = ("LLAMACLI_", "LC_", "LANG", "NO_COLOR", "FORCE_COLOR", "PYTHONIOENCODING", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"TERM": "xterm"} | variables


def start(*args: str, env: dict[str, str] | None = None, **settings: Any) -> subprocess.Popen[Any]:
    """Start the program with pipes for stdin, stdout and stderr, unless told otherwise."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(
        [*PROGRAM, *args],
        cwd=Path(__file__).parents[1],
        env=environment(**env or {}),
        **pipes | settings,
    )


def run(
    *args: str, stdin: bytes = b"", env: dict[str, str] | None = None, **settings: Any
) -> tuple[int, bytes, str]:
    """Exit code, stdout and stderr of the program."""
    with start(*args, env=env, **settings) as process:
        out, err = process.communicate(stdin, timeout=60)
    return process.returncode, out, (err or b"").decode()


def in_shell(line: str, **variables: str) -> tuple[int, str, str]:
    """A line of bash in which {play} starts the probe; the exit code is that of the probe."""
    program = f"{shlex.join(PROGRAM)} play"
    done = subprocess.run(
        ["bash", "-c", f"{line.replace('{play}', program)}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env=environment(**variables),
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


if __name__ == "__main__":
    register()
    app.main()
