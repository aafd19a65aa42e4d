"""llamacli bench: how fast a model runs here, and how fast it could."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llamacli.cli.allocator import keep_freed_memory
from llamacli.cli.bench_options import BenchOptions, Format, checked
from llamacli.cli.choices import Backend
from llamacli.cli.console import Terminal
from llamacli.cli.download_progress import resolve_model
from llamacli.cli.exit_codes import ExitCode
from llamacli.cli.option_class import takes_options
from llamacli.cli.progress import begin
from llamacli.cli.run_options import named_by_option
from llamacli.cli.threads import calm_threads, default_threads, set_threads
from llamacli.errors import RequestError, first_five, printable

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from llamacli.benchmark.record import Row
    from llamacli.benchmark.session import Peer, Settings, Source
    from llamacli.quantization_plan import Recipe


def bench_models(ctx: typer.Context, options: BenchOptions) -> None:
    """Measure how fast models run, and how near that is to what the machine can do.

    The table goes to stdout: pp is a prompt, tg the decoding of new tokens, @ d at a depth of the
    context, b in a batch. Tokenizing and sampling are not counted. LISTs are such as 512 or 0,1024
    or 1-8*2; every combination is measured.

    \b
    Examples:
      llamacli bench ./my-model
      llamacli bench --shape tinyllama-1.1b --quantize none,int4
      llamacli bench ./my-model -p 512 -n 128 -d 0,1024 -b 1,4 -t 1,2 -o json > new.json
    """
    terminal: Terminal = ctx.obj
    options = checked(ctx, options)
    calm_threads()
    keep_freed_memory()
    with terminal.importing():
        from llamacli.benchmark.compare import change, read_report
        from llamacli.benchmark.peers import peer
    old = read_report(options.compare) if options.compare else None
    with named_by_option(ctx):
        peers = [peer(text, options.cases) for text in options.versus or ()]
    sources = open_sources(terminal, options)
    rows: list[Row] = []
    try:
        measured = measure_all(terminal, options, sources, peers)
        if options.tp_counts != [1]:
            measured = iter(measure_shared(terminal, options, sources))
        for row in measured:
            rows.append(row if old is None else replace(row, change=change(row, old)))
            if options.output_format is Format.JSONL:
                write(terminal, options, rows[-1:])
    finally:  # what is finished when it is interrupted, too
        if rows and options.output_format is not Format.JSONL:
            write(terminal, options, rows)
    if options.plot is not None:
        draw(terminal, rows, options.plot)
    judge(terminal, options, rows)


def open_sources(terminal: Terminal, options: BenchOptions) -> "list[Source]":
    """Everything that is measured, each form of it, before the first is loaded.

    Raises:
        RequestError: a test is longer than a model's context.
    """
    from llamacli.benchmark.session import Source
    from llamacli.quantization_plan import Recipe

    set_threads(None)
    sources: list[Source] = []
    for bits in options.bits:
        recipe = None if bits is None else Recipe(bits=bits)
        sources += [Source.of_shape(name, recipe) for name in options.shape or ()]
        for name in options.models or () if options.shape else options.models or (None,):
            sources.append(open_source(terminal, options, name, recipe))
    longest = max(case.length for case in options.cases)
    for source in sources:
        if longest > source.config.context_length:
            context = f"the context of {printable(source.name)} is {source.config.context_length:,}"
            raise RequestError(f"a test needs {longest:,} tokens, {context}")
    return sources


def open_source(
    terminal: Terminal, options: BenchOptions, name: str | None, recipe: "Recipe | None"
) -> "Source":
    """A model of a folder or the hub."""
    from llamacli.benchmark.session import Source
    from llamacli.loading import open_weights
    from llamacli.model_folder import DEMO_FOLDER, read_config

    if name is None:
        terminal.note("using the small demo model; the argument MODEL names another")
    terminal.status("reading the model …")
    model = DEMO_FOLDER if name is None else name
    snapshot = resolve_model(terminal, model, options.revision, offline=options.offline)
    config = read_config(snapshot.path)
    return Source(
        name="demo" if name is None else name,
        revision=snapshot.revision,
        config=config,
        weights=open_weights(snapshot.path, config),
        recipe=recipe,
    )


def measure_shared(
    terminal: Terminal, options: BenchOptions, sources: "list[Source]"
) -> "list[Row]":
    """The rows of all sources for each number of ranks."""
    from llamacli.cli.bench_ranks import measure_ranks

    def measure(mesh: "DeviceMesh") -> "Iterator[Row]":
        return measure_all(terminal, options, sources, [], mesh)

    return measure_ranks(terminal, options.tp_counts, options.device, measure)


def measure_all(
    terminal: Terminal,
    options: BenchOptions,
    sources: "list[Source]",
    peers: "Sequence[Peer]",
    mesh: "DeviceMesh | None" = None,
) -> "Iterator[Row]":
    """The rows of all sources, on this rank of a mesh; what is being done is told on stderr."""
    from llamacli.benchmark.session import measure

    counts = options.thread_counts
    plans = [settings_of(options, source, counts) for source in sources]
    for source, settings in zip(sources, plans, strict=True):
        source.require_memory(settings, peers, 1 if mesh is None else mesh.size())
    for number, (source, settings) in enumerate(zip(sources, plans, strict=True), start=1):
        which = f"{printable(source.name)} {source.form('')}".rstrip()
        if len(sources) > 1:
            which += f" ({number} of {len(sources)})"

        def show(phase: str, step: str = "", which: str = which) -> None:
            tell = terminal.status if step else partial(begin, terminal)
            tell(f"{which}: {phase}{step} …")

        yield from measure(source, settings, peers, show, mesh)


def settings_of(options: BenchOptions, source: "Source", threads: list[int]) -> "Settings":
    """How a source is measured."""
    from llamacli.benchmark.session import Settings

    # XLA takes all cores, however small the model.
    size = source.parameters if options.backend is Backend.TORCH else sys.maxsize
    return Settings(
        cases=options.cases,
        threads=threads or [default_threads(size)],
        repetitions=options.repetitions,
        dtype=options.dtype.value,
        device=options.device,
        activations=options.activations.value,
        backend=options.backend.value,
    )


def write(terminal: Terminal, options: BenchOptions, rows: "list[Row]") -> None:
    """The report, in the format asked for."""
    from llamacli.benchmark import report
    from llamacli.benchmark.machine import machine

    match options.output_format:
        case Format.MD:
            terminal.write(report.to_markdown(rows))
        case Format.CSV:
            terminal.write(report.to_csv(rows))
        case Format.JSON:
            terminal.write(report.to_json(rows, machine()))
        case Format.JSONL:
            terminal.write("".join(map(report.json_line, rows)))


def draw(terminal: Terminal, rows: "list[Row]", path: Path) -> None:
    """The picture as a file, and its lines as blocks on stderr."""
    from llamacli.atomic import atomic_write
    from llamacli.benchmark.plot import axis_of, series_of, sparkline, to_svg

    with atomic_write(path) as temporary:
        temporary.write_text(to_svg(rows), encoding="utf-8")
    if not terminal.quiet:
        axis = axis_of(rows)
        terminal.tell(f"tokens per second over {axis}:")
        for series in series_of(rows, axis):
            terminal.tell(sparkline(series))


def judge(terminal: Terminal, options: BenchOptions, rows: "list[Row]") -> None:
    """Fail where a test became too slow.

    Raises:
        RequestError: the earlier report has none of the tests.
    """
    limit = options.fail_under
    if limit is None:
        return
    changes = [(row.case.test, row.change) for row in rows if row.change is not None]
    if all(change.ratio is None for _, change in changes):
        raise RequestError(f"{printable(options.compare)} has none of these tests")
    slow = [test for test, change in changes if change.is_under(limit)]
    if slow:
        terminal.error(f"slower than {limit:g} of the earlier report: {first_five(slow)}")
        raise typer.Exit(ExitCode.SLOWER)


bench = takes_options(bench_models, BenchOptions)
