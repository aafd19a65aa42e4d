"""The command line of `run`: its options, what contradicts what, and who said what."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from llamacli.cli import options as opt, placement_options as place_opt, task_options as task_opt
from llamacli.cli.choices import (
    Activations,
    AttnImplementation,
    Backend,
    CacheImplementation,
    Dtype,
    Task,
)
from llamacli.cli.console import Color
from llamacli.cli.prompt_sources import Records
from llamacli.errors import RequestError, check_choice
from llamacli.flax_extra import check_flax
from llamacli.memory_limits import memory_limits
from llamacli.ranks import Place
from llamacli.request import SamplingParams

if TYPE_CHECKING:
    from llamacli.quantization_plan import Recipe

OptionsT = TypeVar("OptionsT")

_CONTRADICTIONS = (
    ("greedy", "temperature"),
    ("raw", "system"),
    ("raw", "prefill"),
    ("raw", "chat_template"),
    *combinations(("lines", "jsonl", "null"), 2),
    *(("device", name) for name in place_opt.NAMES),
    *(("tp", name) for name in (*place_opt.NAMES, "compile")),
)

_TORCH_ALONE = (
    "tp",
    "quantize",
    "activations",
    "threads",
    "lookup",
    "task",
    *place_opt.NAMES,
    "compile",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The command line of one run, in the order of its help."""

    prompt: opt.PromptArgument = None
    model: opt.ModelOption = None
    revision: opt.RevisionOption = None
    offline: opt.OfflineOption = False
    backend: opt.BackendOption = Backend.TORCH
    device: opt.DeviceOption = "auto"
    device_map: place_opt.DeviceMapOption = None
    max_memory: place_opt.MaxMemoryOption = None
    offload_folder: place_opt.OffloadFolderOption = None
    compile: place_opt.CompileOption = False
    tp: opt.TpOption = 1
    dtype: opt.DtypeOption = Dtype.AUTO
    quantize: opt.QuantizeOption = None
    activations: opt.ActivationsOption = Activations.AUTO
    threads: opt.ThreadsOption = None
    cache_implementation: opt.CacheImplementationOption = CacheImplementation.DYNAMIC
    attn_implementation: opt.AttnImplementationOption = AttnImplementation.SDPA
    lookup: opt.LookupOption = 0
    check_tensors: opt.CheckTensorsOption = False
    prompt_file: opt.PromptFileOption = None
    lines: opt.LinesOption = False
    jsonl: opt.JsonlOption = False
    null: opt.NullOption = False
    raw: opt.RawOption = False
    system: opt.SystemOption = None
    prefill: opt.PrefillOption = None
    chat_template: opt.ChatTemplateOption = None
    parse_special: opt.ParseSpecialOption = False
    truncate: opt.TruncateOption = None
    batch_size: opt.BatchSizeOption = 8
    max_new_tokens: opt.MaxNewTokensOption = 256
    min_new_tokens: opt.MinNewTokensOption = None
    stop: opt.StopOption = None
    ignore_eos: opt.IgnoreEosOption = False
    seed: opt.SeedOption = None
    greedy: opt.GreedyOption = False
    temperature: opt.TemperatureOption = None
    top_k: opt.TopKOption = None
    top_p: opt.TopPOption = None
    min_p: opt.MinPOption = None
    typical_p: opt.TypicalPOption = None
    repetition_penalty: opt.RepetitionPenaltyOption = None
    presence_penalty: opt.PresencePenaltyOption = None
    frequency_penalty: opt.FrequencyPenaltyOption = None
    no_repeat_ngram_size: opt.NoRepeatNgramSizeOption = None
    logit_bias: opt.LogitBiasOption = None
    task: task_opt.TaskOption = Task.TEXT_GENERATION
    format: task_opt.InputFormatOption = None
    column: task_opt.ColumnOption = None
    aggregation_strategy: task_opt.AggregationStrategyOption = None
    output: task_opt.OutputOption = None
    num_samples: opt.NumSamplesOption = 1
    json: opt.JsonOption = False
    logprobs: opt.LogprobsOption = None
    stats: opt.StatsOption = False
    show_config: opt.ShowConfigOption = False
    plan: opt.PlanOption = False
    color: opt.ColorOption = Color.AUTO
    quiet: opt.QuietOption = False
    debug: opt.DebugOption = False

    @property
    def recipe(self) -> "Recipe | None":
        """How the weights become quantized."""
        from llamacli.quantization_plan import Recipe

        return None if self.quantize is None else Recipe(bits=int(self.quantize.value[-1]))

    @property
    def records(self) -> Records:
        """How the input is cut into prompts."""
        if self.jsonl:
            return Records.JSONL
        if self.lines:
            return Records.LINES
        return Records.NULL if self.null else Records.WHOLE

    def sampling(self, context_length: int | None = None) -> dict[str, Any]:
        """The sampling parameters asked for, None where none was; seed and biases stand apart.

        -1 for max_new_tokens stands for `context_length`.
        """
        names = (
            "min_new_tokens", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty",
            "presence_penalty", "frequency_penalty", "no_repeat_ngram_size", "logprobs",
        )  # fmt: skip
        asked = {name: getattr(self, name) for name in names}
        asked["temperature"] = 0.0 if self.greedy else self.temperature
        asked["max_new_tokens"] = (
            context_length if self.max_new_tokens == -1 else self.max_new_tokens
        )
        asked["ignore_eos"] = self.ignore_eos or None
        asked["stop"] = tuple(self.stop) if self.stop else None
        return asked

    @property
    def keeps_weights_here(self) -> bool:
        """Whether this process holds all weights in its own memory, by torch."""
        is_placed = self.device not in ("auto", "cpu") or any(
            getattr(self, name) for name in place_opt.NAMES
        )
        return self.backend is not Backend.FLAX and self.tp == 1 and not is_placed


def checked(ctx: typer.Context, options: RunOptions) -> RunOptions:
    """The options without contradictions: an option beats a variable that contradicts it.

    Raises:
        RequestError: two options contradict each other, or a value is outside its range.
    """
    options = replace(options, tp=checked_ranks(ctx, options.tp, options.device))
    options = without_contradictions(ctx, options, _CONTRADICTIONS)
    if options.backend is Backend.FLAX:
        check_flax_backend(ctx, options, _TORCH_ALONE)
        options = replace(options, cache_implementation=CacheImplementation.STATIC)
    asked = options.sampling() | {"seed": options.seed}
    with named_by_option(ctx):
        SamplingParams(**{name: value for name, value in asked.items() if value is not None})
        if options.max_memory is not None:
            memory_limits(options.max_memory)
    return options


def checked_ranks(ctx: typer.Context, tp: int, device: str) -> int:
    """How many ranks share the model: those of torchrun, or as many as were asked for.

    Raises:
        RequestError: torchrun has started another number, or the device is a single one.
    """
    place = Place.from_environment(ctx.obj.environ)
    count = tp if place is None else place.size
    asked = origin(ctx, "tp")
    if asked != "default" and count != tp:
        raise RequestError(f"{asked} {tp} and torchrun's {count} processes contradict each other")
    if count > 1 and device not in ("auto", "cpu", "cuda"):
        name = asked if place is None else "torchrun"
        message = f"{origin(ctx, 'device')} {device} and {name} contradict each other"
        raise RequestError(message, hint="--device auto, cpu or cuda has a device for each rank")
    return count


def without_contradictions(
    ctx: typer.Context, options: OptionsT, pairs: Iterable[tuple[str, str]]
) -> OptionsT:
    """The options of a command; a variable that contradicts an option gives way to it.

    Raises:
        RequestError: both of a pair are given, by two options or by two variables.
    """
    defaults = type(options)()
    for pair in pairs:
        values = [(getattr(options, name), getattr(defaults, name)) for name in pair]
        if not all(value and value != default for value, default in values):
            continue
        variables = [name for name in pair if origin(ctx, name).startswith("LLAMACLI_")]
        if len(variables) != 1:
            one, other = (given_by(ctx, name) for name in pair)
            raise RequestError(f"{one} and {other} contradict each other")
        default = {variables[0]: getattr(defaults, variables[0])}
        options = replace(options, **default)  # type: ignore[type-var]
    return options


def given_by(ctx: typer.Context, name: str) -> str:
    """Who gave a value: what nobody gave, and yet is not the default, are torchrun's ranks."""
    return origin(ctx, name).replace("default", "torchrun")


def check_flax_backend(ctx: typer.Context, options: Any, torch_alone: Iterable[str]) -> None:
    """Refuse what only torch can do, by the names of options.

    Raises:
        RequestError: it is asked for, or jax and flax are not installed.
    """
    check_flax()
    defaults = type(options)()
    for name in torch_alone:
        if getattr(options, name) != getattr(defaults, name):
            message = f"--backend flax has no {given_by(ctx, name)}"
            raise RequestError(message, hint="leave it out, or compute with --backend torch")
    with named_by_option(ctx):
        check_choice("device", options.device, ("auto", "cpu"))


@contextmanager
def named_by_option(ctx: typer.Context) -> Iterator[None]:
    """Within it an error that begins with the name of a parameter begins with the option's."""
    try:
        yield
    except RequestError as problem:
        name, _, rest = str(problem).partition(" ")
        if name not in ctx.params:
            raise
        raise RequestError(f"{origin(ctx, name)} {rest}", hint=problem.hint) from None


def origin(ctx: typer.Context, name: str) -> str:
    """The option, argument or environment variable that gave a value, else "default"."""
    source = ctx.get_parameter_source(name)
    if source is None or source.name == "DEFAULT":
        return "default"
    if source.name == "ENVIRONMENT":
        return f"LLAMACLI_{name.upper()}"
    (param,) = (param for param in ctx.command.params if param.name == name)
    return str(param.metavar) if param.param_type_name == "argument" else max(param.opts, key=len)
