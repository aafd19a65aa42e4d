"""Models in the Hugging Face cache that other tools share.

models--ORG--NAME/blobs/ETAG             the bytes of a file
models--ORG--NAME/snapshots/COMMIT/PATH  a link to them, or the bytes where links are not to be had
models--ORG--NAME/refs/REVISION          the commit of a branch or tag
models--ORG--NAME/trees/COMMIT.json      all files of a commit, by huggingface_hub
models--ORG--NAME/.llamacli/COMMIT.json  the same, by llamacli: what lies in `trees` makes
                                         huggingface_hub ask for every file, offline, too
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from llamacli.atomic import atomic_write, sync
from llamacli.errors import ArtifactError, LlamacliError, LocalIOError, NotFoundError, printable
from llamacli.hub.listing import (
    INDEX,
    SINGLE,
    HubFile,
    Listing,
    choose,
    listing_text,
    read_listing,
)
from llamacli.hub.settings import constants
from llamacli.json_files import read_json_object

# As huggingface_hub's validate_repo_id, which takes a while to import.
_NAME = re.compile(r"(\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class CachedModel:
    """What the cache has of one repository.

    Attributes:
        name: of the repository, such as "meta-llama/Llama-3.2-1B".
        folder: where it lies, or would lie.
    """

    def __init__(self, name: str) -> None:
        """Nothing is read or made yet.

        Raises:
            NotFoundError: no repository can have this name.
        """
        if not _NAME.fullmatch(name) or ".." in name or "--" in name:
            raise NotFoundError(f"there is no folder {printable(repr(name))}, and no hub model")
        self.name = name
        self.folder = Path(constants().HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"

    def blob(self, file: HubFile) -> Path:
        """Where the bytes of a file are."""
        return self.folder / "blobs" / file.etag

    def has_blob(self, file: HubFile) -> bool:
        """Whether the bytes of a file are there, of whichever commit."""
        return _has_size(self.blob(file), file.size)

    def snapshot(self, commit: str) -> Path:
        """The folder of a commit."""
        return self.folder / "snapshots" / commit

    def has(self, commit: str, file: HubFile) -> bool:
        """Whether the folder of a commit has a file, in the right size."""
        return _has_size(self.snapshot(commit) / file.path, file.size)

    # ------------------------------------------------------------------------ commits and listings

    def commit(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit; None if it was never asked for."""
        if _COMMIT.fullmatch(revision):
            return revision
        with suppress(OSError, ValueError):
            found = self._ref(revision).read_text(encoding="ascii").strip()
            return found if _COMMIT.fullmatch(found) else None
        return None

    def _ref(self, revision: str) -> Path:
        if any(part in ("", ".", "..") for part in revision.split("/")):
            raise NotFoundError(f"{self.name} has no revision {printable(revision)}")
        return self.folder / "refs" / revision

    def keep_ref(self, revision: str, commit: str) -> None:
        """Remember the commit of a branch or tag."""
        if revision != commit and self.commit(revision) != commit:
            path, temporary = self._ref(revision), self.folder / ".llamacli" / f"ref.{os.getpid()}"
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(commit, encoding="ascii")
            sync(temporary)
            temporary.replace(path)  # not from beside it: what is there counts as a ref

    def commits(self) -> list[str]:
        """All commits of which there is anything."""
        found: set[str] = set()
        for folder in ("snapshots", ".llamacli"):
            with suppress(OSError):
                found |= {name[:40] for name in os.listdir(self.folder / folder)}
        return sorted(name for name in found if _COMMIT.fullmatch(name))

    def listing(self, commit: str) -> Listing | None:
        """All files of a commit, if that is known."""
        for folder in ("trees", ".llamacli"):
            if listing := read_listing(self.folder / folder / f"{commit}.json"):
                return listing
        return None

    def keep_listing(self, listing: Listing) -> None:
        """Remember all files of a commit."""
        path = self.folder / ".llamacli" / f"{listing.commit}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(listing_text(listing), encoding="utf-8")

    def lacks(self, commit: str, exclude: Sequence[str] = ()) -> list[str]:
        """What the folder of a commit lacks of the files that a run needs, as far as known."""
        listing = self.listing(commit)
        with suppress(ArtifactError):
            if listing is not None:
                wanted = choose(listing, self.name, exclude=exclude).wanted
                return [file.path for file in wanted if not self.has(commit, file)]
        return []

    def is_whole(self, commit: str, exclude: Sequence[str] = ()) -> bool:
        """Whether the folder of a commit has all that a run needs, but what is excluded.

        Without a listing, as transformers leaves it, config.json and all weights must be there.
        """
        folder = self.snapshot(commit)
        is_there = (folder / "config.json").is_file() if exclude else _has_weights(folder)
        return is_there and not self.lacks(commit, exclude)

    def revisions(self, commit: str) -> list[str]:
        """The branches and tags that are known to be a commit."""
        refs = self.folder / "refs"
        names = [path.relative_to(refs).as_posix() for path in refs.rglob("*") if path.is_file()]
        return sorted(name for name in names if self.commit(name) == commit)

    # ------------------------------------------------------------------------------ list and remove

    @property
    def nbytes(self) -> int:
        """Bytes on the disk, parts of files and all commits included."""
        total = 0
        for path in self.folder.rglob("*"):
            with suppress(OSError):
                if path.is_file() and not (path.is_symlink() and "snapshots" in path.parts):
                    total += min(path.stat().st_size, path.stat().st_blocks * 512)
        return total

    def remove(self) -> None:
        """Delete all of it, and what it alone used of the cache's shared store.

        Raises:
            NotFoundError: there is nothing.
            LocalIOError: the disk refuses.
        """
        if not self.folder.is_dir():
            raise NotFoundError(f"{self.name} is not in the cache", hint="llamacli download --list")
        from huggingface_hub import DeleteCacheStrategy

        # By folder: other repositories may have the same commits.
        DeleteCacheStrategy(
            expected_freed_size=0,
            blobs=frozenset(),
            refs=frozenset(),
            repos=frozenset({self.folder}),
            snapshots=frozenset(),
            cache_dir=self.folder.parent,
        ).execute()
        shutil.rmtree(self.folder.parent / ".locks" / self.folder.name, ignore_errors=True)
        if self.folder.exists():
            raise LocalIOError(f"cannot remove {printable(self.folder)}")


def cached_models() -> Iterator[CachedModel]:
    """All models in the cache, by name."""
    for path in sorted(Path(constants().HF_HUB_CACHE).glob("models--*")):
        with suppress(LlamacliError):
            yield CachedModel(path.name.removeprefix("models--").replace("--", "/"))


def _has_size(path: Path, size: int) -> bool:
    with suppress(OSError):
        return path.is_file() and path.stat().st_size == size
    return False


def _has_weights(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    if (folder / SINGLE).is_file():
        return True
    with suppress(LlamacliError):
        index = read_json_object(folder / INDEX, error=ArtifactError, max_bytes=64_000_000)
        shards = index.get("weight_map")
        if isinstance(shards, dict) and shards:
            return all(isinstance(n, str) and (folder / n).is_file() for n in shards.values())
    return False
