"""The command line of `visualize-mask`: its options, and what contradicts what."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llamacli.cli import options as opt
from llamacli.cli.console import Color
from llamacli.cli.run_options import named_by_option, origin, without_contradictions
from llamacli.errors import RequestError, printable
from llamacli.mask_view.layout import MaskOptions

_TEXT, _MASK, _ATTENTION, _OUTPUT = "The text", "The mask", "Attention weights", "Output"

_CONTRADICTIONS = (
    *(("tokens", name) for name in ("model", "text", "prompt_file", "attention")),
    *(("attention", name) for name in ("sliding_window", "prefix_length", "packed")),
    ("attention", "static_cache"),
    ("packed", "padding"),
    ("output", "json"),
)


class Padding(StrEnum):
    """Where the shorter rows of a batch are filled up."""

    LEFT = "left"
    RIGHT = "right"


TextArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="TEXT", help="The text; each line of stdin is a row of a batch."),
]
TextFileOption = Annotated[
    Path | None,
    opt.option(_TEXT, "-f", "--prompt-file", help="Read the text from a file; - is stdin."),
]
TokensOption = Annotated[
    str | None,
    opt.option(
        _TEXT,
        "--tokens",
        metavar="N",
        help="So many tokens, without text and model; 5,3 is a batch of two rows.",
    ),
]
SlidingWindowOption = Annotated[
    int | None,
    opt.option(_MASK, "--sliding-window", metavar="N", help="A token sees N, itself included."),
]
PaddingOption = Annotated[
    Padding, opt.option(_MASK, "--padding", help="The side where shorter rows are filled up.")
]
PackedOption = Annotated[
    bool, opt.option(_MASK, "--packed", help="The lines are documents packed into one row.")
]
PrefixLengthOption = Annotated[
    int | None,
    opt.option(
        _MASK,
        "--prefix-length",
        metavar="N",
        help="The first N tokens see each other in both directions (prefix-LM).",
    ),
]
StepOption = Annotated[
    int | None,
    opt.option(
        _MASK, "--step", metavar="T", help="Only the decode step of token T, against the cache."
    ),
]
StaticCacheOption = Annotated[
    int | None,
    opt.option(_MASK, "--static-cache", metavar="N", help="Show a static cache of N slots."),
]
AttentionOption = Annotated[
    bool, opt.option(_ATTENTION, "--attention", help="Show what the model really attends to.")
]
LayerOption = Annotated[
    int | None,
    opt.option(
        _ATTENTION, "--layer", metavar="N", help="Number of the layer.", show_default="the last"
    ),
]
HeadOption = Annotated[
    int | None,
    opt.option(
        _ATTENTION, "--head", metavar="N", help="Number of the head.", show_default="mean of all"
    ),
]
OutputOption = Annotated[
    Path | None,
    opt.option(
        _OUTPUT,
        "-o",
        "--output",
        metavar="FILE",
        help="Write a file: .svg, .html, .png, .txt, .csv or .json.",
    ),
]
JsonOption = Annotated[
    bool, opt.option(_OUTPUT, "--json", help="One JSON object with tokens, mask and counts.")
]
AsciiOption = Annotated[bool, opt.option(_OUTPUT, "--ascii", help="Only ASCII characters.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualizeMaskOptions:
    """The command line of one picture, in the order of its help."""

    text: TextArgument = None
    model: opt.ModelOption = None
    revision: opt.RevisionOption = None
    offline: opt.OfflineOption = False
    prompt_file: TextFileOption = None
    tokens: TokensOption = None
    sliding_window: SlidingWindowOption = None
    padding: PaddingOption = Padding.LEFT
    packed: PackedOption = False
    prefix_length: PrefixLengthOption = None
    step: StepOption = None
    static_cache: StaticCacheOption = None
    attention: AttentionOption = False
    layer: LayerOption = None
    head: HeadOption = None
    output: OutputOption = None
    json: JsonOption = False
    ascii: AsciiOption = False
    color: opt.ColorOption = Color.AUTO
    quiet: opt.QuietOption = False
    debug: opt.DebugOption = False

    @property
    def mask(self) -> MaskOptions:
        """The mask that is asked for.

        Raises:
            RequestError: a value outside its range.
        """
        return MaskOptions(
            sliding_window=self.sliding_window,
            prefix_length=self.prefix_length,
            padding="left" if self.padding is Padding.LEFT else "right",
            packed=self.packed,
            step=self.step,
            static_cache=self.static_cache,
        )

    @property
    def lengths(self) -> list[int]:
        """The numbers of --tokens.

        Raises:
            RequestError: they are no numbers above 0.
        """
        given = (self.tokens or "").split(",")
        if not all(number.isdecimal() and len(number) < 20 and int(number) for number in given):
            shown = printable(repr(self.tokens))
            raise RequestError(f"tokens must be a number such as 8, or several: 5,3; got {shown}")
        return [int(number) for number in given]


def checked(ctx: typer.Context, options: VisualizeMaskOptions) -> VisualizeMaskOptions:
    """The options without contradictions: an option beats a variable that contradicts it.

    Raises:
        RequestError: two options contradict each other, or a value is outside its range.
        LocalIOError: the file cannot be written.
    """
    options = without_contradictions(ctx, options, _CONTRADICTIONS)
    for name in ("layer", "head"):
        if getattr(options, name) is not None and not options.attention:
            raise RequestError(f"{origin(ctx, name)} needs --attention")
    with named_by_option(ctx):
        _ = options.mask, options.tokens is None or options.lengths
    if options.output is not None:
        from llamacli.mask_view.files import check_output

        check_output(options.output)
    return options
