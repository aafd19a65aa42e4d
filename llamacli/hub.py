"""Model name or folder → local folder. The only file that knows huggingface_hub."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from llamacli.errors import (
    AuthenticationError,
    LlamacliError,
    NetworkError,
    NotFoundError,
    RequestError,
    printable,
)

# What a run needs: no pickles, no Meta originals, no weights twice.
FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model")

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class Snapshot(NamedTuple):
    """A model on the local disk."""

    path: Path
    revision: str | None  # commit hash of a hub model, None for a plain folder


def resolve(
    model: str | os.PathLike[str], *, revision: str | None = None, offline: bool = False
) -> Snapshot:
    """The local folder of a model, downloaded when it is a hub name that is not in the cache.

    Args:
        model: a folder, or a hub name such as "meta-llama/Llama-3.2-1B".
        revision: branch, tag or commit of a hub model.
        offline: never ask the network.

    Raises:
        NotFoundError: no such folder, repository or revision; or not cached while offline.
        AuthenticationError: the repository is gated.
        NetworkError: the hub cannot be reached.
        RequestError: neither a folder nor a hub name; a revision for a folder.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise RequestError(f"{printable(path)} is a folder: it has no revision {revision!r}")
        return Snapshot(path, None)
    name = str(model)
    if path.exists():
        raise RequestError(f"{printable(name)} is a file; a model is the folder around it")
    if path.is_absolute() or name.startswith((".", "~")) or not _REPO_ID.fullmatch(name):
        raise NotFoundError(f"there is no folder {printable(name)}")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported
    path = Path(_snapshot(name, revision))
    return Snapshot(path, path.name)


def _snapshot(repo_id: str, revision: str | None) -> str:
    """A cached snapshot at once, a download otherwise."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return snapshot_download(repo_id, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        pass
    try:
        return snapshot_download(repo_id, revision=revision, allow_patterns=[*FILES])
    except Exception as problem:
        raise _translate(problem, repo_id, revision) from problem


def _translate(problem: Exception, repo_id: str, revision: str | None) -> LlamacliError:
    """The hub client's many exceptions as one of ours; subclasses come before their parents."""
    from huggingface_hub import errors

    cause = problem.__cause__
    if isinstance(problem, errors.GatedRepoError):
        page = f"https://huggingface.co/{repo_id}"
        return AuthenticationError(f"{repo_id} is gated", hint=f"ask for access on {page}")
    if isinstance(problem, errors.RepositoryNotFoundError):
        hint = "check the spelling; a private repository needs a token: hf auth login"
        return NotFoundError(f"the hub has no repository {repo_id}", hint=hint)
    if isinstance(problem, errors.RevisionNotFoundError):
        return NotFoundError(f"{repo_id} has no revision {printable(revision)}")
    if isinstance(problem, errors.OfflineModeIsEnabled) or isinstance(
        cause, errors.OfflineModeIsEnabled
    ):
        return NotFoundError(f"{repo_id} is not in the cache, and offline mode is on")
    return NetworkError(
        f"cannot fetch {repo_id} from the hub: {printable(cause or problem)}",
        hint="try again, or give a folder",
    )
