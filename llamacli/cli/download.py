"""llamacli download: a model into the cache, and what is there."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llamacli.cli.console import Terminal
from llamacli.cli.download_options import DownloadOptions, check
from llamacli.cli.download_progress import DownloadDisplay
from llamacli.cli.option_class import takes_options
from llamacli.errors import CheckpointError, NetworkError, NotFoundError, printable

if TYPE_CHECKING:
    from llamacli.hub.download import Plan


def download_model(ctx: typer.Context, options: DownloadOptions) -> None:
    """Fetch a model into the cache that other tools share; its folder goes to stdout.

    Only what a run needs is fetched: safetensors, config, tokenizer, template. A download that
    was cut short goes on where it was, and each file is compared with its hash.

    \b
    Examples:
      llamacli download meta-llama/Llama-3.2-1B
      llamacli download meta-llama/Llama-3.2-1B --dry-run
      llamacli run -m "$(llamacli download -q org/name --to ./name)" "Once upon a time"
      llamacli download --list
    """
    check(options)
    terminal: Terminal = ctx.obj
    with terminal.importing():
        import llamacli.hub  # noqa: F401
    if options.list:
        list_cache(terminal, options)
    elif options.verify:
        verify_cache(terminal, options)
    elif options.remove:
        remove(terminal, str(options.repo))
    else:
        download_files(terminal, options, str(options.repo))


# ---------------------------------------------------------------------------------------- download


def download_files(terminal: Terminal, options: DownloadOptions, name: str) -> None:
    """Plan, and fetch unless only the plan was asked for."""
    from llamacli import hub
    from llamacli.cli import download_report
    from llamacli.hub.download import fetch
    from llamacli.hub.settings import constants

    if options.offline or constants().HF_HUB_OFFLINE:
        write_path(terminal, options, name, hub.only_cached(name, options.revision).path, 0)
        return
    with DownloadDisplay(terminal) as display:
        plan = ask(terminal, options, name, display)
        if plan is None:
            return
        if options.dry_run:
            terminal.write(download_report.plan_text(terminal, plan, as_json=options.json))
            return
        if plan.missing and (note := download_report.skipped_note(plan)):
            terminal.note(note)
        path = fetch(plan, display)
    write_path(terminal, options, name, path, plan.nbytes)


def ask(
    terminal: Terminal, options: DownloadOptions, name: str, display: DownloadDisplay
) -> "Plan | None":
    """What is to be done; None if the hub cannot be reached, but the cache has the model."""
    from llamacli import hub
    from llamacli.hub.download import make_plan

    terminal.status(f"asking the hub for {printable(name)} …")
    try:
        return make_plan(
            name,
            options.revision,
            include=options.include or (),
            exclude=options.exclude or (),
            folder=options.to,
            report=display,
        )
    except NetworkError as problem:
        cached = hub.find_cached(name, options.revision)
        if cached is None or options.dry_run or options.to or options.include:
            raise
        terminal.note(f"{problem}; what the cache has is used")
        write_path(terminal, options, name, cached.path, 0)
        return None


def write_path(
    terminal: Terminal, options: DownloadOptions, name: str, path: Path, nbytes: int
) -> None:
    """Write the folder, or all that there is to say about it as JSON."""
    if options.json:
        commit = path.name if options.to is None else None
        facts = {"repo": name, "revision": commit, "path": str(path), "bytes_downloaded": nbytes}
        terminal.write(json.dumps({"schema_version": 1} | facts) + "\n")
    else:
        terminal.write(f"{path}\n")


# --------------------------------------------------------------------------------------- the cache


def list_cache(terminal: Terminal, options: DownloadOptions) -> None:
    """The models in the cache, and what is there of each."""
    from llamacli.cli import download_report
    from llamacli.hub.cache import cached_models

    terminal.write(download_report.cache_text(terminal, cached_models(), as_json=options.json))


def verify_cache(terminal: Terminal, options: DownloadOptions) -> None:
    """Read all files of a model, or of all, and tell which are right.

    Raises:
        CheckpointError: a file has wrong bytes.
        NotFoundError: files are missing.
    """
    from llamacli.background import run_in_background
    from llamacli.cli import download_report
    from llamacli.hub.cache import CachedModel, cached_models
    from llamacli.hub.verify import State, verify

    models = [CachedModel(options.repo)] if options.repo else [*cached_models()]
    with DownloadDisplay(terminal) as display:
        found = {model.name: run_in_background(partial(verify, model), display) for model in models}
    terminal.write(download_report.verified_text(terminal, found, as_json=options.json))
    states = {each.state for commits in found.values() for each in commits}
    hint = "llamacli download REPO fetches what is missing"
    if State.CORRUPT in states:
        raise CheckpointError("files had wrong bytes and were deleted", hint=hint)
    if states - {State.WHOLE}:
        raise NotFoundError("not all files are there", hint=hint)


def remove(terminal: Terminal, name: str) -> None:
    """Delete a model from the cache."""
    from llamacli.cli.download_report import size
    from llamacli.hub.cache import CachedModel

    model = CachedModel(name)
    nbytes = model.nbytes
    model.remove()
    if not terminal.quiet:
        terminal.tell(f"llamacli: removed {name}: {size(nbytes)}")


download = takes_options(download_model, DownloadOptions)
