"""Weights on disk ↔ tensors in memory, strict: headers first, memory last, nothing guessed.

A checkpoint is `model.safetensors`, or `model.safetensors.index.json` and the shards it names.
Where both are present the single file counts, as in transformers.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from llamacli.atomic import atomic_write_all
from llamacli.checkpoint_index import (
    INDEX_FILE,
    SINGLE_FILE,
    check_shard,
    index_text,
    is_sharded,
    read_index,
    split_into_shards,
    weight_files,
)
from llamacli.errors import CheckpointError, LocalIOError, printable
from llamacli.memory import allocate
from llamacli.quantization import Int4Weight, Int8Weight, QuantizedWeight
from llamacli.torchao_format import PARTS, WeightInfo, fold_parts
from llamacli.weight_file import Take, TensorInfo, WeightFile

logger = logging.getLogger(__name__)

MAX_SHARD_BYTES = 5_000_000_000

Weight = Tensor | QuantizedWeight


@dataclass(frozen=True)
class Checkpoint:
    """Weights that may be read, from files that stay open as long as this object lives.

    Attributes:
        tensors: name → shape, dtype and place, in the order of the files.
    """

    tensors: Mapping[str, WeightInfo]
    files: Mapping[str, WeightFile]

    @property
    def total_bytes(self) -> int:
        """Size of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def read(self, name: str, take: Take = allocate) -> Weight:
        """One weight, on the CPU.

        Args:
            take: gives memory for its parts, as `WeightFile.read` wants it.

        Raises:
            CheckpointError: int8 zero points other than 0; and as `WeightFile.read`.
            LocalIOError, ResourceError: as `WeightFile.read`.
        """
        return self.read_part(self.tensors[name], take)

    def read_part(self, info: WeightInfo, take: Take = allocate) -> Weight:
        """A weight, or its `rows` or `columns`.

        Raises:
            CheckpointError, LocalIOError, ResourceError: as `read`.
        """
        if isinstance(info, TensorInfo):
            return self._read(info, take)
        qdata, scale, zero_point = (info.parts[part] for part in PARTS)
        if info.scheme.bits == 4:
            return Int4Weight(*(self._read(part, take) for part in (qdata, scale, zero_point)))
        if self._read(zero_point, take).any():
            raise CheckpointError(f"{qdata.shard}: zero points of int8 weights must be 0")
        return Int8Weight(self._read(qdata, take), self._read(scale, take))

    def _read(self, info: TensorInfo, take: Take) -> Tensor:
        return self.files[info.shard].read(info, take)

    def __iter__(self) -> Iterator[tuple[str, Weight]]:
        """Read one weight after the other; only the one at hand is kept in memory."""
        return ((name, self.read(name)) for name in self.tensors)

    def check_finite(self) -> None:
        """Read every weight.

        Raises:
            CheckpointError: one is NaN or infinite.
        """
        for name, info in self.tensors.items():
            for part in [info] if isinstance(info, TensorInfo) else info.parts.values():
                if part.dtype.is_floating_point and not is_finite(self._read(part, allocate)):
                    raise CheckpointError(f"{part.shard}: {name} holds values that are not finite")


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    low, high = tensor.aminmax()  # NaN wins, and no copy is made
    return bool(low.isfinite() and high.isfinite())


# ----------------------------------------------------------------------------------------------
# Open


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a folder's weights and check all headers; no tensor is read.

    Raises:
        NotFoundError: no folder, no weights in it, or a shard is missing.
        LocalIOError: a file may not be read.
        CheckpointError: a file is malformed or in a refused format, or the files contradict each
            other.
    """
    if is_sharded(folder):
        return _open_shards(folder)
    file = WeightFile(folder / SINGLE_FILE)
    tensors, metadata = file.header()
    return Checkpoint(fold_parts(tensors, metadata), {SINGLE_FILE: file})


def _open_shards(folder: Path) -> Checkpoint:
    index = WeightFile(folder / INDEX_FILE)
    weight_map, total_bytes = read_index(index.path)
    files = {name: WeightFile(folder / name) for name in sorted(set(weight_map.values()))}
    headers = {name: file.header() for name, file in files.items()}
    # All files were open before the first is looked up again, so they are of one moment.
    for file in (index, *files.values()):
        if not file.is_current():
            message = f"{file.name} was replaced while the model was opened"
            raise CheckpointError(message, hint="try again")
    tensors = {name: info for shard, _ in headers.values() for name, info in shard.items()}
    for shard, (held, _) in headers.items():
        check_shard(shard, held.keys(), {name for name in weight_map if weight_map[name] == shard})
    metadata = {key: value for _, found in headers.values() for key, value in found.items()}
    checkpoint = Checkpoint(fold_parts(tensors, metadata), files)
    if total_bytes not in (None, checkpoint.total_bytes):
        logger.warning(
            "%s says %s bytes, the shards hold %s",
            INDEX_FILE,
            printable(total_bytes),
            checkpoint.total_bytes,
        )
    return checkpoint


# ----------------------------------------------------------------------------------------------
# Save


def save_state_dict(
    folder: Path, state: Mapping[str, Tensor], *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write tensors as Hugging Face does, all or nothing; an earlier checkpoint is replaced.

    A tensor with several names, as tied embeddings, is stored under the first.

    Args:
        folder: made if it does not exist.
        state: name → tensor, in the order in which shards are filled.
        max_shard_bytes: of tensors in a file; a larger tensor gets a file of its own.

    Raises:
        LocalIOError: the disk refused; the earlier checkpoint is whole.
    """
    shards = split_into_shards(_without_aliases(state), max_shard_bytes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The index goes first and comes last: nobody finds it beside shards of another save.
        stale = [folder / name for name in weight_files(folder) if name not in shards]
    except OSError as problem:
        raise LocalIOError(f"cannot write to {printable(folder)}: {problem.strerror}") from problem
    names = [*shards] if SINGLE_FILE in shards else [*shards, INDEX_FILE]
    with atomic_write_all([folder / name for name in names], removing=stale) as paths:
        for path, shard in zip(paths, shards.values(), strict=False):
            _save_shard(path, shard)
        if INDEX_FILE in names:
            paths[-1].write_text(index_text(shards), encoding="utf-8")


def _without_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once, under the first of its names."""
    names: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        names.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype), name)
    return {name: state[name] for name in names.values()}


def _save_shard(path: Path, shard: Mapping[str, Tensor]) -> None:
    whole = {name: tensor.detach().contiguous() for name, tensor in shard.items()}
    try:
        save_file(whole, path, metadata={"format": "pt"})
    except SafetensorError as problem:
        raise LocalIOError(f"cannot write to {printable(path.parent)}: {problem}") from problem
