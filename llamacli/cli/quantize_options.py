"""The command line of `quantize`: its options, and what contradicts what."""

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llamacli.atomic import check_writable
from llamacli.cli import options as opt
from llamacli.cli.run_options import origin
from llamacli.errors import RequestError, printable

_WEIGHTS, _QUALITY, _OUTPUT = "The weights", "Quality", "Output"


class Bits(StrEnum):
    """Of a weight."""

    FOUR = "4"
    EIGHT = "8"


class GroupSize(StrEnum):
    """Weights of a row that share a scale."""

    G32 = "32"
    G64 = "64"
    G128 = "128"
    G256 = "256"


class Algorithm(StrEnum):
    """How scale and zero point are chosen."""

    RTN = "rtn"
    MSE = "mse"
    HQQ = "hqq"


ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A folder or a Hugging Face name.",
        show_default="the small demo model",
    ),
]
ThreadsOption = Annotated[
    int | None,
    opt.option(
        _OUTPUT, "-t", "--threads", min=1, help="CPU threads.", show_default="the physical cores"
    ),
]
OutputOption = Annotated[
    Path | None, opt.option(_OUTPUT, "-o", "--output", metavar="DIR", help="The folder to write.")
]
ForceOption = Annotated[bool, opt.option(_OUTPUT, "--force", help="Replace a model that is there.")]
DryRunOption = Annotated[
    bool, opt.option(_OUTPUT, "--dry-run", help="Show the plan and the sizes, write no model.")
]
ReportOption = Annotated[
    Path | None, opt.option(_OUTPUT, "--report", help="Write the report as JSON, too.")
]
BitsOption = Annotated[Bits, opt.option(_WEIGHTS, "--bits", help="Bits of a weight.")]
GroupSizeOption = Annotated[
    GroupSize, opt.option(_WEIGHTS, "--group-size", help="Weights that share a scale, with 4 bits.")
]
AlgorithmOption = Annotated[
    Algorithm,
    opt.option(
        _WEIGHTS,
        "--algorithm",
        help="Round to nearest (rtn), clip for the least error (mse), half-quadratic (hqq).",
    ),
]
SkipOption = Annotated[
    list[str] | None,
    opt.option(
        _WEIGHTS,
        "--skip",
        metavar="PATTERN",
        help="Layers to leave as they are: '*.down_proj', lm_head. Repeatable.",
    ),
]
MixedOption = Annotated[
    list[str] | None,
    opt.option(
        _WEIGHTS,
        "--mixed",
        metavar="PATTERN=BITS",
        help="Other bits for some layers: '*.layers.0.*=8'. Repeatable, the last counts.",
        show_default="lm_head=8",
    ),
]
DequantizeOption = Annotated[
    bool, opt.option(_WEIGHTS, "--dequantize", help="Make a quantized model bfloat16 again.")
]
EvaluateOption = Annotated[
    bool, opt.option(_QUALITY, "--evaluate", help="Compare both models on a text.")
]
TextOption = Annotated[
    Path | None,
    opt.option(
        _QUALITY, "--text", help="The text to compare them on.", show_default="one of llamacli's"
    ),
]
TargetKlOption = Annotated[
    float | None,
    opt.option(
        _QUALITY,
        "--target-kl",
        min=0.0,
        help="Raise the worst layers to 8 bits until the mean KL divergence is at most this.",
        show_default="off",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """The command line of one quantization, in the order of its help."""

    model: ModelArgument = None
    revision: opt.RevisionOption = None
    offline: opt.OfflineOption = False
    bits: BitsOption = Bits.FOUR
    group_size: GroupSizeOption = GroupSize.G128
    algorithm: AlgorithmOption = Algorithm.RTN
    skip: SkipOption = None
    mixed: MixedOption = None
    dequantize: DequantizeOption = False
    evaluate: EvaluateOption = False
    text: TextOption = None
    target_kl: TargetKlOption = None
    output: OutputOption = None
    force: ForceOption = False
    dry_run: DryRunOption = False
    report: ReportOption = None
    threads: ThreadsOption = None
    quiet: opt.QuietOption = False
    debug: opt.DebugOption = False

    @property
    def mixed_bits(self) -> tuple[tuple[str, int], ...]:
        """Pattern and bits of each --mixed.

        Raises:
            RequestError: one is not PATTERN=4 or PATTERN=8.
        """
        pairs = [given.rpartition("=") for given in self.mixed or ()]
        for pattern, _, bits in pairs:
            if not pattern or bits not in ("4", "8"):
                given = printable(repr(f"{pattern}={bits}" if pattern else bits))
                raise RequestError(f"--mixed must be PATTERN=4 or PATTERN=8, got {given}")
        return tuple((pattern, int(bits)) for pattern, _, bits in pairs)


_EXCLUDED = {
    "dequantize": ("bits", "group_size", "algorithm", "skip", "mixed", "target_kl"),
    "dry_run": ("evaluate", "text", "target_kl"),
}


def checked(ctx: typer.Context, options: QuantizeOptions) -> QuantizeOptions:
    """The options without contradictions: an option beats a variable that contradicts it.

    Raises:
        RequestError: two options contradict each other, or one is missing or no number.
        LocalIOError: the report cannot be written.
    """
    pairs = [(name, other) for name, others in _EXCLUDED.items() for other in others]
    if all(bits == 8 for _, bits in options.mixed_bits):
        pairs += [("bits", "group_size"), ("bits", "algorithm")]
    defaults = QuantizeOptions()
    for pair in pairs:
        one, other = (origin(ctx, name) for name in pair)
        is_default = getattr(options, pair[0]) == getattr(defaults, pair[0])
        if is_default or "default" in (one, other):
            continue
        variables = [name for name in pair if origin(ctx, name).startswith("LLAMACLI_")]
        if len(variables) != 1:
            raise RequestError(f"{one} and {other} contradict each other")
        options = replace(options, **{variables[0]: getattr(defaults, variables[0])})
    if options.output is None and not options.dry_run:
        raise RequestError("-o names the folder to write", hint="llamacli quantize MODEL -o DIR")
    if options.target_kl is not None and math.isnan(options.target_kl):
        raise RequestError(f"{origin(ctx, 'target_kl')} must be a number, got nan")
    if options.report is not None:
        check_writable(options.report)
    return options
