"""The tree of commands. Each is a function in a file of its own: import it, add it below."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from llamacli.cli import signals
from llamacli.cli.bench import bench
from llamacli.cli.download import download
from llamacli.cli.exit_codes import ExitCode
from llamacli.cli.options import DebugOption
from llamacli.cli.quantize import quantize
from llamacli.cli.run_task import run
from llamacli.cli.visualize_mask import visualize_mask

HELP = """Run Llama models: text in, text out.

\b
Examples:
  echo "Plants create energy through a process known as" | llamacli run
  llamacli run -m meta-llama/Llama-3.2-1B-Instruct "Why is the sky blue?"
  llamacli run -m ./my-model --json < prompt.txt
  llamacli download meta-llama/Llama-3.2-1B
"""
EXIT_CODES = "\b\nExit codes:\n" + "\n".join(f"{code:>5}  {code.meaning}" for code in ExitCode)
VARIABLES = "Each option can be set by a variable too: LLAMACLI_TOP_K=40 is --top-k 40."


def _show_help(ctx: Any, _: Any, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.obj.write(f"{ctx.get_help()}\n")
        raise typer.Exit


def _with_terminal(help_option: Any) -> Any:
    """Typer would print the help by itself, past the terminal's care for broken streams."""
    help_option.callback = _show_help
    return help_option


class Command(TyperCommand):
    """A command: its help has a section for each group of options, and signals interrupt it."""

    def get_help_option(self, ctx: Any) -> Any:
        """-h and --help."""
        return _with_terminal(super().get_help_option(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options in the order and the groups of their declaration."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            panel = "Arguments" if param.param_type_name == "argument" else "General"
            record = param.get_help_record(ctx)
            if record:
                record = (record[0].replace(" <list[str]>", ""), record[1])  # tells nobody much
                title = getattr(param, "rich_help_panel", None) or panel
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
        formatter.write_paragraph()
        formatter.write_text(VARIABLES)

    def invoke(self, ctx: Any) -> Any:
        """Run the body, which may have something to clean up."""
        with signals.interruptible():
            return super().invoke(ctx)


class Group(TyperGroup):
    """All commands together."""

    def get_help_option(self, ctx: Any) -> Any:
        """-h and --help."""
        return _with_terminal(super().get_help_option(ctx))


app = typer.Typer(
    cls=Group,
    help=HELP,
    epilog=EXIT_CODES,
    add_completion=False,  # completions/ has scripts that start no Python
    rich_markup_mode=None,  # plain help is twice as fast
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(ctx: typer.Context, value: bool) -> None:
    if value:
        from importlib.metadata import version

        ctx.obj.write(f"llamacli {version('llamacli')}\n")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
]


@app.callback(invoke_without_command=True)
def llamacli(
    ctx: typer.Context, version: VersionOption = False, debug: DebugOption = False
) -> None:
    """What holds before any command; without one, the help goes to stderr."""
    if ctx.invoked_subcommand is None:
        ctx.obj.tell(ctx.get_help())
        raise typer.Exit(ExitCode.USAGE)


app.command("run", cls=Command)(run)
app.command("download", cls=Command)(download)
app.command("quantize", cls=Command)(quantize)
app.command("visualize-mask", cls=Command)(visualize_mask)
app.command("bench", cls=Command)(bench)
