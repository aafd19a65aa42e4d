import io
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from llamacli import errors
from llamacli.cli import app, commands
from llamacli.cli.app import run_command_line
from llamacli.cli.console import Terminal
from llamacli.cli.exit_codes import ExitCode
from tests import probe

HEAVY = "torch numpy transformers huggingface_hub sentencepiece tokenizers jinja2 rich".split()


@pytest.fixture(autouse=True, scope="module")
def _one_more_command() -> Iterator[None]:
    probe.register()
    yield
    commands.app.registered_commands.pop()


def here(*args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line that runs in this process."""
    out, err = io.BytesIO(), io.BytesIO()
    code = run_command_line(args, Terminal(io.BytesIO(), out, err, {}))
    return code, out.getvalue().decode(), err.getvalue().decode()


# ---------------------------------------------------------------------------- errors and exit codes


def leaves(root: type) -> Iterator[type]:
    for child in root.__subclasses__():
        yield from leaves(child) if child.__subclasses__() else [child]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("RequestError", 2),
        ("ConfigError", 3),
        ("CheckpointError", 3),
        ("TokenizerError", 3),
        ("TemplateError", 3),
        ("AuthenticationError", 4),
        ("NetworkError", 5),
        ("NotFoundError", 6),
        ("LocalIOError", 7),
        ("ResourceError", 8),
    ],
)
def test_each_error_has_an_exit_code_a_line_and_a_hint(name: str, code: int) -> None:
    scene = f"from llamacli import errors\nraise errors.{name}('bad\\x1b\\nthing', hint='do it')"
    assert here("play", scene) == (code, "", "llamacli: error: bad\\x1b thing\nhint: do it\n")


def test_no_error_class_lacks_an_exit_code() -> None:
    for leaf in leaves(errors.LlamacliError):
        assert any(base in app.EXIT_CODES for base in leaf.__mro__), leaf


def test_a_bug_is_one_line_that_says_how_to_get_the_traceback() -> None:
    assert here("play", "1 / 0") == (
        1,
        "",
        "llamacli: error: ZeroDivisionError: division by zero (a bug in llamacli)\n"
        "hint: run it again with --debug and report the traceback\n",
    )


@pytest.mark.parametrize("args", [["--debug", "play", "1 / 0"], ["play", "--debug", "1 / 0"]])
def test_debug_shows_the_traceback(args: list[str]) -> None:
    code, _, err = here(*args)
    assert code == 1
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.splitlines()[-2].startswith("llamacli: error: ZeroDivisionError")


def test_debug_can_be_set_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMACLI_DEBUG", "1")
    assert "Traceback" in here("play", "1 / 0")[2]


@pytest.mark.parametrize(
    "scene",
    [
        "import torch; torch.empty(2**50)",
        "import torch; raise torch.OutOfMemoryError('CUDA out of memory')",
        "bytearray(2**60)",
        "raise RuntimeError('CUDA error: out of memory')",
        "raise OSError(12, 'Cannot allocate memory')",
    ],
)
def test_fault_119_memory_that_is_not_there_is_8_with_a_hint(scene: str) -> None:
    code, _, err = here("play", scene)
    assert code == 8
    assert err.startswith("llamacli: error: out of memory")
    assert err.splitlines()[1].startswith("hint: use a smaller or quantized model")


def test_an_operating_system_error_names_the_file() -> None:
    code, _, err = here("play", "open('/no/such\\x1bfile')")
    assert (code, err) == (7, "llamacli: error: /no/such\\x1bfile: No such file or directory\n")


# -------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("args", "err"),
    [
        (
            ["plya"],
            "no such command 'plya'. Did you mean 'play'?\nhint: llamacli --help",
        ),
        (
            ["play", "--top-kk", "3"],
            "no such option: --top-kk (Possible options: --top-k)\nhint: llamacli play --help",
        ),
        (["play", "--top-k"], "option '--top-k' requires an argument.\nhint: llamacli --help"),
        (["play"], "missing argument 'scene'.\nhint: llamacli play --help"),
        (
            ["play", "--dtype", "int4", ""],
            "invalid value for '--dtype': 'int4' is not one of 'auto', 'float32', 'bfloat16', "
            "'float16'.\nhint: llamacli play --help",
        ),
        (["\x1b[31m"], "no such command '\\x1b[31m'.\nhint: llamacli --help"),
    ],
)
def test_fault_069_a_wrong_command_line_is_one_line_with_a_way_out(
    args: list[str], err: str
) -> None:
    assert here(*args) == (2, "", f"llamacli: error: {err}\n")


def test_fault_071_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMACLI_TOP_K", "many")
    code, _, err = here("play", "")
    assert code == 2
    assert err.splitlines()[0].endswith("(from LLAMACLI_TOP_K)")
    code, _, err = here("play", "", "--top-k", "few")
    assert code == 2
    assert "LLAMACLI_TOP_K" not in err


def test_a_bare_call_shows_the_help_on_stderr() -> None:
    code, out, err = here()
    assert (code, out) == (2, "")
    assert err == here("--help")[1]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_leads_with_examples_and_ends_with_all_exit_codes(flag: str) -> None:
    code, out, err = here(flag)
    assert (code, err) == (0, "")
    assert out.index("Examples:") < out.index("Options:") < out.index("Commands:")
    codes = out[out.index("Exit codes:") :].splitlines()[1:]
    assert [line.split()[0] for line in codes] == [str(int(code)) for code in ExitCode]


def test_help_of_a_command_groups_its_options() -> None:
    code, out, err = here("play", "-h")
    assert (code, err) == (0, "")
    titles = [line for line in out.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == ["Arguments:", "Sampling:", "The model:", "Output:", "General:"]


def test_version_is_one_line() -> None:
    code, out, err = here("--version")
    assert (code, err) == (0, "")
    assert out.startswith("llamacli ")
    assert out.count("\n") == 1


def test_every_option_has_a_long_name_a_variable_and_help() -> None:
    group: Any = typer.main.get_command(commands.app)
    for command in group.commands.values():
        for param in command.params:
            if param.param_type_name == "option":
                *_, long = [name for name in param.opts if name.startswith("--")]
                assert param.envvar == "LLAMACLI_" + long[2:].replace("-", "_").upper()
                assert param.help.endswith(".")


@pytest.mark.parametrize("args", ["--help", "--version", "run --help", "run --nonsense", "", "rnu"])
def test_what_needs_no_model_imports_nothing_heavy(args: str) -> None:
    script = (
        "import sys; from llamacli.cli import app; from llamacli.cli.console import Terminal\n"
        "app.run_command_line(sys.argv[1:], Terminal.of_process())\n"
        f"print(*set({HEAVY}) & set(sys.modules), file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, *args.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == ""


# ------------------------------------------------------------------------------------------ streams


@pytest.mark.parametrize("reader", ["head -n 1 > /dev/null", "true"])
def test_fault_075_nobody_reads_stdout_ends_in_silence(reader: str) -> None:
    scene = "while True: terminal.write('line\\n')"
    assert probe.in_shell(f'{{play}} "{scene}" | {reader}') == (141, "", "")


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [("> /dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
)
def test_fault_076_stdout_that_cannot_be_written_is_7(redirection: str, reason: str) -> None:
    scene = "terminal.write('text')"
    expected = (7, "", f"llamacli: error: cannot write to stdout: {reason}\n")
    assert probe.in_shell(f'{{play}} "{scene}" {redirection}') == expected


def test_fault_076_help_that_cannot_be_written_is_7() -> None:
    code, _, err = probe.in_shell("{play} --help > /dev/full")
    assert (code, err) == (7, "llamacli: error: cannot write to stdout: No space left on device\n")


@pytest.mark.parametrize("redirection", ["2>&-", "2> /dev/full"])
def test_stderr_that_cannot_be_written_stops_nothing(redirection: str) -> None:
    scene = "terminal.note('lost'); terminal.write('text')"
    assert probe.in_shell(f'{{play}} "{scene}" {redirection}') == (0, "text", "")


def test_fault_057_a_closed_stdin_is_empty() -> None:
    scene = "terminal.write(repr(terminal.read_stdin()))"
    assert probe.in_shell(f'{{play}} "{scene}" <&-') == (0, "b''", "")


def test_fault_063_endless_stdin_is_refused() -> None:
    line = 'yes | {play} "terminal.read_stdin()"; (exit ${PIPESTATUS[1]})'
    assert probe.in_shell(line) == (2, "", "llamacli: error: stdin holds more than 64 MB\n")


@pytest.mark.parametrize(
    "variables",
    [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}],
)
def test_fault_082_stdout_and_stderr_are_utf8_in_every_locale(variables: dict[str, str]) -> None:
    scene = r"text = '\xe9\U0001f999\ud800'; terminal.write(text); terminal.note(text)"
    code, out, err = probe.run("play", scene, env=variables)
    assert (code, out) == (0, "é🦙?".encode())
    assert err == "llamacli: note: é🦙\\ud800\n"


def test_fault_084_libraries_are_silent_and_llamacli_logs_notes() -> None:
    scene = (
        "import logging, warnings\n"
        "with terminal.importing(): pass\n"
        "warnings.warn('deprecated')\n"
        "logging.getLogger('torchao').warning('no kernels')\n"
        "logging.getLogger('llamacli.config').warning('unknown key %s', 'a\\nb')\n"
        "logging.getLogger('llamacli.config').info('nothing')\n"
    )
    assert probe.run("play", scene) == (0, b"", "llamacli: note: unknown key a b\n")
    _, _, err = probe.run("play", scene, "--debug")
    assert "deprecated" in err
    assert "no kernels" in err
