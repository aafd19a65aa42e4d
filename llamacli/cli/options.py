"""The options of all commands, each declared once.

A command takes them as `top_k: TopKOption = None`; the value there is the default that its help
shows. Each option can also be set by an environment variable: LLAMACLI_TOP_K for --top-k.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from llamacli.cli.choices import (
    Activations,
    AttnImplementation,
    Backend,
    CacheImplementation,
    Dtype,
    Quantize,
    Truncate,
)
from llamacli.cli.console import Color

_MODEL, _PROMPT, _SAMPLING = "The model", "The prompt", "Sampling"
_LENGTH, _OUTPUT, _GENERAL = "Length", "Output", "General"


def option(panel: str, *names: str, help: str, **settings: Any) -> Any:
    """An option in a section of the help; its last name gives the variable's."""
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
    return option(_SAMPLING, *names, help=help, show_default="the model's")


def set_on_terminal(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    """The callback of an option that the terminal obeys."""
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
    option(
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
    option(
        _MODEL,
        "--revision",
        metavar="REVISION",
        help="Branch, tag or commit of the model.",
        show_default="main",
    ),
]
OfflineOption = Annotated[
    bool, option(_MODEL, "--offline", help="Use only what was downloaded before.")
]
BackendOption = Annotated[
    Backend, option(_MODEL, "--backend", help="Compute with torch, or with JAX (extra flax).")
]
DeviceOption = Annotated[
    str,
    option(
        _MODEL, "--device", metavar="DEVICE", help="auto, cpu, mps, xpu, cuda or 0, cuda:1 or 1."
    ),
]
TpOption = Annotated[
    int,
    option(
        _MODEL,
        "--tp",
        metavar="N",
        min=1,
        help="Share the model among N processes, which divide the threads or have a GPU each.",
    ),
]
DtypeOption = Annotated[Dtype, option(_MODEL, "--dtype", help="Number format of the weights.")]
ThreadsOption = Annotated[
    int | None,
    option(
        _MODEL,
        "-t",
        "--threads",
        min=1,
        help="CPU threads.",
        show_default="the physical cores; 1 for a small model",
    ),
]
QuantizeOption = Annotated[
    Quantize | None,
    option(
        _MODEL,
        "--quantize",
        help="Quantize the weights while they are read.",
        show_default="as they are",
    ),
]
ActivationsOption = Annotated[
    Activations,
    option(
        _MODEL,
        "--activations",
        help="Round the input of int4 layers: faster on some CPUs, less exact.",
    ),
]
CacheImplementationOption = Annotated[
    CacheImplementation,
    option(_MODEL, "--cache-implementation", help="Grow the cache, or allocate it at once."),
]
AttnImplementationOption = Annotated[
    AttnImplementation,
    option(_MODEL, "--attn-implementation", help="Fused attention, or plain matrix products."),
]
LookupOption = Annotated[
    int,
    option(
        _MODEL,
        "--lookup",
        metavar="N",
        min=0,
        help="Try up to N tokens a step where the text repeats itself; 0 is off.",
    ),
]
CheckTensorsOption = Annotated[
    bool, option(_MODEL, "--check-tensors", help="Look for NaN and infinity in the weights.")
]

# ------------------------------------------------------------------------------------ the prompt

PromptFileOption = Annotated[
    Path | None,
    option(
        _PROMPT, "-f", "--input", "--prompt-file", help="Read the prompt from a file; - is stdin."
    ),
]
RawOption = Annotated[
    bool, option(_PROMPT, "--raw", help="Continue the text as it is, without chat template.")
]
SystemOption = Annotated[
    str | None, option(_PROMPT, "--system", metavar="TEXT", help="System message of the chat.")
]
PrefillOption = Annotated[
    str | None, option(_PROMPT, "--prefill", metavar="TEXT", help="Start of the answer.")
]
ChatTemplateOption = Annotated[
    str | None,
    option(
        _PROMPT,
        "--chat-template",
        metavar="FILE",
        help="llama2, llama3 or a Jinja file.",
        show_default="the model's",
    ),
]
ParseSpecialOption = Annotated[
    bool, option(_PROMPT, "--parse-special", help="Special tokens in the prompt have an effect.")
]
LinesOption = Annotated[bool, option(_PROMPT, "--lines", help="Each line is a prompt.")]
JsonlOption = Annotated[
    bool,
    option(_PROMPT, "--jsonl", help="Each line is a request as a JSON object, and an answer."),
]
NullOption = Annotated[
    bool, option(_PROMPT, "-0", "--null", help="Prompts and answers end with NUL, not newline.")
]
TruncateOption = Annotated[
    Truncate | None,
    option(
        _PROMPT,
        "--truncate",
        help="Cut a prompt that is longer than the context on this side.",
        show_default="an error",
    ),
]
BatchSizeOption = Annotated[
    int, option(_PROMPT, "--batch-size", min=1, help="Prompts that are run together.")
]

# -------------------------------------------------------------------------------------- sampling

SeedOption = Annotated[
    int | None,
    option(_SAMPLING, "--seed", help="Same seed, same text.", show_default="another one each time"),
]
GreedyOption = Annotated[
    bool, option(_SAMPLING, "--greedy", help="Always take the most probable token.")
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
    option(
        _SAMPLING,
        "--presence-penalty",
        help="Lower the scores of tokens generated before.",
        show_default="0",
    ),
]
FrequencyPenaltyOption = Annotated[
    float | None,
    option(
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
    option(
        _SAMPLING,
        "--logit-bias",
        metavar="TOKEN=BIAS",
        help="Add to the score of a token, by id or text; -inf bans it. Repeatable.",
    ),
]

# ---------------------------------------------------------------------------------------- length

MaxNewTokensOption = Annotated[
    int | None,
    option(
        _LENGTH,
        "-n",
        "--max-new-tokens",
        help="The most tokens to generate; -1 fills the context.",
    ),
]
MinNewTokensOption = Annotated[
    int | None,
    option(
        _LENGTH,
        "--min-new-tokens",
        help="The fewest tokens to generate.",
        show_default="0",
    ),
]
StopOption = Annotated[
    list[str] | None,
    option(
        _LENGTH,
        "--stop",
        metavar="TEXT",
        help="End before this text. Repeatable; blanks separate several in LLAMACLI_STOP.",
    ),
]
IgnoreEosOption = Annotated[
    bool, option(_LENGTH, "--ignore-eos", help="Go on where the model would end.")
]

# ---------------------------------------------------------------------------------------- output

NumSamplesOption = Annotated[
    int, option(_OUTPUT, "--num-samples", min=1, help="Answers to each prompt.")
]
JsonOption = Annotated[
    bool, option(_OUTPUT, "--json", help="One JSON object with text, token ids and counts.")
]
LogprobsOption = Annotated[
    int | None,
    option(
        _OUTPUT,
        "--logprobs",
        help="Show log-probabilities, and those of so many alternatives.",
    ),
]
StatsOption = Annotated[
    bool, option(_OUTPUT, "--stats", help="Tell times and speed on stderr afterwards.")
]
ShowConfigOption = Annotated[
    bool,
    option(_OUTPUT, "--show-config", help="Show the sampling parameters and where they come from."),
]
PlanOption = Annotated[
    bool, option(_OUTPUT, "--plan", help="Show the memory it would take, and load nothing.")
]
ColorOption = Annotated[
    Color, option(_OUTPUT, "--color", help="Color on stdout.", callback=set_on_terminal)
]
QuietOption = Annotated[
    bool,
    option(
        _GENERAL,
        "-q",
        "--quiet",
        help="No notes on stderr, only errors.",
        callback=set_on_terminal,
    ),
]
DebugOption = Annotated[
    bool,
    option(
        _GENERAL,
        "--debug",
        help="Show tracebacks and what libraries print.",
        callback=set_on_terminal,
        is_eager=True,
    ),
]
