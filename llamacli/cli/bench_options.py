"""The command line of `bench`: its options, and what they mean together."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llamacli.atomic import check_writable
from llamacli.benchmark.cases import Case, cases, numbers, pairs
from llamacli.benchmark.shapes import SHAPES, shape
from llamacli.cli import options as opt
from llamacli.cli.choices import Activations, Backend, Dtype
from llamacli.cli.run_options import check_flax_backend, named_by_option
from llamacli.cli.threads import possible
from llamacli.errors import RequestError, printable

_MODEL, _TESTS, _OUTPUT = "The model", "The tests", "Output"


class Format(StrEnum):
    """Of the report."""

    MD = "md"
    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"


ModelsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help="Folders or Hugging Face names.",
        show_default="the small demo model",
    ),
]
ShapeOption = Annotated[
    list[str] | None,
    opt.option(
        _MODEL,
        "--shape",
        metavar="NAME",
        help=f"Random weights of this size, no download: {', '.join(SHAPES)}. Repeatable.",
    ),
]
QuantizeOption = Annotated[
    str, opt.option(_MODEL, "--quantize", metavar="LIST", help="Of none, int4 and int8.")
]
PromptOption = Annotated[
    str,
    opt.option(
        _TESTS,
        "-p",
        "--n-prompt",
        metavar="LIST",
        help="Tokens of a prompt, read at once (pp512); 0 is none.",
    ),
]
NewTokensOption = Annotated[
    str,
    opt.option(
        _TESTS,
        "-n",
        "--n-gen",
        metavar="LIST",
        help="Tokens decoded one by one (tg128).",
    ),
]
BothOption = Annotated[
    str | None,
    opt.option(
        _TESTS, "--pg", metavar="P,N", help="A prompt, then new tokens; ';' separates several."
    ),
]
DepthOption = Annotated[
    str,
    opt.option(
        _TESTS, "-d", "--n-depth", metavar="LIST", help="Tokens in the context before the test."
    ),
]
BatchOption = Annotated[
    str, opt.option(_TESTS, "-b", "--batch-size", metavar="LIST", help="Rows run together.")
]
ThreadsOption = Annotated[
    str | None,
    opt.option(
        _TESTS,
        "-t",
        "--threads",
        metavar="LIST",
        help="CPU threads.",
        show_default="the physical cores; 1 for a small model",
    ),
]
TpOption = Annotated[
    str,
    opt.option(
        _TESTS, "--tp", metavar="LIST", help="Processes that share the model and the threads."
    ),
]
RepetitionsOption = Annotated[
    int, opt.option(_TESTS, "-r", "--repetitions", min=1, help="Of each test, after a warm-up.")
]
FormatOption = Annotated[
    Format, opt.option(_OUTPUT, "-o", "--output-format", help="Of the report on stdout.")
]
VersusOption = Annotated[
    list[str] | None,
    opt.option(
        _TESTS,
        "--versus",
        metavar="PEER",
        help="Measure llama.cpp=PATH/llama-bench,MODEL.gguf or transformers in turns. Repeatable.",
    ),
]
CompareOption = Annotated[
    Path | None,
    opt.option(
        _OUTPUT, "--compare", metavar="FILE", help="An earlier JSON report: what changed since."
    ),
]
FailUnderOption = Annotated[
    float | None,
    opt.option(
        _OUTPUT,
        "--fail-under",
        min=0.0,
        help="Exit with 9 where a test has less than so much of its earlier speed.",
        show_default="off",
    ),
]
PlotOption = Annotated[
    Path | None,
    opt.option(
        _OUTPUT, "--plot", metavar="FILE", help="Draw speed over depth, batch or threads as SVG."
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """The command line of one benchmark, in the order of its help."""

    models: ModelsArgument = None
    shape: ShapeOption = None
    revision: opt.RevisionOption = None
    offline: opt.OfflineOption = False
    backend: opt.BackendOption = Backend.TORCH
    device: opt.DeviceOption = "auto"
    dtype: opt.DtypeOption = Dtype.AUTO
    quantize: QuantizeOption = "none"
    activations: opt.ActivationsOption = Activations.AUTO
    n_prompt: PromptOption = "512"
    n_gen: NewTokensOption = "128"
    pg: BothOption = None
    n_depth: DepthOption = "0"
    batch_size: BatchOption = "1"
    threads: ThreadsOption = None
    tp: TpOption = "1"
    repetitions: RepetitionsOption = 5
    versus: VersusOption = None
    output_format: FormatOption = Format.MD
    compare: CompareOption = None
    fail_under: FailUnderOption = None
    plot: PlotOption = None
    quiet: opt.QuietOption = False
    debug: opt.DebugOption = False

    @property
    def cases(self) -> list[Case]:
        """The tests.

        Raises:
            RequestError: a list is malformed, or there is no test.
        """
        return cases(
            numbers("n_prompt", self.n_prompt),
            numbers("n_gen", self.n_gen),
            pairs("pg", self.pg) if self.pg else [],
            numbers("n_depth", self.n_depth),
            numbers("batch_size", self.batch_size, low=1),
        )

    @property
    def bits(self) -> list[int | None]:
        """Of each form of the weights; None is as they are.

        Raises:
            RequestError: an unknown form.
        """
        known = {"none": None, "int4": 4, "int8": 8}
        names = [name.strip() for name in self.quantize.split(",")]
        for name in names:
            if name not in known:
                forms = "none, int4 and int8"
                raise RequestError(f"quantize must be of {forms}, got {printable(repr(name))}")
        return [known[name] for name in dict.fromkeys(names)]

    @property
    def thread_counts(self) -> list[int]:
        """Numbers of threads to measure with; none stands for the model's default.

        Raises:
            RequestError: no list of numbers.
        """
        if self.threads is None:
            return []
        return list(dict.fromkeys(map(possible, numbers("threads", self.threads, low=1))))

    @property
    def tp_counts(self) -> list[int]:
        """Numbers of ranks to measure with.

        Raises:
            RequestError: no list of numbers.
        """
        return numbers("tp", self.tp, low=1)


def checked(ctx: typer.Context, options: BenchOptions) -> BenchOptions:
    """The options, once it is clear that all their values can be used.

    Raises:
        RequestError: one cannot, or they contradict each other.
    """
    with named_by_option(ctx):
        _ = options.cases, options.bits, options.tp_counts
        for name in options.shape or ():
            shape(name)
        if options.threads is not None:
            numbers("threads", options.threads, low=1)
    if options.backend is Backend.FLAX:
        check_flax_backend(ctx, options, ("quantize", "activations", "threads", "tp"))
    if options.versus and options.tp_counts != [1]:
        raise RequestError("--versus and --tp contradict each other")
    if options.fail_under is not None and options.compare is None:
        raise RequestError("--fail-under needs an earlier report", hint="--compare OLD.json")
    if options.plot is not None:
        if options.plot.suffix != ".svg":
            raise RequestError(f"--plot must end in .svg, got {printable(repr(str(options.plot)))}")
        check_writable(options.plot)
    return options
