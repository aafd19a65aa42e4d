"""llamacli quantize: a model in, a smaller one out."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llamacli.cli.console import Terminal
from llamacli.cli.download_progress import resolve_model
from llamacli.cli.option_class import takes_options
from llamacli.cli.progress import progress
from llamacli.cli.quantize_options import QuantizeOptions, checked
from llamacli.cli.threads import calm_threads, set_threads
from llamacli.errors import LocalIOError, printable

if TYPE_CHECKING:
    from llamacli.checkpoint import Checkpoint
    from llamacli.cli.quantize_evaluation import Evaluator
    from llamacli.config import LlamaConfig
    from llamacli.quantization_plan import Plan
    from llamacli.quantization_report import Report


def quantize_model(ctx: typer.Context, options: QuantizeOptions) -> None:
    """Write a smaller copy of a model, its layers in 4 or 8 bits.

    llamacli and transformers (with torchao) run what it writes. The output head gets 8 bits, the
    embeddings stay. The folder appears when it is whole; its name goes to stdout.

    \b
    Examples:
      llamacli quantize ./my-model -o ./my-model-int4
      llamacli quantize meta-llama/Llama-3.2-1B --dry-run
      llamacli quantize ./my-model -o ./small --algorithm hqq --mixed '*.down_proj=8' --evaluate
      llamacli quantize ./my-model-int4 -o ./plain --dequantize
    """
    terminal: Terminal = ctx.obj
    options = checked(ctx, options)
    source = open_source(terminal, options)
    plan = make_plan(options, source)
    if options.output is None or options.dry_run:
        show_plan(terminal, options, plan)
        return
    report = write_model(terminal, options, source, plan, options.output)
    save_report(options, report)
    terminal.write(f"{options.output}\n")


@dataclass(frozen=True, slots=True)
class Source:
    """The model that is read."""

    path: Path
    config: "LlamaConfig"
    checkpoint: "Checkpoint"


def open_source(terminal: Terminal, options: QuantizeOptions) -> Source:
    """Find the model, and read its config and the headers of its weights."""
    calm_threads()
    with terminal.importing():
        from llamacli.loading import open_weights
        from llamacli.model_folder import DEMO_FOLDER, read_config
    if options.model is None:
        terminal.note("using the small demo model; the argument MODEL names another")
    set_threads(options.threads)
    terminal.status("reading the model …")
    model = DEMO_FOLDER if options.model is None else options.model
    path = resolve_model(terminal, model, options.revision, offline=options.offline).path
    config = read_config(path)
    return Source(path, config, open_weights(path, config))


def make_plan(options: QuantizeOptions, source: Source) -> "Plan":
    """What becomes of each weight."""
    from llamacli.quantization_plan import Recipe, plan_dequantization, plan_quantization

    if options.dequantize:
        return plan_dequantization(source.checkpoint)
    recipe = Recipe(
        bits=int(options.bits),
        group_size=int(options.group_size),
        algorithm=options.algorithm.value,
        skip=tuple(options.skip or ()),
        mixed=options.mixed_bits,
    )
    return plan_quantization(source.checkpoint, recipe, tied=source.config.tie_word_embeddings)


def show_plan(terminal: Terminal, options: QuantizeOptions, plan: "Plan") -> None:
    """What would be done."""
    from llamacli.cli.quantize_report import plan_table
    from llamacli.quantization_report import Report

    report = Report(plan, {})
    save_report(options, report)
    terminal.write(plan_table(report))


def write_model(
    terminal: Terminal, options: QuantizeOptions, source: Source, plan: "Plan", output: Path
) -> "Report":
    """Write the new folder, and tell how it went."""
    from llamacli.cli.quantize_evaluation import Evaluator
    from llamacli.cli.quantize_report import summary
    from llamacli.output_folder import output_folder

    with output_folder(output, source=source.path, replace=options.force) as target:
        check_space(output, plan)
        attempt = Attempt(terminal, options, source, target)
        if options.evaluate or options.text or options.target_kl is not None:
            attempt.evaluator = Evaluator(terminal, source.path, options.text)
        report = attempt(plan)
        if options.target_kl is not None:
            report = meet_target(attempt, report, options.target_kl)
    if not terminal.quiet:
        terminal.tell(summary(report))
    return report


def check_space(output: Path, plan: "Plan") -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        LocalIOError: it has not.
    """
    free = shutil.disk_usage(output.parent).free
    needed = sum(planned.nbytes for planned in plan.values())
    if free < needed:
        raise LocalIOError(
            f"the model needs {needed / 1e9:.2f} GB, the disk of {printable(output.parent)} has"
            f" {free / 1e9:.2f} GB left"
        )


@dataclass(slots=True)
class Attempt:
    """Fills a folder by a plan; what an earlier plan left there goes."""

    terminal: Terminal
    options: QuantizeOptions
    source: Source
    target: Path
    evaluator: "Evaluator | None" = None

    def __call__(self, plan: "Plan") -> "Report":
        """Convert, and measure what is there now."""
        from llamacli.conversion import convert_folder
        from llamacli.quantization_report import Report

        for old in self.target.iterdir():
            old.unlink()
        size = sum(planned.source.nbytes for planned in plan.values())
        title = "dequantizing" if self.options.dequantize else "quantizing"
        with progress(self.terminal, title, size, len(plan)) as show:
            errors = convert_folder(
                self.source.path,
                self.source.checkpoint,
                plan,
                self.target,
                algorithm=self.options.algorithm.value,
                progress=show,
            )
        return Report(plan, errors, self.evaluator(self.target) if self.evaluator else None)


def meet_target(attempt: Attempt, first: "Report", target_kl: float) -> "Report":
    """Raise as few of the worst layers to 8 bits as it takes."""
    from llamacli.cli.quantize_evaluation import fewest
    from llamacli.quantization_plan import raised_to_int8

    order = [name for name in first.worst if first.bits(name) == 4]
    reports = {0: first}

    def divergence(count: int) -> float:
        if count not in reports:
            reports[count] = attempt(raised_to_int8(first.plan, order[:count]))
        fidelity = reports[count].fidelity
        assert fidelity is not None  # there is an evaluator
        raised = f"with {count} of {len(order)} layers raised to 8 bits"
        attempt.terminal.note(f"mean KL divergence {fidelity.mean_kl:.4g} {raised}")
        return fidelity.mean_kl

    count = fewest(len(order), divergence, target_kl)
    latest = [*reports][-1]
    if count != latest:
        attempt.evaluator = None  # the distance of this one is known
        attempt(reports[count].plan)
    return reports[count]


def save_report(options: QuantizeOptions, report: "Report") -> None:
    """Write the report where it was asked for."""
    from llamacli.atomic import atomic_write

    if options.report is not None:
        with atomic_write(options.report) as path:
            text = json.dumps(report.to_dict(), indent=2)
            path.write_text(text + "\n", encoding="utf-8")


quantize = takes_options(quantize_model, QuantizeOptions)
