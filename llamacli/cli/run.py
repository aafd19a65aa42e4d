"""llamacli run: prompts in, text out."""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from llamacli.cli import options as opt
from llamacli.cli.console import Color, Terminal
from llamacli.cli.exit_codes import ExitCode
from llamacli.cli.option_class import takes_options
from llamacli.cli.prompt_sources import PromptRecord, Records, collect_prompts
from llamacli.errors import RequestError

if TYPE_CHECKING:
    from llamacli.cli.jobs import Job
    from llamacli.cli.results import Output, Result, RunFacts
    from llamacli.generation import TokenStream
    from llamacli.model import LlamaForCausalLM
    from llamacli.model_folder import ModelFolder

SHORT_HELP = """\
llamacli run continues a text. There is no prompt yet; give it one:

  llamacli run "Once upon a time"
  echo "Plants create energy through a process known as" | llamacli run
  llamacli run -f prompt.txt -m meta-llama/Llama-3.2-1B-Instruct

llamacli run --help lists all options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The command line of one run, in the order of its help."""

    prompt: opt.PromptArgument = None
    model: opt.ModelOption = None
    revision: opt.RevisionOption = None
    offline: opt.OfflineOption = False
    device: opt.DeviceOption = "auto"
    dtype: opt.DtypeOption = opt.Dtype.AUTO
    threads: opt.ThreadsOption = None
    cache_implementation: opt.CacheImplementationOption = opt.CacheImplementation.DYNAMIC
    attn_implementation: opt.AttnImplementationOption = opt.AttnImplementation.SDPA
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
    num_samples: opt.NumSamplesOption = 1
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
    json: opt.JsonOption = False
    logprobs: opt.LogprobsOption = None
    stats: opt.StatsOption = False
    show_config: opt.ShowConfigOption = False
    color: opt.ColorOption = Color.AUTO
    quiet: opt.QuietOption = False
    debug: opt.DebugOption = False

    def __post_init__(self) -> None:
        if self.greedy and self.temperature:
            raise RequestError("--greedy and --temperature contradict each other")
        if self.lines + self.jsonl + self.null > 1:
            raise RequestError("only one of --lines, --jsonl and --null can cut the input")

    @property
    def records(self) -> Records:
        """How the input is cut into prompts."""
        if self.jsonl:
            return Records.JSONL
        if self.lines:
            return Records.LINES
        return Records.NUL if self.null else Records.WHOLE

    def sampling(self, context_length: int) -> dict[str, Any]:
        """The sampling parameters asked for, None where none was."""
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


def run_prompts(ctx: typer.Context, options: RunOptions) -> None:
    """Continue a text, or answer it where the model has a chat template.

    \b
    Examples:
      echo "Plants create energy through a process known as" | llamacli run
      llamacli run -m ./my-model --system "Answer in one sentence." "Why is the sky blue?"
      cat article.txt | llamacli run -m ./my-model "Summarize the text above."
      cat names.txt | llamacli run -m ./my-model --lines "Say hello to this person:"
      llamacli run "Once upon a time" --num-samples 3 --json
    """
    terminal: Terminal = ctx.obj
    if options.show_config:
        show_config(ctx, options)
    elif terminal.stdin_is_tty and not options.prompt and options.prompt_file is None:
        terminal.tell(SHORT_HELP)
        raise typer.Exit(ExitCode.USAGE)
    else:
        generate_all(terminal, options)


def generate_all(terminal: Terminal, options: RunOptions) -> None:
    """Read the prompts, load the model, write the texts."""
    records = collect_prompts(terminal, options.prompt or (), options.prompt_file, options.records)
    started = time.perf_counter()
    folder = open_folder(terminal, options)
    jobs = plan_jobs(terminal, options, folder, records)
    model = load_weights(terminal, options, folder)
    facts = describe(options, folder, model, time.perf_counter() - started)
    output = choose_output(terminal, options, facts)
    results: list[Result] = []
    for first in range(0, len(jobs), options.batch_size):
        batch = jobs[first : first + options.batch_size]
        tokens = start_batch(options, folder, model, batch)
        results += write_batch(terminal, folder, tokens, batch, first, output)
    if options.stats:
        from llamacli.cli.results import stats_table

        terminal.tell(stats_table(results, facts))


def open_folder(terminal: Terminal, options: RunOptions) -> "ModelFolder":
    """Find the model, and read everything of it but the weights."""
    with terminal.importing():
        from llamacli import hub
        from llamacli.model_folder import DEMO_FOLDER, ModelFolder
    if options.model is None:
        terminal.note("using the small demo model; -m MODEL names another")
    terminal.status("reading the model …")
    snapshot = hub.resolve(
        options.model or DEMO_FOLDER, revision=options.revision, offline=options.offline
    )
    return ModelFolder.open(snapshot)


def plan_jobs(
    terminal: Terminal, options: RunOptions, folder: "ModelFolder", records: list[PromptRecord]
) -> "list[Job]":
    """Everything about the prompts that can fail, before the weights are read."""
    from llamacli.cli.jobs import ChatOptions, make_jobs

    chat = ChatOptions(
        raw=options.raw,
        template=options.chat_template,
        system=options.system,
        prefill=options.prefill or "",
        parse_special=options.parse_special,
    )
    return make_jobs(
        records,
        folder,
        chat,
        options.sampling(folder.config.context_length),
        logit_bias=options.logit_bias or (),
        num_samples=options.num_samples,
        seed=secrets.randbits(32) if options.seed is None else options.seed,
        side=options.truncate.value if options.truncate else None,
        terminal=terminal,
    )


def load_weights(
    terminal: Terminal, options: RunOptions, folder: "ModelFolder"
) -> "LlamaForCausalLM":
    """Import torch and read the weights."""
    with terminal.importing():
        import torch

        from llamacli.checkpoint import open_checkpoint
        from llamacli.loading import load_model
        from llamacli.model import LlamaForCausalLM
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.check_tensors:
        terminal.status("checking the weights …")
        open_checkpoint(folder.path).check_finite()
    terminal.status("loading the weights …")
    return load_model(
        LlamaForCausalLM,
        folder.path,
        dtype=options.dtype.value,
        device=options.device,
        attn_implementation=options.attn_implementation.value,
    )


def describe(
    options: RunOptions, folder: "ModelFolder", model: "LlamaForCausalLM", load_s: float
) -> "RunFacts":
    """What all results share."""
    from llamacli.cli.results import RunFacts

    weight = model.lm_head.weight
    return RunFacts(
        model=options.model or "demo",
        revision=folder.revision,
        device=str(weight.device),
        dtype=str(weight.dtype).removeprefix("torch."),
        load_s=load_s,
        tokenizer=folder.tokenizer,
    )


def choose_output(terminal: Terminal, options: RunOptions, facts: "RunFacts") -> "Output":
    """Text that streams, or JSON."""
    from llamacli.cli.results import JsonOutput, TextOutput

    if options.json or options.jsonl:
        return JsonOutput(terminal, facts)
    if options.logprobs is not None and not terminal.uses_color:
        terminal.note("log-probabilities are shown in color on a terminal, or with --json")
    return TextOutput(terminal, options.records)


def start_batch(
    options: RunOptions, folder: "ModelFolder", model: "LlamaForCausalLM", batch: "Sequence[Job]"
) -> "TokenStream":
    """The token stream of some jobs."""
    from llamacli.generation import TokenStream

    return TokenStream(
        model,
        [job.prompt_ids for job in batch],
        [job.params for job in batch],
        eos_token_ids=folder.eos_token_ids,
        vocab_size=folder.tokenizer.vocab_size,
        static_cache=options.cache_implementation is opt.CacheImplementation.STATIC,
    )


def write_batch(
    terminal: Terminal,
    folder: "ModelFolder",
    tokens: "TokenStream",
    batch: "Sequence[Job]",
    first: int,
    output: "Output",
) -> "list[Result]":
    """Run some jobs together, the first of which has this number, and write what comes."""
    from llamacli.cli.results import Result
    from llamacli.generation import Generation, stream_text

    results = [Result(job=job, generation=Generation(), timings=tokens.timings) for job in batch]
    answers = {row for row, job in enumerate(batch) if not job.continues}
    for piece in stream_text(tokens, folder.tokenizer, answers=answers):
        row = piece.token.row
        results[row].generation.add(piece)
        output.piece(first + row, piece)
        if piece.finish_reason:
            output.done(first + row, results[row])
    for row, result in enumerate(results):
        if result.generation.finish_reason is None:  # no new tokens were asked for
            result.generation.finish_reason = "length"
            output.done(first + row, result)
        if result.met_context:
            limit = f"{folder.config.context_length:,} tokens"
            terminal.note(f"{result.job.record.where}: ended at the model's context of {limit}")
    return results


def show_config(ctx: typer.Context, options: RunOptions) -> None:
    """Print the final sampling parameters, and where each value came from."""
    folder = open_folder(ctx.obj, options)
    asked = options.sampling(folder.config.context_length)
    params, origins = folder.generation_config.resolve(**asked, seed=options.seed)
    for name, origin in origins.items():
        if origin == "user":
            origins[name] = _origin(
                ctx, "greedy" if name == "temperature" and options.greedy else name
            )
    settings = {name: {"value": getattr(params, name), "from": origins[name]} for name in origins}
    if options.json:
        text = json.dumps({"schema_version": 1, "settings": settings}, default=dict, indent=2)
    else:
        text = "\n".join(
            f"{name:<22}{shown['value']!s:<12}{shown['from']}" for name, shown in settings.items()
        )
    ctx.obj.write(text + "\n")


def _origin(ctx: typer.Context, name: str) -> str:
    """The option or the environment variable that a value was given by."""
    source = ctx.get_parameter_source(name)
    if source is None or source.name == "DEFAULT":
        return "default"
    return (
        f"LLAMACLI_{name.upper()}"
        if source.name == "ENVIRONMENT"
        else "--" + name.replace("_", "-")
    )


run = takes_options(run_prompts, RunOptions)
