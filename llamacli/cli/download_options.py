"""The command line of `download`: its options, and what contradicts what."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from llamacli.cli import options as opt
from llamacli.errors import RequestError

_FILES, _CACHE, _OUTPUT = "The files", "The cache", "Output"

RepoArgument = Annotated[
    str | None,
    typer.Argument(metavar="REPO", help="A Hugging Face name.", show_default=False),
]
IncludeOption = Annotated[
    list[str] | None,
    opt.option(
        _FILES,
        "--include",
        metavar="PATTERN",
        help="Fetch the files that match instead: '*.gguf', 'onnx/*'. Repeatable.",
        show_default="what a run needs",
    ),
]
ExcludeOption = Annotated[
    list[str] | None,
    opt.option(_FILES, "--exclude", metavar="PATTERN", help="Leave out files. Repeatable."),
]
ToOption = Annotated[
    Path | None,
    opt.option(
        _FILES,
        "--to",
        metavar="DIR",
        help="Write plain files to a folder.",
        show_default="the cache",
    ),
]
DryRunOption = Annotated[
    bool, opt.option(_FILES, "--dry-run", help="Show files and sizes, and whether they fit.")
]
ListOption = Annotated[bool, opt.option(_CACHE, "--list", help="List the models in the cache.")]
VerifyOption = Annotated[
    bool,
    opt.option(
        _CACHE, "--verify", help="Compare the files of REPO, or of all models, with their hashes."
    ),
]
RemoveOption = Annotated[
    bool, opt.option(_CACHE, "--remove", help="Delete REPO from the cache, all revisions.")
]
JsonOption = Annotated[bool, opt.option(_OUTPUT, "--json", help="One JSON object on stdout.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadOptions:
    """The command line of one download, in the order of its help."""

    repo: RepoArgument = None
    revision: opt.RevisionOption = None
    offline: opt.OfflineOption = False
    include: IncludeOption = None
    exclude: ExcludeOption = None
    to: ToOption = None
    dry_run: DryRunOption = False
    list: ListOption = False
    verify: VerifyOption = False
    remove: RemoveOption = False
    json: JsonOption = False
    quiet: opt.QuietOption = False
    debug: opt.DebugOption = False


_OF_A_DOWNLOAD = ("revision", "offline", "include", "exclude", "to", "dry_run")


def check(options: DownloadOptions) -> None:
    """Refuse what contradicts itself.

    Raises:
        RequestError: there is no REPO, or there are options of two jobs.
    """
    jobs = [name for name in ("list", "verify", "remove") if getattr(options, name)]
    others = [name for name in _OF_A_DOWNLOAD if getattr(options, name)] if jobs else []
    if options.offline and not jobs:
        others = [
            name for name in ("include", "exclude", "to", "dry_run") if getattr(options, name)
        ]
        jobs = ["offline"] if others else []
    if len(jobs + others) > 1:
        one, other = (f"--{name.replace('_', '-')}" for name in (jobs + others)[:2])
        raise RequestError(f"{one} and {other} contradict each other")
    if options.list and options.repo is not None:
        raise RequestError("--list takes no REPO")
    if options.repo is None and not (options.list or options.verify):
        raise RequestError("name a repository", hint="llamacli download ORG/NAME")
