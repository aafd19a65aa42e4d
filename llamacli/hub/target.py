"""Where the files of a download go: the cache, or a folder of plain files."""

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llamacli.atomic import sync
from llamacli.errors import LocalIOError, printable
from llamacli.hub.cache import CachedModel
from llamacli.hub.client import HubClient
from llamacli.hub.listing import HubFile, Listing
from llamacli.hub.settings import constants
from llamacli.hub.verify import has_hash

logger = logging.getLogger(__name__)


def _part_name(file: HubFile, *, is_ours: bool) -> str:
    """Of a file that is not whole; without a lock it is one that no other process has."""
    owner = "llamacli" if is_ours else f"llamacli-{os.getpid()}"
    return f"{file.etag}.{owner}.incomplete"


def _is_right(path: Path, file: HubFile, client: HubClient) -> bool:
    return has_hash(path, file.path, file.etag, client.report, client.stop)


def _nearest_folder(path: Path) -> Path:
    """The folder itself, or the one in which it would be made."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


class CacheTarget:
    """The cache's folder of one commit.

    Attributes:
        folder: with the files, in the end.
    """

    def __init__(self, model: CachedModel, commit: str) -> None:
        self._model, self._commit = model, commit
        self.folder = model.snapshot(commit)
        self._has_links = True

    @property
    def existing_folder(self) -> Path:
        """Whose disk takes the files."""
        return _nearest_folder(self._model.folder.parent)

    def has(self, file: HubFile, client: HubClient) -> bool:
        """Whether the file is there."""
        return self._model.has(self._commit, file)

    def take(self, file: HubFile, part: Path, client: HubClient) -> bool:
        """Use what other commits, or other processes, brought; whether there is such."""
        if not self.has(file, client) and self._model.has_blob(file):
            self._link(file, self._model.blob(file), shutil.copyfile)
        return self.has(file, client)

    def copied(self, file: HubFile) -> int:
        """Bytes that are copied from the cache."""
        return 0

    def lock(self, file: HubFile) -> Path:
        """huggingface_hub's lock of the file."""
        folder = self._model.folder
        return folder.parent / ".locks" / folder.name / f"{file.etag}.lock"

    def part(self, file: HubFile, *, is_ours: bool = True) -> Path:
        """Where the file is until it is whole."""
        return self._model.blob(file).with_name(_part_name(file, is_ours=is_ours))

    def begin(self, listing: Listing) -> None:
        """Remember what all is to come."""
        self._model.keep_listing(listing)

    def publish(self, file: HubFile, part: Path, client: HubClient) -> None:
        """Give a whole file its name."""
        blob = self._model.blob(file)
        part.replace(blob)
        self._link(file, blob, os.replace)

    def _link(self, file: HubFile, blob: Path, otherwise: Callable[[Path, Path], object]) -> None:
        """A link that moves with the cache; `otherwise` where there are no links."""
        path = self.folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            if constants().HF_HUB_DISABLE_SYMLINKS:
                raise OSError("HF_HUB_DISABLE_SYMLINKS")
            temporary.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:
            self._has_links = False
            otherwise(blob, temporary)
        temporary.replace(path)

    def finish(self, revision: str, listing: Listing) -> None:
        """Remember what the branch or tag is, where the cache can be written."""
        if not self._has_links:
            logger.warning("the cache has no symbolic links: each commit keeps files of its own")
        with suppress(OSError, LocalIOError):
            sync(self._model.folder / "blobs")
            sync(self.folder)
            if self._model.listing(self._commit) is None:  # another tool fetched the files
                self._model.keep_listing(listing)
            self._model.keep_ref(revision, self._commit)


class FolderTarget:
    """A folder of plain files; `.llamacli` in it holds what is not whole.

    Attributes:
        folder: with the files, in the end.
    """

    def __init__(self, folder: Path, model: CachedModel) -> None:
        self.folder, self._model = folder, model

    @property
    def existing_folder(self) -> Path:
        """Whose disk takes the files."""
        return _nearest_folder(self.folder.absolute())

    def has(self, file: HubFile, client: HubClient) -> bool:
        """Whether the file is there.

        Raises:
            LocalIOError: another one has its name, or its name leads out of the folder.
        """
        path = self.folder / file.path
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.folder)):
            raise LocalIOError(f"{printable(path)} leads out of the folder by a symbolic link")
        if not os.path.lexists(path):
            return False
        if path.is_file() and path.stat().st_size == file.size and _is_right(path, file, client):
            return True
        hint = "move it away, or name another folder"
        raise LocalIOError(f"{printable(path)} is another file than the hub's", hint=hint)

    def take(self, file: HubFile, part: Path, client: HubClient) -> bool:
        """Use what the folder has, or a copy of what the cache has; whether there is such.

        No hard link: who edits the copy would edit the cache.
        """
        if self.has(file, client):
            return True
        if not self._model.has_blob(file):
            return False
        part.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._model.blob(file), part)
        if not _is_right(part, file, client):
            part.unlink()
            return False
        self.publish(file, part, client)
        return True

    def copied(self, file: HubFile) -> int:
        """Bytes that are copied from the cache."""
        return file.size if self._model.has_blob(file) else 0

    def lock(self, file: HubFile) -> Path:
        """The lock of the file."""
        return self.folder / ".llamacli" / f"{file.etag}.lock"

    def part(self, file: HubFile, *, is_ours: bool = True) -> Path:
        """Where the file is until it is whole."""
        return self.folder / ".llamacli" / _part_name(file, is_ours=is_ours)

    def begin(self, listing: Listing) -> None:
        """Refuse a workplace that is elsewhere.

        Raises:
            LocalIOError: it is.
        """
        workplace = self.folder / ".llamacli"
        if workplace.is_symlink():
            raise LocalIOError(f"{printable(workplace)} leads out of the folder by a symbolic link")

    def publish(self, file: HubFile, part: Path, client: HubClient) -> None:
        """Give a whole file its name."""
        path = self.folder / file.path
        if not self.has(file, client):  # a link may have come meanwhile
            path.parent.mkdir(parents=True, exist_ok=True)
            part.replace(path)

    def finish(self, revision: str, listing: Listing) -> None:
        """Leave nothing but the files."""
        sync(self.folder)
        shutil.rmtree(self.folder / ".llamacli", ignore_errors=True)
