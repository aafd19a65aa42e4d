"""What a repository holds at one commit, and what of it a run needs."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from llamacli.errors import (
    ArtifactError,
    CheckpointError,
    ConfigError,
    LlamacliError,
    RequestError,
    first_five,
    printable,
)
from llamacli.hub.client import HubClient, Refused
from llamacli.json_files import read_json_object

MAX_FILES = 100_000
MAX_FILE_BYTES = 1 << 50
MAX_LISTING_BYTES = 64_000_000

NEEDED = (
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS = ("*.safetensors", INDEX)

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx")


class HubFile(NamedTuple):
    """One file of a repository.

    Attributes:
        path: below the repository, parts separated by a slash.
        etag: SHA-256 of a large file, git's SHA-1 of a small one, in hexadecimal.
    """

    path: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a repository at one commit."""

    commit: str
    files: tuple[HubFile, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The files that are wanted, and the others by the reason why they are not."""

    wanted: tuple[HubFile, ...]
    skipped: dict[str, list[HubFile]]

    @property
    def nbytes(self) -> int:
        """Of the wanted files."""
        return sum(file.size for file in self.wanted)

    @property
    def skipped_nbytes(self) -> int:
        """Of the others."""
        return sum(file.size for files in self.skipped.values() for file in files)


# ----------------------------------------------------------------------------------------------
# From the hub


def fetch_listing(client: HubClient, name: str, revision: str) -> Listing:
    """Ask which commit a revision is, and for the files of that commit.

    Raises:
        Refused: an answer has another shape than a hub's.
        ArtifactError: a file has a name that is not safe to write.
    """
    api = f"{client.endpoint}/api/models/{name}"
    info, _ = client.get_json(f"{api}/revision/{quote(revision, safe='')}")
    commit = info.get("sha") if isinstance(info, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise Refused("it names no commit")
    files: list[HubFile] = []
    page: str | None = f"{api}/tree/{commit}?recursive=true"
    while page is not None:
        entries, page = client.get_json(page)
        if not isinstance(entries, list) or len(files) + len(entries) > MAX_FILES:
            raise Refused("it is no list of files, or too long a one")
        files += [_from_tree(e) for e in entries if not _is_folder(e)]
    for file in files:
        check_name(file.path)
    return Listing(commit, tuple(sorted(files)))


def _is_folder(entry: object) -> bool:
    return isinstance(entry, dict) and entry.get("type") == "directory"


def _from_tree(entry: Any) -> HubFile:
    try:
        large = entry.get("lfs") or {}
        return _hub_file(
            entry["path"], large.get("size", entry["size"]), large.get("oid", entry["oid"])
        )
    except (AttributeError, KeyError, TypeError):
        raise Refused("it lists a file without path, size or hash") from None


def _hub_file(path: object, size: object, etag: object) -> HubFile:
    if not isinstance(path, str) or type(size) is not int or not 0 <= size <= MAX_FILE_BYTES:
        raise Refused("it lists a file without path or size")
    if not isinstance(etag, str) or not _ETAG.fullmatch(etag):
        raise Refused(f"it lists {printable(path)} without a hash")
    return HubFile(path, size, etag)


def check_name(path: str) -> None:
    """Refuse a path that is not safe to write, on this system or another.

    Raises:
        ArtifactError: it leaves the folder, or has characters or a length that a name has not.
    """
    for part in path.split("/"):
        good = part not in ("", ".", "..") and part.isprintable() and "\\" not in part
        if not good or re.match(r"[A-Za-z]:", part) or len(part.encode("utf-8", "replace")) > 255:
            raise ArtifactError(f"the hub lists a file with an unsafe name: {printable(path)}")


# ----------------------------------------------------------------------------------------------
# On disk: the format of huggingface_hub's own cache of listings (its _tree_cache.py)


def listing_text(listing: Listing) -> str:
    """The JSON text of a listing."""
    files = {}
    for file in listing.files:
        is_large = len(file.etag) == 64
        large = {"lfs_sha256": file.etag, "lfs_size": file.size} if is_large else {}
        files[file.path] = {"size": file.size, "blob_id": file.etag, **large}
    return json.dumps({"format_version": 1, "files": files}, indent=1)


def read_listing(path: Path) -> Listing | None:
    """The listing in a file whose name is the commit; None if there is none that can be used."""
    try:
        value: Any = read_json_object(path, error=ArtifactError, max_bytes=MAX_LISTING_BYTES)
        files = [
            _hub_file(name, e.get("lfs_size", e["size"]), e.get("lfs_sha256", e["blob_id"]))
            for name, e in value["files"].items()
        ]
        for file in files:
            check_name(file.path)
    except (LlamacliError, Refused, AttributeError, KeyError, TypeError):
        return None
    if value.get("format_version") != 1:
        return None
    return Listing(path.stem, tuple(sorted(files)))


# ----------------------------------------------------------------------------------------------
# Choice


def choose(
    listing: Listing, name: str, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Choice:
    """The files that a run needs; with `include`, those that match instead.

    Raises:
        ConfigError, CheckpointError: there is no config.json, or there are no safetensors.
        RequestError: nothing matches.
        ArtifactError: two names differ only in case.
    """
    paths = {file.path for file in listing.files}
    wanted: list[HubFile] = []
    skipped: dict[str, list[HubFile]] = {}
    for file in listing.files:
        reason = _reason(file.path, paths) if not include else _unmatched(file.path, include)
        if reason is None and any(fnmatchcase(file.path, pattern) for pattern in exclude):
            reason = "excluded"
        if reason is None:
            wanted.append(file)
        else:
            skipped.setdefault(reason, []).append(file)
    choice = Choice(tuple(wanted), skipped)
    _check(choice, listing, name, is_run=not include)
    return choice


def _unmatched(path: str, include: Sequence[str]) -> str | None:
    return None if any(fnmatchcase(path, pattern) for pattern in include) else "not included"


def _reason(path: str, all_paths: set[str]) -> str | None:
    """Why a run does not need a file; None if it does."""
    if path in NEEDED:
        return None
    if path.endswith(_OTHER_WEIGHTS):
        return "weights in another format"
    if "/" in path:
        return "in a subfolder"
    if SINGLE in all_paths:
        if path == SINGLE:
            return None
    elif path == INDEX or (INDEX in all_paths and _SHARD.fullmatch(path)):
        return None
    return "the same weights again" if ".safetensors" in path else "not needed to run"


def _check(choice: Choice, listing: Listing, name: str, *, is_run: bool) -> None:
    shown, paths = printable(name), [file.path for file in listing.files]
    has = f"it has {first_five(paths)}" if paths else "it is empty"
    if is_run and not {SINGLE, INDEX} & set(paths):
        hint = "name a repository with model.safetensors, or its files with --include"
        raise CheckpointError(f"{shown} has no safetensors weights; {has}", hint=hint)
    if is_run and "config.json" not in paths:
        raise ConfigError(f"{shown} has no config.json; {has}")
    if not choice.wanted:
        raise RequestError(f"no file of {shown} matches; {has}")
    folded = Counter(unicodedata.normalize("NFC", f.path).casefold() for f in choice.wanted)
    twice, count = folded.most_common(1)[0]
    if count > 1:
        raise ArtifactError(f"{shown} has two files of one name: {printable(twice)}")
