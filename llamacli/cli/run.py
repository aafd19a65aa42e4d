"""llamacli run: prompts in, text out."""

import json
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from llamacli.cli.choices import Activations, Backend, CacheImplementation
from llamacli.cli.console import Terminal
from llamacli.cli.download_progress import resolve_model
from llamacli.cli.exit_codes import ExitCode
from llamacli.cli.placement_options import device_or_placement
from llamacli.cli.prompt_sources import PromptRecord, collect_prompts
from llamacli.cli.ranks import be_silent, meet
from llamacli.cli.run_options import RunOptions, checked, origin
from llamacli.cli.run_weights import estimate, load_weights
from llamacli.ranks import Place

if TYPE_CHECKING:
    from llamacli.cli.jobs import Job
    from llamacli.cli.results import Output, Result, RunFacts
    from llamacli.cli.visualize_mask_options import VisualizeMaskOptions
    from llamacli.generation import TokenStream
    from llamacli.model import LlamaForCausalLM
    from llamacli.model_folder import ModelFolder

SHORT_HELP = """\
llamacli run continues a text. There is no prompt yet; give it one:

  llamacli run "Once upon a time"
  echo "Plants create energy through a process known as" | llamacli run
  llamacli run -f prompt.txt -m meta-llama/Llama-3.2-1B-Instruct

llamacli run --help lists all options."""


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
    options = checked(ctx, options)
    if options.show_config:
        show_config(ctx, options)
    elif options.plan:
        show_plan(terminal, options)
    elif terminal.stdin_is_tty and not (options.prompt or options.prompt_file):
        terminal.tell(SHORT_HELP)
        raise typer.Exit(ExitCode.USAGE)
    else:
        generate_all(terminal, options)


def generate_all(terminal: Terminal, options: RunOptions) -> None:
    """Read the prompts, load the model, write the texts."""
    place = Place.from_environment(terminal.environ)
    is_first = place is None or place.rank == 0
    records: list[PromptRecord] = []
    if is_first:
        source = (options.prompt or (), options.prompt_file, options.records)
        records = collect_prompts(terminal, *source)
    else:
        be_silent(terminal)
    started = time.perf_counter()
    folder = open_folder(terminal, options)
    if place is None and options.keeps_weights_here:  # torchrun's ranks fork a guard
        from llamacli import warm_memory

        warm_memory.begin(folder.weight_bytes)
    opened = time.perf_counter()
    jobs = plan_jobs(terminal, options, folder, records) if is_first else []
    planned = time.perf_counter()
    ranks = meet(terminal, options.tp, options.device, place)  # from here on there are several
    if ranks is not None:
        jobs = ranks.share(jobs)
    model = load_weights(terminal, options, folder, *size_of(options, folder, jobs), ranks=ranks)
    load_s = opened - started + time.perf_counter() - planned
    facts = describe(options, folder, model, load_s)
    output = choose_output(terminal, options, facts)
    if options.lookup and min(len(jobs), options.batch_size) > 1:
        terminal.note("--lookup helps only the last text of a batch; add --batch-size 1")
    longest = max(len(job.prompt_ids) for job in jobs)
    terminal.status(f"reading the prompt: {longest:,} tokens …")
    results: list[Result] = []
    for first in range(0, len(jobs), options.batch_size):
        batch = jobs[first : first + options.batch_size]
        tokens = start_batch(options, folder, model, batch)
        results += write_batch(folder, tokens, batch, first, output)
    note_context(terminal, folder, results)
    if options.stats:
        from llamacli.cli.results import stats_table

        terminal.tell(stats_table(results, facts))
    if ranks is not None:
        ranks.leave()


def open_folder(
    terminal: Terminal, options: "RunOptions | VisualizeMaskOptions", *, weights: bool = True
) -> "ModelFolder":
    """Find the model, and read everything of it but the weights, if these are needed at all."""
    with terminal.importing():
        from llamacli.model_folder import DEMO_FOLDER, ModelFolder
    if options.model is None:
        terminal.note("using the small demo model; -m MODEL names another")
    terminal.status("reading the model …")
    model = DEMO_FOLDER if options.model is None else options.model
    snapshot = resolve_model(
        terminal, model, options.revision, offline=options.offline, weights=weights
    )
    terminal.status("reading the model …")
    folder = ModelFolder.open(snapshot)
    if weights:
        folder.read_ahead()  # import torch takes a second
    return folder


def plan_jobs(
    terminal: Terminal, options: RunOptions, folder: "ModelFolder", records: list[PromptRecord]
) -> "list[Job]":
    """Everything about the prompts that can fail, before the weights are read."""
    from llamacli.cli.jobs import PromptOptions, make_jobs

    prompt_options = PromptOptions(
        raw=options.raw,
        template=options.chat_template,
        system=options.system,
        prefill=options.prefill or "",
        parse_special=options.parse_special,
        side=options.truncate.value if options.truncate else None,
    )
    return make_jobs(
        records,
        folder,
        prompt_options,
        options.sampling(folder.config.context_length),
        logit_bias=options.logit_bias or (),
        num_samples=options.num_samples,
        seed=secrets.randbits(32) if options.seed is None else options.seed,
        terminal=terminal,
    )


def size_of(options: RunOptions, folder: "ModelFolder", jobs: "Sequence[Job]") -> tuple[int, int]:
    """Rows of the largest batch, and the most tokens that one of them can have in the end."""
    context = folder.config.context_length
    asked = [(len(job.prompt_ids), job.params.max_new_tokens) for job in jobs]
    longest = max(context if new is None else prompt + new for prompt, new in asked)
    return min(len(jobs), options.batch_size), min(longest, context)


def show_plan(terminal: Terminal, options: RunOptions) -> None:
    """Print the memory that a run would take; without a prompt, that of new tokens alone."""
    source = (options.prompt or (), options.prompt_file, options.records)
    records = collect_prompts(terminal, *source, required=False)
    folder = open_folder(terminal, options)
    if records:
        rows, tokens = size_of(options, folder, plan_jobs(terminal, options, folder, records))
    else:
        rows, tokens = 1, options.sampling(folder.config.context_length)["max_new_tokens"]
    from llamacli.cli.run_plan import plan_text
    from llamacli.loading import open_weights
    from llamacli.model import LlamaForCausalLM

    weights = open_weights(folder.path, folder.config)
    device = device_or_placement(options, LlamaForCausalLM, folder.config, weights)
    needed = estimate(options, folder, weights, rows, tokens, device, options.tp)
    if options.tp > 1:
        terminal.note(f"so much for each of {options.tp} ranks on this machine")
    terminal.write(plan_text(needed, rows, tokens, device, as_json=options.json))


def describe(
    options: RunOptions, folder: "ModelFolder", model: "LlamaForCausalLM", load_s: float
) -> "RunFacts":
    """What all results share."""
    from llamacli.cli.results import RunFacts
    from llamacli.kernels.decode_step import kernel_set

    rounds = options.activations is Activations.INT8
    kernels = "xla" if options.backend is Backend.FLAX else kernel_set(model)
    return RunFacts(
        model="demo" if options.model is None else options.model,
        revision=folder.revision,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        kernels=f"{kernels} int8" if rounds else kernels,
        load_s=load_s,
        lookup=options.lookup,
        ranks=options.tp,
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
    from llamacli.run_ahead import token_stream

    is_static = options.cache_implementation is CacheImplementation.STATIC
    return token_stream(
        model,
        [job.prompt_ids for job in batch],
        [job.params for job in batch],
        eos_token_ids=folder.eos_token_ids,
        vocab_size=folder.tokenizer.vocab_size,
        static_cache=is_static or options.compile,  # another size would be compiled anew
        lookup=options.lookup,
    )


def write_batch(
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
    try:
        for piece in stream_text(tokens, folder.tokenizer, answers=answers):
            row = piece.token.row
            results[row].generation.add(piece)
            output.piece(first + row, piece)
            if piece.finish_reason:
                output.done(first + row, results[row])
    except Exception:  # memory may run out here, too
        output.break_off()
        raise
    for row, result in enumerate(results):
        if result.generation.finish_reason is None:  # no new tokens were asked for
            result.generation.finish_reason = "length"
            output.done(first + row, result)
    return results


def note_context(terminal: Terminal, folder: "ModelFolder", results: "Sequence[Result]") -> None:
    """Tell how many texts ended because the model can hold no more."""
    if count := sum(result.met_context for result in results):
        texts = f"{count:,} of {len(results):,} texts" if len(results) > 1 else "the text"
        limit = f"{folder.config.context_length:,} tokens"
        terminal.note(f"{texts} ended at the model's context of {limit}")


def show_config(ctx: typer.Context, options: RunOptions) -> None:
    """Print the final sampling parameters, and where each value came from."""
    folder = open_folder(ctx.obj, options)
    asked = options.sampling(folder.config.context_length) | {"seed": options.seed}
    params, origins = folder.generation_config.resolve(**asked)
    settings = {name: {"value": getattr(params, name), "from": origins[name]} for name in origins}
    del settings["sequence_bias"]  # the part of logit_bias that concerns several tokens
    settings["logit_bias"] = {"value": options.logit_bias or [], "from": "user"}
    for name, setting in settings.items():
        if setting["from"] == "user":
            greedy = name == "temperature" and options.greedy
            setting["from"] = origin(ctx, "greedy" if greedy else name)
    if options.json:
        text = json.dumps({"schema_version": 1, "settings": settings}, indent=2)
    else:
        lines = [(name, json.dumps(s["value"]), s["from"]) for name, s in settings.items()]
        text = "\n".join(f"{name:<21} {value:<11} {source}" for name, value, source in lines)
    ctx.obj.write(text + "\n")
