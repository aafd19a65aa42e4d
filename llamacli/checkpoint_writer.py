"""A checkpoint written in pieces: the headers first, then values in any order, never a whole shard.

The safetensors library wants all tensors of a file in memory at once; a model of any size passes
through here a block at a time. The library reads what was written, and judges it.
"""

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor

from llamacli.checkpoint_index import INDEX_FILE, index_text, split_into_shards
from llamacli.weight_file import DTYPES, TensorInfo

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Layout(NamedTuple):
    """A tensor that is still to be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * self.dtype.itemsize


class CheckpointWriter:
    """Shards of known tensors, open for writing; several threads may write at once.

    Args:
        folder: where the shards and, if there are several, their index go.
        layouts: name → shape and dtype, in the order in which shards are filled.
        metadata: of each shard's header.
        max_shard_bytes: of tensors in a file; a larger tensor gets a file of its own.

    Raises:
        OSError: the disk refused; also from the methods.
    """

    def __init__(
        self,
        folder: Path,
        layouts: Mapping[str, Layout],
        metadata: Mapping[str, str],
        *,
        max_shard_bytes: int,
    ) -> None:
        self._tensors: dict[str, TensorInfo] = {}
        self._descriptors: dict[str, int] = {}
        shards = split_into_shards(layouts, max_shard_bytes)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with ExitStack() as files:  # closed here, should the disk refuse
            for shard, tensors in shards.items():
                self._descriptors[shard] = os.open(folder / shard, flags, 0o666)
                files.callback(os.close, self._descriptors[shard])
                self._write_header(shard, tensors, metadata)
            if len(shards) > 1:
                (folder / INDEX_FILE).write_text(index_text(shards), encoding="utf-8")
            self._files = files.pop_all()

    def _write_header(
        self, shard: str, tensors: Mapping[str, Layout], metadata: Mapping[str, str]
    ) -> None:
        """As the library does it: the widest dtypes first, so that every tensor is aligned."""
        starts, end = {}, 0
        for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
            starts[name], end = end, end + tensors[name].nbytes
        entries = {
            name: {
                "dtype": _NAMES[tensors[name].dtype],
                "shape": tensors[name].shape,
                "data_offsets": [start, start + tensors[name].nbytes],
            }
            for name, start in starts.items()
        }
        text = json.dumps(
            {"__metadata__": dict(metadata)} | entries, separators=(",", ":")
        ).encode()
        text += b" " * (-len(text) % 8)
        self._pwrite(shard, memoryview(len(text).to_bytes(8, "little") + text), 0)
        os.ftruncate(self._descriptors[shard], 8 + len(text) + end)
        for name, start in starts.items():
            self._tensors[name] = TensorInfo(*tensors[name], shard, 8 + len(text) + start)

    def write(self, name: str, values: Tensor, *, row: int = 0, column: int = 0) -> None:
        """Write a rectangle of a tensor, whose upper left corner stands at (row, column)."""
        info = self._tensors[name]
        data = values.contiguous().flatten().view(torch.uint8).numpy().data
        if values.shape[1:] == info.shape[1:]:
            whole = info.rows(row, row + len(values)) if values.ndim else info
            self._pwrite(info.shard, data, whole.offset)
            return
        width = len(data) // len(values)
        for number in range(len(values)):
            start = info.rows(row + number, row + number + 1).offset + column * info.dtype.itemsize
            self._pwrite(info.shard, data[number * width : (number + 1) * width], start)

    def _pwrite(self, shard: str, data: memoryview, offset: int) -> None:
        while data:
            done = os.pwrite(self._descriptors[shard], data, offset)
            data, offset = data[done:], offset + done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._files.close()
