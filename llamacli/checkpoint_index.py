"""Which files hold a model's weights, by Hugging Face's rules: one file, or shards and an index."""

import json
import logging
import os
import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Protocol, TypeVar

from llamacli.errors import (
    CheckpointError,
    LlamacliError,
    LocalIOError,
    NotFoundError,
    first_five,
    printable,
)
from llamacli.json_files import read_json_object
from llamacli.weight_file import TO_SAFETENSORS, WeightFile, refuse_foreign_format

logger = logging.getLogger(__name__)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_INDEX_BYTES = 64_000_000

_SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\.safetensors")
_WRITTEN_SHARD_NAME = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


# ----------------------------------------------------------------------------------------------
# Read


def is_sharded(folder: Path) -> bool:
    """Whether the weights are those that the index names, not a single file.

    Raises:
        NotFoundError: no folder, or no weights in it.
        LocalIOError: it may not be listed.
        CheckpointError: only weights in a refused format, which are not opened.
    """
    try:
        names = set(os.listdir(folder))
    except FileNotFoundError as problem:
        raise NotFoundError(f"{printable(folder)} does not exist") from problem
    except NotADirectoryError as problem:
        file = WeightFile(folder)
        refuse_foreign_format(file.start(64), file.name)
        raise NotFoundError(f"{file.name} is a file, not a folder") from problem
    except OSError as problem:
        raise LocalIOError(f"cannot list {printable(folder)}: {problem.strerror}") from problem
    if {SINGLE_FILE, INDEX_FILE} <= names:
        logger.warning("%s is used, %s beside it is ignored", SINGLE_FILE, INDEX_FILE)
    if not names & {SINGLE_FILE, INDEX_FILE}:
        raise _without_safetensors(folder, {Path(name).suffix for name in names})
    return SINGLE_FILE not in names


def _without_safetensors(folder: Path, suffixes: set[str]) -> LlamacliError:
    where = printable(folder)
    if suffixes & {".bin", ".pt", ".pth", ".ckpt"}:
        return CheckpointError(f"pickle weights are refused ({where})", hint=TO_SAFETENSORS)
    if ".gguf" in suffixes:
        return CheckpointError(f"GGUF is not supported ({where})", hint=TO_SAFETENSORS)
    return NotFoundError(f"neither {SINGLE_FILE} nor {INDEX_FILE} in {where}")


def read_index(path: Path) -> tuple[dict[str, str], object]:
    """Tensor name → shard name, and the total size that the index claims.

    Raises:
        CheckpointError: malformed, or a shard name that may lead out of the folder.
    """
    index = read_json_object(path, error=CheckpointError, max_bytes=MAX_INDEX_BYTES)
    weight_map, metadata = index.get("weight_map"), index.get("metadata")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_FILE}: weight_map must be an object that is not empty")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise CheckpointError(
                f"{INDEX_FILE}: shard names must be plain file names that end in .safetensors,"
                f" got {printable(repr(shard))}"
            )
    return weight_map, metadata.get("total_size") if isinstance(metadata, dict) else None


def check_shard(shard: str, held: Set[str], promised: Set[str]) -> None:
    """A shard holds the tensors that the index promises, and no others.

    Raises:
        CheckpointError: it does not.
    """
    if absent := promised - held:
        raise CheckpointError(f"{shard} lacks what the index promises: {first_five(absent)}")
    if extra := held - promised:
        raise CheckpointError(f"{shard} holds what the index puts elsewhere: {first_five(extra)}")


# ----------------------------------------------------------------------------------------------
# Write


class Sized(Protocol):
    """A tensor, or what stands for one."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        ...


SizedT = TypeVar("SizedT", bound=Sized)


def split_into_shards(state: Mapping[str, SizedT], max_bytes: int) -> dict[str, dict[str, SizedT]]:
    """File name → its tensors: filled in order, a larger tensor alone in its file."""
    shards: list[dict[str, SizedT]] = [{}]
    room = max_bytes
    for name, tensor in state.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = max_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    count = len(shards)
    return {
        f"model-{number:05d}-of-{count:05d}.safetensors": shard
        for number, shard in enumerate(shards, start=1)
    }


def index_text(shards: Mapping[str, Mapping[str, Sized]]) -> str:
    """The JSON of the index."""
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    total_size = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def weight_files(folder: Path) -> list[str]:
    """Names that a checkpoint written here may have, the index first."""
    shards = filter(_WRITTEN_SHARD_NAME.fullmatch, os.listdir(folder))
    return [INDEX_FILE, SINGLE_FILE, *shards]
