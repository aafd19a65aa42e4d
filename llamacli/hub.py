"""Model name or folder → local folder. The only file that knows huggingface_hub."""

import os
from pathlib import Path
from typing import NamedTuple

from llamacli.errors import (
    AuthenticationError,
    CheckpointError,
    LlamacliError,
    LocalIOError,
    NetworkError,
    NotFoundError,
    RequestError,
    printable,
)

# What a model needs: no pickles, and no weights twice (Meta's own files, or other formats).
WEIGHTS = ["model.safetensors.index.json", "*.safetensors"]
SMALL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
]
FILES = [*SMALL_FILES, *WEIGHTS]
NO_FILES = ["*/*", "consolidated*"]


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
) -> Snapshot:
    """The local folder of a model: a hub name is downloaded if the cache does not have all of it.

    What the cache has is used as it is; whether a branch has moved on is not asked.

    Args:
        model: a folder, or a hub name such as "meta-llama/Llama-3.2-1B".
        revision: branch, tag or commit of a hub model.
        offline: never ask the network.
        weights: without them only the small files are downloaded: config and tokenizer.

    Raises:
        NotFoundError: no such folder, repository or revision; or not cached while offline.
        AuthenticationError: the repository is gated, or the token is refused.
        NetworkError: the hub cannot be reached, or answers with an error.
        LocalIOError: the cache cannot be written.
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
    try:
        path = Path(_snapshot(name, revision, offline, FILES if weights else SMALL_FILES))
    except Exception as problem:
        raise _translate(problem, name, revision) from problem
    return Snapshot(path, path.name)


def _snapshot(repo_id: str, revision: str | None, offline: bool, files: list[str]) -> str:
    # Read when the client is imported: it would tell the hub about this machine.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    def snapshot(local_files_only: bool) -> str:
        return snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=files,
            ignore_patterns=NO_FILES,
            local_files_only=local_files_only,
        )

    try:
        # Other tools leave parts of a model in the cache; only the listing tells what is missing.
        get_cached_repo_tree(repo_id, revision=revision)
        return snapshot(local_files_only=True)
    except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
        return snapshot(local_files_only=offline)


def _translate(problem: Exception, name: str, revision: str | None) -> LlamacliError:
    """The hub client's many exceptions as one of ours; subclasses come before their parents."""
    from huggingface_hub import errors

    shown = printable(name)
    if isinstance(problem, errors.HFValidationError):
        return NotFoundError(f"there is no folder {printable(repr(name))}, and no hub model")
    if isinstance(problem, errors.LocalEntryNotFoundError):
        # Why the network was of no use; without a reason, it was not asked.
        cause = problem.__cause__
        problem = cause if isinstance(cause, Exception) else errors.OfflineModeIsEnabled()
    if isinstance(problem, errors.OfflineModeIsEnabled):
        return NotFoundError(f"{shown} is not (wholly) in the cache, and offline mode is on")
    if isinstance(problem, errors.GatedRepoError):
        page = f"https://huggingface.co/{shown}"
        hint = f"ask for access on {page}, then: hf auth login"
        return AuthenticationError(f"{shown} is gated", hint=hint)
    if isinstance(problem, errors.RepositoryNotFoundError):
        hint = "check the spelling; a private repository needs a token: hf auth login"
        return NotFoundError(f"there is no folder {shown}, and no such hub model", hint=hint)
    if isinstance(problem, errors.RevisionNotFoundError):
        return NotFoundError(f"{shown} has no revision {printable(revision)}")
    if isinstance(problem, errors.HfHubHTTPError):
        status = problem.response.status_code
        if status in (401, 403):
            hint = "hf auth login, or a valid HF_TOKEN"
            return AuthenticationError(f"the hub refuses {shown} (HTTP {status})", hint=hint)
        return NetworkError(f"the hub fails on {shown} (HTTP {status})", hint="try again later")
    if isinstance(problem, OSError) and problem.errno is not None:
        where = printable(problem.filename or "the cache")
        return LocalIOError(f"cannot write {where}: {problem.strerror}")
    if isinstance(problem, ValueError):
        return NetworkError("the answer is not a hub's", hint="check HF_ENDPOINT and your network")
    reason = printable(problem)
    return NetworkError(f"cannot reach the hub for {shown}: {reason}", hint="try again later")
