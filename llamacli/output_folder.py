"""Folders that appear whole or not at all: filled beside their final name, synced, renamed.

Beside OUT may lie `.OUT.tmp`, where the writer of OUT works: locked meanwhile, rubbish otherwise.
It keeps its name until all is done, so that nobody else settles what is not finished. `.OUT.old`
is what OUT was, whole; it lies there from one rename to the next.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from llamacli.atomic import sync
from llamacli.errors import LocalIOError, printable


@contextmanager
def output_folder(
    path: Path, *, source: Path | None = None, replace: bool = False
) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `path` if the body succeeds.

    Args:
        path: the final name; an empty folder may have it.
        source: the folder of the input, which is never touched.
        replace: a model may have the final name, too.

    Raises:
        LocalIOError: `path` cannot be had, another process writes it, or the disk refused;
            `path` is as it was.
    """
    try:
        _check_place(path, source)
        _check_free(path, replace)
        workplace = _beside(path, "tmp")
        with _locked(workplace, path):
            _settle(path, workplace)
            _sweep(workplace)
            _check_free(path, replace)
            new = workplace / "new"
            new.mkdir()
            yield new
            for entry in (*new.rglob("*"), new):
                sync(entry)
            _check_free(path, replace)
            _publish(new, path, workplace)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise LocalIOError(f"cannot write to {printable(path)}: {reason}") from problem


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}")


def _check_place(path: Path, source: Path | None) -> None:
    if path.name in ("", ".."):
        raise LocalIOError(f"{printable(path)} is no name for a new folder")
    if not path.parent.is_dir():
        raise LocalIOError(
            f"the folder {printable(path.parent)} does not exist", hint="make it first"
        )
    for name in (path, _beside(path, "tmp"), _beside(path, "old")):
        kind = "a symbolic link" if name.is_symlink() else "a file"
        if name.is_symlink() or name.is_file():
            hint = "move it away, or name another folder"
            raise LocalIOError(f"{printable(name)} is {kind}, not a folder", hint=hint)
    if source is not None and _overlap(path, source):
        hint = "name another folder"
        raise LocalIOError(f"{printable(path)} is the input, or one holds the other", hint=hint)


def _overlap(path: Path, source: Path) -> bool:
    target = Path(os.path.realpath(path))
    # The files of a hub's snapshot are links to another folder.
    inputs = [Path(os.path.realpath(part)) for part in (source, *source.glob("*"))]
    return any(target.is_relative_to(part) or part.is_relative_to(target) for part in inputs)


def _check_free(path: Path, replace: bool) -> None:
    plain = {entry.name: entry.is_file(follow_symlinks=False) for entry in _entries(path)}
    if plain and not replace:
        hint = "name another folder, or replace it with --force"
        raise LocalIOError(f"{printable(path)} exists and is not empty", hint=hint)
    if plain and not ("config.json" in plain and all(plain.values())):
        problem = "only a model is, which is config.json and other plain files"
        raise LocalIOError(f"{printable(path)} is not replaced: {problem}", hint="remove it first")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with suppress(FileNotFoundError):
        return list(os.scandir(folder))
    return []


def _locked(workplace: Path, path: Path) -> ExitStack:
    """Make and lock the workplace; on exit it is removed. A killed process holds no lock."""
    while True:
        with suppress(FileExistsError):
            workplace.mkdir()
        # Whoever had it before may remove it at any time up to the lock.
        with ExitStack() as stack, suppress(FileNotFoundError):
            descriptor = os.open(workplace, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LocalIOError(f"another llamacli is writing {printable(path)}") from None
            if _is_at(workplace, descriptor):
                stack.callback(_remove, workplace, descriptor)
                return stack.pop_all()


def _is_at(path: Path, descriptor: int) -> bool:
    return os.path.samestat(os.fstat(descriptor), os.lstat(path))


def _remove(workplace: Path, descriptor: int) -> None:
    try:
        shutil.rmtree(workplace, ignore_errors=True)
    except BaseException:  # the first signal; another one would end the process
        with suppress(FileNotFoundError):
            if _is_at(workplace, descriptor):
                shutil.rmtree(workplace, ignore_errors=True)
        raise


def _sweep(workplace: Path) -> None:
    for entry in _entries(workplace):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry)
        else:
            os.unlink(entry)


def _publish(new: Path, path: Path, workplace: Path) -> None:
    try:
        if _entries(path):
            path.rename(_beside(path, "old"))
        new.rename(path)
        sync(path.parent)
    finally:
        _settle(path, workplace)


def _settle(path: Path, workplace: Path) -> None:
    """What `path` was gets its name back, or goes to the rubbish if `path` is there."""
    old = _beside(path, "old")
    if old.exists():
        old.rename(workplace / "old" if _entries(path) else path)
