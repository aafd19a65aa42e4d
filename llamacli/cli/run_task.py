"""llamacli run --task: texts in, labels, entities or answers out, a JSON object a line."""

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from llamacli.atomic import atomic_write
from llamacli.cli.choices import Task
from llamacli.cli.console import Terminal
from llamacli.cli.option_class import takes_options
from llamacli.cli.run import open_folder, run_prompts
from llamacli.cli.run_options import RunOptions, checked_ranks, given_by, origin
from llamacli.cli.run_weights import load_weights
from llamacli.cli.task_records import TaskRecord, collect_records
from llamacli.cli.threads import calm_threads
from llamacli.errors import RequestError

if TYPE_CHECKING:
    from llamacli.pipelines.base import Pipeline

SCHEMA_VERSION = 1

# The options that have an effect on each task.
_OF_OTHERS = frozenset(
    """prompt model revision offline device device_map max_memory offload_folder dtype quantize
    activations threads attn_implementation check_tensors prompt_file task format column
    output json color quiet debug""".split()
)
_OF_TASK = {
    Task.TEXT_GENERATION: {field.name for field in dataclasses.fields(RunOptions)}
    - {"format", "column", "output", "aggregation_strategy"},
    Task.TEXT_CLASSIFICATION: _OF_OTHERS,
    Task.TOKEN_CLASSIFICATION: _OF_OTHERS | {"aggregation_strategy"},
    Task.QUESTION_ANSWERING: _OF_OTHERS,
}


def run_prompts_or_task(ctx: typer.Context, options: RunOptions) -> None:
    """Do the task that the options name; without one, continue texts."""
    for name in ctx.params.keys() - _OF_TASK[options.task]:
        given = origin(ctx, name)
        if given != "default" and not given.startswith("LLAMACLI_"):
            raise RequestError(f"{given} has no effect with --task {options.task}")
    if options.task is Task.TEXT_GENERATION:
        run_prompts(ctx, options)
    elif checked_ranks(ctx, options.tp, options.device) > 1:
        raise RequestError(f"{given_by(ctx, 'tp')} has no effect with --task {options.task}")
    else:
        run_task(ctx.obj, options)


def run_task(terminal: Terminal, options: RunOptions) -> None:
    """Read the inputs, load the model, write the results."""
    if options.model is None:
        message = f"--task {options.task} needs a model with its head, which the demo model has not"
        raise RequestError(message, hint="name one with -m MODEL")
    records = collect_records(terminal, options)
    pipeline = _pipeline(terminal, options)
    terminal.status("reading the input …")
    if options.output is None:
        for line in _lines(pipeline, records):
            terminal.write(line)
        return
    with atomic_write(options.output) as path, path.open("w", encoding="utf-8") as file:
        file.writelines(_lines(pipeline, records))


def _pipeline(terminal: Terminal, options: RunOptions) -> "Pipeline":
    folder = open_folder(terminal, options)
    calm_threads()
    with terminal.importing():
        from llamacli.pipelines.factory import PIPELINES
    opened = PIPELINES[options.task]
    model = load_weights(terminal, options, folder, 1, 1, opened.opens)
    defaults = {}
    if options.task is Task.TOKEN_CLASSIFICATION and options.aggregation_strategy is not None:
        defaults["aggregation_strategy"] = options.aggregation_strategy.value
    return opened(model, folder.tokenizer, **defaults)


def _lines(pipeline: Any, records: list[TaskRecord]) -> Iterator[str]:
    from llamacli.cli.jobs import named

    for index, record in enumerate(records):
        with named(record.source):
            [result] = pipeline([record.inputs])
        found = result if isinstance(result, dict) else {"entities": result}
        head = {"schema_version": SCHEMA_VERSION, "index": index, "id": record.source.id}
        yield json.dumps(head | found, ensure_ascii=False) + "\n"


run_prompts_or_task.__doc__ = run_prompts.__doc__  # the help
run = takes_options(run_prompts_or_task, RunOptions)
