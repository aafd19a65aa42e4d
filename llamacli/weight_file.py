"""One safetensors file: opened once, its header judged, its tensors read without a second copy.

The safetensors library judges the header; on top of it stand only the checks that it leaves to
its callers. The bytes are read by descriptor, two or more tensors at a time, which the library
(one at a time, at half the speed) and a memory map do not give: a mapped file that shrinks kills
the process (SIGBUS), a short read is an error like any other.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llamacli.errors import CheckpointError, LocalIOError, NotFoundError, ResourceError, printable
from llamacli.memory import allocate

MAX_HEADER_BYTES = 100_000_000  # the library's limit
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

Take = Callable[[int], Tensor]

TO_SAFETENSORS = "use the safetensors files of the model, or convert to safetensors"
_DOWNLOAD_AGAIN = "download the file again"
_LIBRARY_PREFIX = "Error while deserializing header: "
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_DATA_END = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d{1,19})\s*\]')


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as its file's header describes it, or a part of it.

    Attributes:
        offset: bytes from the file's start.
        row_stride: bytes from one row to the next; None where they follow each other.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    shard: str
    offset: int
    row_stride: int | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes, on disk and in memory."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Size of a part of length 1 along the first dimension."""
        return self.nbytes // self.shape[0]

    def rows(self, start: int, stop: int) -> "TensorInfo":
        """A part of the tensor along its first dimension, as a tensor of its own."""
        shape = (min(stop, self.shape[0]) - start, *self.shape[1:])
        offset = self.offset + start * (self.row_stride or self.row_bytes)
        return replace(self, shape=shape, offset=offset)

    def columns(self, start: int, stop: int) -> "TensorInfo":
        """A part of a matrix along its second dimension, as a tensor of its own."""
        return replace(
            self,
            shape=(self.shape[0], stop - start),
            offset=self.offset + start * self.dtype.itemsize,
            row_stride=self.row_stride or self.row_bytes,
        )


class WeightFile:
    """A regular file, opened once: what is read stays that file, whatever becomes of its name.

    It is closed when the object is dropped.

    Raises:
        NotFoundError, LocalIOError: it is not there, or may not be read.
        CheckpointError: it is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = printable(path.name)
        self._descriptor = -1
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise CheckpointError(f"{self.name} is not a regular file")
            # O_NONBLOCK: never wait, should a FIFO have taken the file's place just now.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError as problem:
            message = f"{self.name} is missing in {printable(path.parent)}"
            raise NotFoundError(message, hint="download the model again") from problem
        except OSError as problem:
            raise self._unreadable(problem) from problem

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    @property
    def status(self) -> os.stat_result:
        """Size, times and identity of the open file."""
        return os.fstat(self._descriptor)

    def is_current(self) -> bool:
        """Whether the path still leads to this file."""
        try:
            return os.path.samestat(self.path.stat(), self.status)
        except OSError:
            return False

    def start(self, length: int, *, offset: int = 0) -> bytes:
        """Up to `length` bytes."""
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError as problem:
            raise self._unreadable(problem) from problem

    def _unreadable(self, problem: OSError) -> LocalIOError:
        return LocalIOError(f"cannot read {self.name}: {problem.strerror}")

    def header(self) -> tuple[dict[str, TensorInfo], Mapping[str, str]]:
        """Name → TensorInfo in file order, and the metadata.

        Raises:
            CheckpointError: not a safetensors file, or not a whole one.
        """
        length = int.from_bytes(self.start(8), "little")
        if length > MAX_HEADER_BYTES:
            refuse_foreign_format(self.start(64), self.name)
        header = self.start(min(length, MAX_HEADER_BYTES, self.status.st_size), offset=8)
        try:
            # By descriptor, so that the library judges the file that is read later.
            entries: Any = safe_open(f"/dev/fd/{self._descriptor}", framework="pt", backend="pread")
        except (SafetensorError, OSError) as problem:
            raise self._damaged(str(problem), header) from problem
        _refuse_duplicates(header, self.name)
        tensors, offset = {}, 8 + length
        for name in entries.offset_keys():  # the library made sure that they leave no holes
            entry = entries.get_slice(name)
            tensors[name] = self._tensor_info(name, entry.get_shape(), entry.get_dtype(), offset)
            offset += tensors[name].nbytes
        if not tensors:
            raise CheckpointError(f"{self.name}: there are no tensors in it", hint=_DOWNLOAD_AGAIN)
        return tensors, entries.metadata() or {}

    def _damaged(self, reason: str, header: bytes) -> CheckpointError:
        message = f"{self.name}: {printable(reason.removeprefix(_LIBRARY_PREFIX))}"
        if "unknown variant" in reason:
            return CheckpointError(message, hint=f"supported dtypes are {', '.join(DTYPES)}")
        promised = 8 + len(header) + max(map(int, _DATA_END.findall(header)), default=0)
        actual = self.status.st_size
        if promised != actual:
            message += f"; expected {promised:,} bytes, have {actual:,}"
        return CheckpointError(message, hint=_DOWNLOAD_AGAIN)

    def _tensor_info(self, name: str, shape: list[int], dtype: str, offset: int) -> TensorInfo:
        where = f"{self.name}: tensor {printable(name)}"
        if not _TENSOR_NAME.fullmatch(name):
            raise CheckpointError(f"{where} has a name that no Llama model has")
        if dtype not in DTYPES:
            raise CheckpointError(f"{where} has dtype {dtype}; supported are {', '.join(DTYPES)}")
        if 0 in shape:
            raise CheckpointError(f"{where} is empty: its shape is {tuple(shape)}")
        return TensorInfo(tuple(shape), DTYPES[dtype], self.path.name, offset)

    def read(self, info: TensorInfo, take: Take = allocate) -> Tensor:
        """One tensor, on the CPU. Several threads may read at once.

        Args:
            take: gives memory for it, uint8 of so many bytes, or raises OSError.

        Raises:
            CheckpointError, LocalIOError: as `read_into`.
            ResourceError: no memory.
        """
        try:
            memory = take(info.nbytes)
        except OSError as problem:
            message = f"no memory for a tensor of {info.nbytes:,} bytes"
            raise ResourceError(f"{self.name}: {message}") from problem
        return self.read_into(info, memory)

    def read_into(self, info: TensorInfo, memory: Tensor) -> Tensor:
        """One tensor in memory that is given, uint8 (nbytes,) on the CPU.

        Raises:
            CheckpointError: the file has become shorter since it was opened.
            LocalIOError: the disk refused.
        """
        if info.row_stride is None:
            self._fill(memory, info.offset)
        else:
            for row, part in enumerate(memory.view(-1, info.row_bytes)):
                self._fill(part, info.offset + row * info.row_stride)
        return memory.view(info.dtype).view(info.shape)

    def _fill(self, memory: Tensor, offset: int) -> None:
        try:
            is_whole = read_bytes(self._descriptor, offset, memory)
        except OSError as problem:
            raise self._unreadable(problem) from problem
        if not is_whole:
            raise CheckpointError(f"{self.name} became shorter while it was read")

    def read_ahead(self, info: TensorInfo) -> None:
        """Have the system read a tensor that will soon be wanted, where it can."""
        if hasattr(os, "posix_fadvise"):
            advice = os.POSIX_FADV_WILLNEED
            os.posix_fadvise(self._descriptor, info.offset, info.nbytes, advice)


def read_bytes(descriptor: int, offset: int, memory: Tensor) -> bool:
    """Fill uint8 (N,) from a place in a file; whether there was enough. Raises OSError."""
    view, done = memory.numpy().data, 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            return False
        done += count
    return True


def _refuse_duplicates(header: bytes, where: str) -> None:
    """A name that occurs twice, which the library takes in silence."""

    def check(pairs: list[tuple[str, object]]) -> None:  # returns no object, so none is kept
        seen = set()
        for name, _ in pairs:
            if name in seen:
                raise CheckpointError(f"{where}: the header has {printable(name)!r} twice")
            seen.add(name)

    try:
        json.loads(header, object_pairs_hook=check)
    except (ValueError, RecursionError) as problem:
        raise CheckpointError(f"{where}: {printable(problem)}") from problem


def refuse_foreign_format(start: bytes, where: str) -> None:
    """Say what a file is that does not begin as safetensors does.

    Raises:
        CheckpointError: if it is known.
    """
    if start.startswith(b"GGUF"):
        raise CheckpointError(f"{where}: GGUF is not supported", hint=TO_SAFETENSORS)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        raise CheckpointError(f"{where}: pickle weights are refused", hint=TO_SAFETENSORS)
    if start.startswith(b"version https://git-lfs"):
        message = f"{where}: this is a git-LFS pointer, not the file itself"
        raise CheckpointError(message, hint="download the file itself: git lfs pull")
    if start.lstrip().startswith(b"<"):
        raise CheckpointError(f"{where}: this is an HTML page", hint=_DOWNLOAD_AGAIN)
