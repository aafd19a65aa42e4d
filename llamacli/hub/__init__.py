"""Model name or folder → local folder."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llamacli.background import Report, ignore
from llamacli.errors import (
    AuthenticationError,
    CheckpointError,
    NetworkError,
    NotFoundError,
    RequestError,
    first_five,
    printable,
)
from llamacli.hub.cache import CachedModel
from llamacli.hub.download import fetch, make_plan
from llamacli.hub.listing import WEIGHTS
from llamacli.hub.settings import constants

logger = logging.getLogger(__name__)


class Snapshot(NamedTuple):
    """A model on the local disk."""

    path: Path
    revision: str | None  # commit hash of a hub model, None for a plain folder


def resolve(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    offline: bool = False,
    weights: bool = True,
    report: Report = ignore,
) -> Snapshot:
    """The local folder of a model: a hub name is downloaded if the cache does not have all of it.

    What the cache has is used as it is; whether a branch has moved on is not asked.

    Args:
        model: a folder, or a hub name such as "meta-llama/Llama-3.2-1B".
        revision: branch, tag or commit of a hub model.
        offline: never ask the network.
        weights: without them only the small files are downloaded: config and tokenizer.
        report: is called with each step of a download.

    Raises:
        NotFoundError: no such folder, repository or revision; or not cached while offline.
        AuthenticationError: the repository is gated, or the token is refused.
        NetworkError: the hub cannot be reached, answers with an error, or sends wrong bytes.
        LocalIOError: the cache cannot be written, or the disk has no room.
        ArtifactError: the repository has no safetensors, or file names that are not safe.
        CheckpointError: a GGUF file.
        RequestError: another file; a revision for a folder.
    """
    name = os.path.expanduser(model)
    if os.path.isdir(name):
        if revision is not None:
            raise RequestError(f"{printable(name)} is a folder: it has no revision {revision!r}")
        return Snapshot(Path(name), None)
    if os.path.isfile(name) and name.endswith(".gguf"):
        hint = "give the folder or the hub name of the model's safetensors files"
        raise CheckpointError(f"GGUF is not supported ({printable(name)})", hint=hint)
    if os.path.exists(name):
        raise RequestError(f"{printable(name)} is a file; a model is the folder around it")
    exclude = () if weights else WEIGHTS
    if offline or constants().HF_HUB_OFFLINE:
        return only_cached(name, revision, exclude)
    return _from_hub(name, revision, exclude, report)


def _from_hub(name: str, revision: str | None, exclude: Sequence[str], report: Report) -> Snapshot:
    cached = find_cached(name, revision, exclude)
    if cached is not None and CachedModel(name).listing(cached.path.name) is not None:
        return cached
    try:
        plan = make_plan(name, revision, exclude=exclude, report=report)
    except (NetworkError, AuthenticationError) as problem:
        if cached is None:
            raise
        logger.warning("%s; what the cache has is used", problem)
        return cached
    path = fetch(plan, report)
    return Snapshot(path, path.name)


def find_cached(
    name: str, revision: str | None = None, exclude: Sequence[str] = ()
) -> Snapshot | None:
    """The folder in the cache, if it has all that a run needs but `exclude`; nobody is asked.

    Raises:
        NotFoundError: no repository, or no revision, can have this name.
    """
    model = CachedModel(name)
    commit = model.commit(revision or "main")
    if commit is None or not model.is_whole(commit, exclude):
        return None
    return Snapshot(model.snapshot(commit), commit)


def only_cached(name: str, revision: str | None = None, exclude: Sequence[str] = ()) -> Snapshot:
    """As `find_cached`, for whoever is offline.

    Raises:
        NotFoundError: it has not.
    """
    if (cached := find_cached(name, revision, exclude)) is not None:
        return cached
    model = CachedModel(name)
    commit = model.commit(revision or "main")
    lacks = first_five(model.lacks(commit, exclude)) if commit else ""
    text = f"{printable(name)} is not (wholly) in the cache, and offline mode is on"
    raise NotFoundError(f"{text}: it lacks {lacks}" if lacks else text)
