"""The completion scripts, as the shells themselves see them. UPDATE=1 writes them anew."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "completions"
NAMES = ["_llamacli", "llamacli.bash", "llamacli.fish"]

# Python 3.12 and later warn of a fork beside torch's threads; pexpect starts a program right away.
pytestmark = pytest.mark.filterwarnings("ignore:.*forkpty:DeprecationWarning")


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"no {shell} here")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a file, a folder, and a cache of two models and a data set."""
    for name in ("models--org--tiny", "models--gpt2", "datasets--org--data"):
        (tmp_path / "home/hub" / name).mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "a prompt.txt").touch()
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    return kept | {"HF_HOME": str(place / "home"), "HOME": str(place), "TERM": "dumb"}


def test_the_shipped_scripts_are_those_of_the_command_tree(tmp_path: Path) -> None:
    target = SCRIPTS if "UPDATE" in os.environ else tmp_path
    command = [sys.executable, "-m", "llamacli.cli.completions", "--write", str(target)]
    subprocess.run(command, check=True)
    assert sorted(path.name for path in target.iterdir()) == NAMES
    for name in NAMES:
        assert (SCRIPTS / name).read_text() == (target / name).read_text()


def test_one_script_can_be_printed() -> None:
    command = [sys.executable, "-m", "llamacli.cli.completions", "bash"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == (SCRIPTS / "llamacli.bash").read_text()


# --------------------------------------------------------------------------------------------- bash

BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_llamacli
printf '%s\\n' "${COMPREPLY[@]}"
"""


def bash(words: list[str], place: Path) -> list[str]:
    done = subprocess.run(
        ["bash", "-c", BASH, "bash", str(SCRIPTS / "llamacli.bash"), *words],
        capture_output=True,
        text=True,
        cwd=place,
        env=environment(place),
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["llamacli", "r"], ["run"]),
        (["llamacli", "--debug", "r"], ["run"]),
        (["llamacli", "--v"], ["--version"]),
        (["llamacli", "run", "--top"], ["--top-k", "--top-p"]),
        (["llamacli", "run", "some", "words", "--see"], ["--seed"]),
        (["llamacli", "run", "--dtype", "fl"], ["float32", "float16"]),
        (["llamacli", "run", "--dtype", "=", "b"], ["bfloat16"]),
        (["llamacli", "run", "--dtype", "="], ["auto", "float32", "bfloat16", "float16"]),
        (["llamacli", "run", "-m", ""], ["gpt2", "org/tiny"]),
        (["llamacli", "run", "--model", "o"], ["org/tiny"]),
        (["llamacli", "download", ""], ["gpt2", "org/tiny"]),
        (["llamacli", "download", "--remove", "o"], ["org/tiny"]),
        (["llamacli", "run", "--seed", ""], [""]),
        (["llamacli", "run", "wo"], [""]),
    ],
)
def test_bash_completes(words: list[str], found: list[str], place: Path) -> None:
    assert bash(words, place) == found


class Shell:
    """A shell in a pseudo-terminal."""

    def __init__(self, command: list[str], place: Path, setup: str) -> None:
        self.child: Any = pexpect.spawn(
            command[0],
            command[1:],
            cwd=str(place),
            env=environment(place) | {"INPUTRC": "/dev/null"},
            encoding="utf-8",
            dimensions=(40, 200),
            timeout=20,
        )
        self.child.sendline(f"{setup}; PS1='now'; PS1=$PS1'> '")
        self.child.expect_exact("now> ")

    def complete(self, line: str, expected: str) -> None:
        """TAB after the line makes it the expected one."""
        self.child.send(f"{line}\t")
        self.child.expect_exact(expected)
        self.child.sendcontrol("u")  # empties the line


def test_bash_says_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    assert bash(["llamacli", "run", "-m", ""], tmp_path) == [""]


def test_bash_completes_files_and_folders(place: Path) -> None:
    shell = Shell(["bash", "--norc", "-i"], place, f"source {SCRIPTS / 'llamacli.bash'}")
    shell.complete("llamacli run -f a", "llamacli run -f a\\ prompt.txt ")
    shell.complete("llamacli run -m ou", "llamacli run -m outside/")
    shell.complete("llamacli run -m or", "llamacli run -m org/tiny ")
    shell.complete("llamacli run --dtype=bf", "llamacli run --dtype=bfloat16 ")


# ---------------------------------------------------------------------------------------------- zsh


@needs("zsh")
def test_zsh_completes(place: Path) -> None:
    setup = f"fpath=({SCRIPTS} $fpath); autoload -Uz compinit; compinit -u -D"
    shell = Shell(["zsh", "-f", "-i"], place, setup)
    shell.complete("llamacli r", "llamacli run ")
    shell.complete("llamacli --v", "llamacli --version ")
    shell.complete("llamacli run --see", "llamacli run --seed=")
    shell.complete("llamacli run some words --gree", "llamacli run some words --greedy ")
    shell.complete("llamacli run --dtype=bf", "llamacli run --dtype=bfloat16")
    shell.complete("llamacli run -m or", "llamacli run -m org/tiny ")
    shell.complete("llamacli run -m ou", "llamacli run -m outside/")
    shell.complete("llamacli run -f a", "llamacli run -f a\\ prompt.txt ")
    shell.complete("llamacli download --verify or", "llamacli download --verify org/tiny ")


# --------------------------------------------------------------------------------------------- fish


def fish(line: str, place: Path) -> list[str]:
    script = f"source {SCRIPTS / 'llamacli.fish'}; complete -C '{line}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        capture_output=True,
        text=True,
        cwd=place,
        env=environment(place),
    )
    assert done.stderr == ""
    return [shown.split("\t")[0] for shown in done.stdout.splitlines()]


@needs("fish")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("llamacli ", ["bench", "download", "quantize", "run", "visualize-mask"]),
        ("llamacli download ", ["gpt2", "org/tiny"]),
        ("llamacli --v", ["--version"]),
        ("llamacli run --top", ["--top-k", "--top-p"]),
        ("llamacli run --dtype b", ["bfloat16"]),
        ("llamacli run --dtype=b", ["--dtype=bfloat16"]),
        ("llamacli run -m ", ["gpt2", "home/", "org/tiny", "outside/"]),
        ("llamacli run -f ", ["a prompt.txt", "home/", "outside/"]),
        ("llamacli run ", []),
        ("llamacli run --seed ", []),
    ],
)
def test_fish_completes(line: str, found: list[str], place: Path) -> None:
    assert fish(line, place) == found


@needs("fish")
def test_fish_says_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    assert fish("llamacli run -m ", tmp_path) == []
