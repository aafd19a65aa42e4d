"""Weights on disk ↔ tensors in memory, strict: headers first, memory last, nothing guessed.

A checkpoint is `model.safetensors`, or `model.safetensors.index.json` and the shards it names.
Where both are present the single file counts, as in transformers.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

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
from llamacli.errors import CheckpointError, LocalIOError, first_five, printable
from llamacli.weight_file import TensorInfo, WeightFile

logger = logging.getLogger(__name__)

MAX_SHARD_BYTES = 5_000_000_000
READING_THREADS = min(4, os.cpu_count() or 1)

# Rotary frequencies that old converters stored; they follow from the config.
_REDUNDANT = re.compile(r"(.+\.)?rotary_emb\.inv_freq|rope\.freqs")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors that may be read, from files that stay open as long as this object lives.

    Attributes:
        tensors: name → shape, dtype and place, in the order of the files.
        metadata: of the first file's header.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    files: Mapping[str, WeightFile]

    @property
    def total_bytes(self) -> int:
        """Size of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU; errors as `WeightFile.read`."""
        info = self.tensors[name]
        return self.files[info.shard].read(info)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Read one tensor after the other; only the one at hand is kept in memory."""
        return ((name, self.read(name)) for name in self.tensors)

    def check_finite(self) -> None:
        """Read every weight.

        Raises:
            CheckpointError: one is NaN or infinite.
        """
        for name, tensor in self:
            if tensor.is_floating_point():
                low, high = tensor.aminmax()  # NaN wins, and no copy is made
                if not (low.isfinite() and high.isfinite()):
                    where = self.tensors[name].shard
                    raise CheckpointError(f"{where}: {name} holds values that are not finite")


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
    return Checkpoint(tensors, metadata, {SINGLE_FILE: file})


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
    checkpoint = Checkpoint(tensors, headers[min(files)][1], files)
    if total_bytes not in (None, checkpoint.total_bytes):
        logger.warning(
            "%s says %s bytes, the shards hold %s",
            INDEX_FILE,
            printable(total_bytes),
            checkpoint.total_bytes,
        )
    return checkpoint


def refuse_foreign_quantization(quantization_config: Mapping[str, object] | None) -> None:
    """Refuse weights that another tool quantized, before they are taken for plain ones.

    Raises:
        CheckpointError: config.json has a quantization_config.
    """
    if quantization_config is not None:
        method = printable(quantization_config.get("quant_method", "an unnamed method"))
        raise CheckpointError(
            f"weights quantized by {method} cannot be read",
            hint="use the model that was not quantized",
        )


# ----------------------------------------------------------------------------------------------
# Load


def load_into(
    module: nn.Module,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Give every parameter of a module its tensor; the module is unchanged if that fails.

    The memory needed is that of the parameters, plus one tensor per reading thread.

    Args:
        module: on the meta device, with the names of the checkpoint. Parameters that it shares,
            as tied embeddings, need one of their names in the checkpoint.
        checkpoint: the tensors.
        dtype: of the parameters; None keeps that of the file.
        device: of the parameters.
        progress: called with the bytes read so far and in all, after each tensor.

    Raises:
        CheckpointError: tensors are missing or have another shape than the module; found before
            memory is allocated.
        CheckpointError, LocalIOError, ResourceError: as `WeightFile.read`.
    """
    sources = _sources(module, checkpoint)
    names = set(sources.values())

    def read(name: str) -> Tensor:
        return checkpoint.read(name).to(device=device, dtype=dtype)

    in_file_order = [name for name in checkpoint.tensors if name in names]
    total = sum(checkpoint.tensors[name].nbytes for name in in_file_order)
    tensors: dict[str, Tensor] = {}
    done = 0
    with ThreadPoolExecutor(READING_THREADS) as pool:
        for name, tensor in zip(in_file_order, pool.map(read, in_file_order), strict=True):
            tensors[name] = tensor
            done += checkpoint.tensors[name].nbytes
            if progress is not None:
                progress(done, total)
    loaded = {
        parameter: nn.Parameter(tensors[name], requires_grad=parameter.requires_grad)
        for parameter, name in sources.items()
    }
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, loaded[parameter])


def _sources(module: nn.Module, checkpoint: Checkpoint) -> dict[nn.Parameter, str]:
    """The tensor of each parameter, the first of its names that the checkpoint has."""
    names = dict(module.named_parameters(remove_duplicate=False))
    sources: dict[nn.Parameter, str] = {}
    for name, parameter in names.items():
        if name in checkpoint.tensors:
            sources.setdefault(parameter, name)
    missing = [name for name, parameter in module.named_parameters() if parameter not in sources]
    if missing:
        tied = "if the embeddings are tied, config.json must say so: tie_word_embeddings"
        hint = tied if missing == ["lm_head.weight"] else None
        raise CheckpointError(f"the weights lack {first_five(missing)}", hint=hint)
    misfits = [
        f"{name} (file has {_described(info)}, config wants {_described(parameter)})"
        for parameter, name in sources.items()
        if _described(info := checkpoint.tensors[name]) != _described(parameter)
    ]
    if misfits:
        raise CheckpointError(f"the weights do not fit the config: {first_five(misfits)}")
    strays = [name for name in checkpoint.tensors if name not in names]
    if strays := [name for name in strays if not _REDUNDANT.fullmatch(name)]:
        logger.warning("tensors that the model has no use for: %s", first_five(strays))
    return sources


def _described(tensor: TensorInfo | Tensor) -> str:
    """The shape, and the dtype only where it is no floating-point one: the rest is cast."""
    shape = str(tuple(tensor.shape))
    return shape if tensor.dtype.is_floating_point else f"{shape} of {tensor.dtype}"


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
