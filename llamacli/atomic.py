"""Files that appear whole or not at all: written beside their final name, synced, renamed."""

import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llamacli.errors import LocalIOError, printable


def check_writable(path: Path) -> None:
    """Before the work, not after it.

    Raises:
        LocalIOError: a file of this name cannot be written.
    """
    if path.is_dir():
        raise LocalIOError(f"{printable(path)} is a folder, not a file to write")
    if not path.parent.is_dir():
        folder = printable(path.parent)
        raise LocalIOError(f"the folder {folder} does not exist", hint="make it first")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write; it becomes `path` if the body succeeds.

    Raises:
        LocalIOError: the disk refused; `path` is as it was.
    """
    with atomic_write_all([path]) as temporaries:
        yield temporaries[0]


@contextmanager
def atomic_write_all(
    paths: Sequence[Path], *, removing: Iterable[Path] = ()
) -> Iterator[list[Path]]:
    """Yield a temporary file for each path; all are on disk before the first gets its name.

    Args:
        paths: the final names, in the order in which they appear.
        removing: files that leave just before, because they contradict the new ones.

    Raises:
        LocalIOError: the disk refused; if it did while writing, all old files are as they were.
    """
    temporaries: list[Path] = []
    try:
        modes = []
        for path in paths:
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            temporary.touch(exist_ok=False)
            temporaries.append(temporary)
            modes.append(stat.S_IMODE(temporary.stat().st_mode))
        yield temporaries
        for temporary, mode in zip(temporaries, modes, strict=True):
            temporary.chmod(mode)  # a writer that renames, as safetensors does, leaves its own
            sync(temporary)
        for old in removing:
            old.unlink(missing_ok=True)
        for temporary, path in zip(temporaries, paths, strict=True):
            temporary.replace(path)
        for folder in {path.parent for path in paths}:
            sync(folder)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        where = printable(paths[0].parent)
        raise LocalIOError(f"cannot write to {where}: {reason}") from problem
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
