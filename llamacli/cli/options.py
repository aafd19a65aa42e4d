"""The options of all commands, each declared once.

A command takes them as `top_k: TopKOption = None`; the value there is the default that its help
shows. Each option can also be set by an environment variable: LLAMACLI_TOP_K for --top-k.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from llamacli.cli.console import Color


class Dtype(StrEnum):
    """Number format of the weights in memory."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Truncate(StrEnum):
    """Where a prompt that is too long loses tokens."""

    LEFT = "left"
    RIGHT = "right"
    MIDDLE = "middle"


class CacheImplementation(StrEnum):
    """How keys and values are kept."""

    DYNAMIC = "dynamic"
    STATIC = "static"


class AttnImplementation(StrEnum):
    """How attention is computed."""

    SDPA = "sdpa"
    EAGER = "eager"


_MODEL, _PROMPT, _SAMPLING = "The model", "The prompt", "Sampling"
_LENGTH, _OUTPUT, _GENERAL = "Length", "Output", "General"


def _option(panel: str, *names: str, help: str, **settings: Any) -> Any:
    variable = "LLAMACLI_" + names[-1].removeprefix("--").replace("-", "_").upper()
    return typer.Option(
        *names,
        help=help,
        envvar=variable,
        show_envvar=False,  # one line of the help tells the rule
        rich_help_panel=panel,
        **settings,
    )


def _sampling(*names: str, help: str) -> Any:
    return _option(_SAMPLING, *names, help=help, show_default="the model's")


def _set_on_terminal(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    if value:
        setattr(ctx.obj, param.name, value)
    return value


PromptArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT", help="Text to continue; stdin comes before it."),
]

# ------------------------------------------------------------------------------------- the model

ModelOption = Annotated[
    str | None,
    _option(
        _MODEL,
        "-m",
        "--model",
        metavar="MODEL",
        help="A folder or a Hugging Face name.",
        show_default="the small demo model",
    ),
]
RevisionOption = Annotated[
    str | None,
    _option(
        _MODEL,
        "--revision",
        metavar="REVISION",
        help="Branch, tag or commit of the model.",
        show_default="main",
    ),
]
OfflineOption = Annotated[
    bool, _option(_MODEL, "--offline", help="Use only what was downloaded before.")
]
DeviceOption = Annotated[
    str, _option(_MODEL, "--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")
]
DtypeOption = Annotated[Dtype, _option(_MODEL, "--dtype", help="Number format of the weights.")]
ThreadsOption = Annotated[
    int | None,
    _option(
        _MODEL,
        "-t",
        "--threads",
        min=1,
        help="CPU threads.",
        show_default="the physical cores; 1 for a small model",
    ),
]
CacheImplementationOption = Annotated[
    CacheImplementation,
    _option(_MODEL, "--cache-implementation", help="Grow the cache, or allocate it at once."),
]
AttnImplementationOption = Annotated[
    AttnImplementation,
    _option(_MODEL, "--attn-implementation", help="Fused attention, or plain matrix products."),
]
CheckTensorsOption = Annotated[
    bool, _option(_MODEL, "--check-tensors", help="Look for NaN and infinity in the weights.")
]

# ------------------------------------------------------------------------------------ the prompt

PromptFileOption = Annotated[
    Path | None,
    _option(_PROMPT, "-f", "--prompt-file", help="Read the prompt from a file; - is stdin."),
]
RawOption = Annotated[
    bool, _option(_PROMPT, "--raw", help="Continue the text as it is, without chat template.")
]
SystemOption = Annotated[
    str | None, _option(_PROMPT, "--system", metavar="TEXT", help="System message of the chat.")
]
PrefillOption = Annotated[
    str | None, _option(_PROMPT, "--prefill", metavar="TEXT", help="Start of the answer.")
]
ChatTemplateOption = Annotated[
    str | None,
    _option(
        _PROMPT,
        "--chat-template",
        metavar="FILE",
        help="llama2, llama3 or a Jinja file.",
        show_default="the model's",
    ),
]
ParseSpecialOption = Annotated[
    bool, _option(_PROMPT, "--parse-special", help="Special tokens in the prompt have an effect.")
]
LinesOption = Annotated[bool, _option(_PROMPT, "--lines", help="Each line is a prompt.")]
JsonlOption = Annotated[
    bool,
    _option(_PROMPT, "--jsonl", help="Each line is a request as a JSON object, and an answer."),
]
NullOption = Annotated[
    bool, _option(_PROMPT, "-0", "--null", help="Prompts and answers end with NUL, not newline.")
]
TruncateOption = Annotated[
    Truncate | None,
    _option(
        _PROMPT,
        "--truncate",
        help="Cut a prompt that is longer than the context on this side.",
        show_default="an error",
    ),
]
BatchSizeOption = Annotated[
    int, _option(_PROMPT, "--batch-size", min=1, help="Prompts that are run together.")
]

# -------------------------------------------------------------------------------------- sampling

SeedOption = Annotated[
    int | None,
    _option(
        _SAMPLING, "--seed", help="Same seed, same text.", show_default="another one each time"
    ),
]
GreedyOption = Annotated[
    bool, _option(_SAMPLING, "--greedy", help="Always take the most probable token.")
]
TemperatureOption = Annotated[
    float | None,
    _sampling("--temperature", help="Below 1 is safer, above 1 is bolder, 0 is greedy."),
]
TopKOption = Annotated[
    int | None, _sampling("--top-k", help="Choose among the K best tokens; 0 is all.")
]
TopPOption = Annotated[
    float | None, _sampling("--top-p", help="Choose among the best tokens with probability P.")
]
MinPOption = Annotated[
    float | None, _sampling("--min-p", help="Drop tokens below P times the best probability.")
]
TypicalPOption = Annotated[
    float | None, _sampling("--typical-p", help="Keep locally typical tokens with probability P.")
]
RepetitionPenaltyOption = Annotated[
    float | None,
    _sampling("--repetition-penalty", help="Divide the scores of tokens seen before; 1 is off."),
]
PresencePenaltyOption = Annotated[
    float | None,
    _option(
        _SAMPLING,
        "--presence-penalty",
        help="Lower the scores of tokens generated before.",
        show_default="0",
    ),
]
FrequencyPenaltyOption = Annotated[
    float | None,
    _option(
        _SAMPLING,
        "--frequency-penalty",
        help="Lower them for each time they were generated.",
        show_default="0",
    ),
]
NoRepeatNgramSizeOption = Annotated[
    int | None,
    _sampling("--no-repeat-ngram-size", help="No sequence of so many tokens twice; 0 is off."),
]
LogitBiasOption = Annotated[
    list[str] | None,
    _option(
        _SAMPLING,
        "--logit-bias",
        metavar="TOKEN=BIAS",
        help="Add to the score of a token, by id or text; -inf bans it. Repeatable.",
    ),
]

# ---------------------------------------------------------------------------------------- length

MaxNewTokensOption = Annotated[
    int | None,
    _option(
        _LENGTH,
        "-n",
        "--max-new-tokens",
        help="The most tokens to generate; -1 fills the context.",
    ),
]
MinNewTokensOption = Annotated[
    int | None,
    _option(
        _LENGTH,
        "--min-new-tokens",
        help="The fewest tokens to generate.",
        show_default="0",
    ),
]
StopOption = Annotated[
    list[str] | None,
    _option(
        _LENGTH,
        "--stop",
        metavar="TEXT",
        help="End before this text. Repeatable; blanks separate several in LLAMACLI_STOP.",
    ),
]
IgnoreEosOption = Annotated[
    bool, _option(_LENGTH, "--ignore-eos", help="Go on where the model would end.")
]

# ---------------------------------------------------------------------------------------- output

NumSamplesOption = Annotated[
    int, _option(_OUTPUT, "--num-samples", min=1, help="Answers to each prompt.")
]
JsonOption = Annotated[
    bool, _option(_OUTPUT, "--json", help="One JSON object with text, token ids and counts.")
]
LogprobsOption = Annotated[
    int | None,
    _option(
        _OUTPUT,
        "--logprobs",
        help="Show log-probabilities, and those of so many alternatives.",
    ),
]
StatsOption = Annotated[
    bool, _option(_OUTPUT, "--stats", help="Tell times and speed on stderr afterwards.")
]
ShowConfigOption = Annotated[
    bool,
    _option(
        _OUTPUT, "--show-config", help="Show the sampling parameters and where they come from."
    ),
]
ColorOption = Annotated[
    Color, _option(_OUTPUT, "--color", help="Color on stdout.", callback=_set_on_terminal)
]
QuietOption = Annotated[
    bool,
    _option(
        _GENERAL,
        "-q",
        "--quiet",
        help="No notes on stderr, only errors.",
        callback=_set_on_terminal,
    ),
]
DebugOption = Annotated[
    bool,
    _option(
        _GENERAL,
        "--debug",
        help="Show tracebacks and what libraries print.",
        callback=_set_on_terminal,
        is_eager=True,
    ),
]
