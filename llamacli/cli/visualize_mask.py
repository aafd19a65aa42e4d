"""llamacli visualize-mask: who may attend to whom, as a picture."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from llamacli.cli.choices import AttnImplementation
from llamacli.cli.console import Terminal
from llamacli.cli.exit_codes import ExitCode
from llamacli.cli.option_class import takes_options
from llamacli.cli.prompt_sources import Records, collect_prompts
from llamacli.cli.run import open_folder
from llamacli.cli.run_options import RunOptions, named_by_option
from llamacli.cli.run_weights import load_weights
from llamacli.cli.visualize_mask_options import VisualizeMaskOptions, checked
from llamacli.errors import RequestError, printable

if TYPE_CHECKING:
    from llamacli.mask_view.rows import MaskRow
    from llamacli.model_folder import ModelFolder

SHORT_HELP = """\
llamacli visualize-mask shows which tokens see which. Give it a text:

  llamacli visualize-mask "Plants create energy through a process known as"
  llamacli visualize-mask --tokens 12 --sliding-window 4

llamacli visualize-mask --help lists all options."""


def show_mask(ctx: typer.Context, options: VisualizeMaskOptions) -> None:
    """Show which tokens may attend to which; with --attention, how much they do.

    A row of the picture is a token that asks, a column one that may be seen. It goes to stdout, or
    with -o to a file, whose name then goes to stdout.

    \b
    Examples:
      llamacli visualize-mask "Plants create energy through a process known as"
      llamacli visualize-mask --tokens 12 --sliding-window 4 -o mask.svg
      printf 'The moon\\nThe sun and the stars\\n' | llamacli visualize-mask --padding right
      llamacli visualize-mask --tokens 12 --step 7 --static-cache 16
      llamacli visualize-mask "The sun warms the stone" --attention --layer 2 --head 0
    """
    terminal: Terminal = ctx.obj
    options = checked(ctx, options)
    has_text = options.text or options.prompt_file is not None or not terminal.stdin_is_tty
    if options.tokens is None and not has_text:
        terminal.tell(SHORT_HELP)
        raise typer.Exit(ExitCode.USAGE)
    from llamacli.mask_view.rows import token_rows

    facts: dict[str, Any] = {"model": None, "revision": None, "attention": None}
    with named_by_option(ctx):
        if options.tokens is not None:
            rows = token_rows(options.lengths, options.mask)
        else:
            rows = rows_of_text(terminal, options, facts)
    write(terminal, options, rows, facts)


def rows_of_text(
    terminal: Terminal, options: VisualizeMaskOptions, facts: dict[str, Any]
) -> "list[MaskRow]":
    """The rows that the texts make, with the model's weights if they are asked for."""
    from llamacli.mask_view.rows import text_rows

    records = collect_prompts(
        terminal, options.text or (), options.prompt_file, Records.LINES_OR_WHOLE
    )
    folder = open_folder(terminal, options, weights=options.attention)
    facts |= {"model": options.model or "demo", "revision": folder.revision}
    rows = text_rows([record.prompt or "" for record in records], folder.tokenizer, options.mask)
    length, context = rows[0].layout.length, folder.config.context_length
    if length > context:
        problem = f"the text has {length:,} tokens, the model's context {context:,}"
        if options.attention:
            raise RequestError(problem, hint="shorten it")
        terminal.note(problem)
    return add_weights(terminal, options, folder, rows, facts) if options.attention else rows


def add_weights(
    terminal: Terminal,
    options: VisualizeMaskOptions,
    folder: "ModelFolder",
    rows: "Sequence[MaskRow]",
    facts: dict[str, Any],
) -> "list[MaskRow]":
    """Load the model, and look at one of its layers."""
    layers, heads = folder.config.num_hidden_layers, folder.config.num_attention_heads
    layer = layers - 1 if options.layer is None else options.layer
    for name, number, count in (("layer", layer, layers), ("head", options.head or 0, heads)):
        if not 0 <= number < count:
            raise RequestError(f"{name} must be 0 … {count - 1} of this model, got {number}")
    terminal.note(f"loading {printable(facts['model'])}: {layers} layers of {heads} heads")
    length = rows[0].layout.length
    loading = RunOptions(attn_implementation=AttnImplementation.EAGER)
    model = load_weights(terminal, loading, folder, len(rows), length).model
    from llamacli.attention_visualizer import attention_weights

    found = attention_weights(
        model,
        [row.token_ids for row in rows],
        layer=layer,
        head=options.head,
    )
    which = f"head {options.head} of 0-{heads - 1}"
    which = f"mean of {heads} heads" if options.head is None else which
    facts["attention"] = {"layer": layer, "head": options.head}
    return [
        replace(
            row,
            title=f"attention weights, layer {layer} of 0-{layers - 1}, {which}; {row.title}",
            weights=[each[q][: row.layout.keys.stop] for q in row.layout.queries],
        )
        for row, each in zip(rows, found.tolist(), strict=True)
    ]


def write(
    terminal: Terminal,
    options: VisualizeMaskOptions,
    rows: "Sequence[MaskRow]",
    facts: dict[str, Any],
) -> None:
    """The picture, JSON, or a file and its name."""
    from llamacli.mask_view.files import save, to_json
    from llamacli.mask_view.text import Paper, draw

    if options.output is not None:
        save(options.output, rows, facts, "ascii" if options.ascii else "utf-8")
        terminal.write(f"{options.output}\n")
    elif options.json:
        terminal.write(to_json(rows, facts))
    else:
        width, height = terminal.stdout_size
        paper = Paper(width=width, height=height, color=terminal.uses_color, ascii=options.ascii)
        terminal.write_picture(draw(rows, paper))


visualize_mask = takes_options(show_mask, VisualizeMaskOptions)
