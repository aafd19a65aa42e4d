"""Whether the files of a model in the cache have the bytes that the hub gave them a name for."""

import hashlib
import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from threading import Event
from typing import NamedTuple

from llamacli.background import Progress, Report, Step, Stopped
from llamacli.hub.cache import CachedModel

_READ_BYTES = 1 << 20


class State(StrEnum):
    """What the cache has of a commit."""

    WHOLE = "whole"
    PARTIAL = "partial"
    ABSENT = "absent"
    CORRUPT = "corrupt"


class Verified(NamedTuple):
    """The state of a commit.

    Attributes:
        files: those that are missing, or were wrong.
    """

    state: State
    commit: str | None
    files: list[str]


def hasher(etag: str, size: int) -> "hashlib._Hash":
    """The hash that an ETag is: SHA-256, or git's SHA-1, which begins with the size."""
    if len(etag) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def has_hash(path: Path, name: str, etag: str, report: Report, stop: Event) -> bool:
    """Whether a file has the bytes that its ETag stands for; `name` is what is reported."""
    with path.open("rb") as file:
        found = hasher(etag, os.fstat(file.fileno()).st_size)
        while data := file.read(_READ_BYTES):
            if stop.is_set():
                raise Stopped
            found.update(data)
            report(Progress(Step.VERIFY, name, len(data)))
    return found.hexdigest() == etag


def verify(model: CachedModel, report: Report, stop: Event) -> list[Verified]:
    """The state of each commit; wrong files are deleted, so that they can be fetched again."""
    known: dict[Path, bool] = {}  # commits share files
    found = [_verify_commit(model, commit, known, report, stop) for commit in model.commits()]
    return found or [Verified(State.ABSENT, None, [])]


def _verify_commit(
    model: CachedModel, commit: str, known: dict[Path, bool], report: Report, stop: Event
) -> Verified:
    listing, wrong = model.listing(commit), []
    etags = {file.path: file.etag for file in listing.files} if listing else {}
    for path, link in _files(model.snapshot(commit)):
        blob = link.resolve()
        etag = etags.get(path) or _etag_of_link(link)
        if blob not in known and etag is not None:
            known[blob] = has_hash(link, path, etag, report, stop)
            if not known[blob]:
                _delete(model, link)
        if not known.get(blob, True):
            wrong.append(path)
    if wrong:
        return Verified(State.CORRUPT, commit, wrong)
    whole = model.is_whole(commit)
    return Verified(State.WHOLE if whole else State.PARTIAL, commit, model.lacks(commit))


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _etag_of_link(link: Path) -> str | None:
    """The name of the blob, by which huggingface_hub stores a file."""
    name = Path(os.readlink(link)).name if link.is_symlink() else ""
    return name if len(name) in (40, 64) else None


def _delete(model: CachedModel, link: Path) -> None:
    """The link, the blob, and what that may link to in the cache's shared store."""
    cache = model.folder.parent.resolve()
    while True:
        target = (
            Path(os.path.abspath(link.parent / os.readlink(link))) if link.is_symlink() else None
        )
        link.unlink(missing_ok=True)
        if target is None or not target.parent.resolve().is_relative_to(cache):
            return
        link = target
