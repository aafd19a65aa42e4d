"""The program: a command line in, an exit code out. Only here exceptions become exit codes."""

import errno
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from llamacli import errors
from llamacli.cli import signals
from llamacli.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    import typer

    from llamacli.cli.console import Terminal

EXIT_CODES: dict[type, ExitCode] = {
    errors.RequestError: ExitCode.USAGE,
    errors.ArtifactError: ExitCode.BAD_ARTIFACT,
    errors.AuthenticationError: ExitCode.AUTHENTICATION,
    errors.NetworkError: ExitCode.NETWORK,
    errors.NotFoundError: ExitCode.NOT_FOUND,
    errors.LocalIOError: ExitCode.LOCAL_IO,
    errors.ResourceError: ExitCode.RESOURCES,
}


def main() -> NoReturn:
    """Run the command line of this process, and exit."""
    signals.end_at_once()
    from llamacli.cli.console import Terminal

    code = run_command_line(sys.argv[1:], Terminal.of_process())
    # Everything is written and closed. Python would take torch apart for 0.4 s, and flush stdout
    # once more, which fails or blocks where nobody reads it.
    os._exit(code)


def run_command_line(args: Sequence[str], terminal: "Terminal") -> int:
    """Run one command line on a terminal, which a test may have made, and return the exit code."""
    try:
        return _execute(args, terminal)
    except signals.Interrupted as interrupted:
        terminal.end_line()
        return interrupted.exit_code
    except Exception as error:
        return _report(error, terminal)


def _execute(args: Sequence[str], terminal: "Terminal") -> int:
    import typer

    from llamacli.cli.commands import app

    command = typer.main.get_command(app)
    try:
        with command.make_context("llamacli", list(args), obj=terminal) as ctx:
            command.invoke(ctx)
    except typer.Exit as done:
        return done.exit_code
    return ExitCode.DONE


def _report(error: Exception, terminal: "Terminal") -> ExitCode:
    if terminal.debug:
        import traceback

        terminal.tell("".join(traceback.format_exception(error)).rstrip())
    known = _explain(error)
    if known is None:
        text = f"{type(error).__name__}: {error} (a bug in llamacli)"
        terminal.error(text, hint="run it again with --debug and report the traceback")
        return ExitCode.BUG
    terminal.error(str(known), hint=known.hint)
    return next(EXIT_CODES[base] for base in type(known).__mro__ if base in EXIT_CODES)


def _explain(error: Exception) -> errors.LlamacliError | None:
    """The error in llamacli's words; None is one that nobody foresaw."""
    import typer

    if isinstance(error, errors.LlamacliError):
        return error
    if isinstance(error, typer.TyperException):
        return _explain_usage(error)
    if _is_out_of_memory(error):
        return errors.ResourceError(
            f"out of memory: {error}", hint="use a smaller or quantized model, or a shorter context"
        )
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        return errors.LocalIOError(f"{place}{error.strerror or error}")
    return None


def _explain_usage(error: "typer.TyperException") -> errors.RequestError:
    text = error.format_message().replace("Value error, ", "")
    ctx, param = getattr(error, "ctx", None), getattr(error, "param", None)
    if ctx and param and ctx.get_parameter_source(param.name).name == "ENVIRONMENT":
        text = f"{text} (from {param.envvar})"
    path = ctx.command_path if ctx else "llamacli"
    return errors.RequestError(text[0].lower() + text[1:], hint=f"{path} --help")


def _is_out_of_memory(error: BaseException | None) -> bool:
    if error is None:
        return False
    # torch raises a bare RuntimeError on a CPU, and OutOfMemoryError on other devices; the
    # libraries of CUDA that take memory behind its back have words of their own.
    phrases = (
        "DefaultCPUAllocator: can't allocate memory",
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
    )
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(phrase in str(error) for phrase in phrases)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or _is_out_of_memory(error.__context__)  # a graph whose capture failed says no more
    )
