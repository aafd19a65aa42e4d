"""Weights that are not on the device that computes: read when they are needed, by accelerate.

What has the same form in the files as in memory is read from the model's own files. The rest is
written to a file in the offload folder, which has no name and vanishes with the process.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from llamacli.checkpoint import Checkpoint
from llamacli.errors import LocalIOError, RequestError, ResourceError, printable
from llamacli.load_into import READING_THREADS, Weighty, loaded_bytes
from llamacli.memory import allocate
from llamacli.placement import DISK, WHOLE_MODULES, Placement, accelerate, unit_of
from llamacli.torchao_format import QuantizedInfo
from llamacli.weight_file import TensorInfo, read_bytes

_ALIGNMENT = 64


class _File(Protocol):
    """Tensors on disk."""

    def read_into(self, info: TensorInfo, memory: Tensor) -> Tensor:
        """One of them."""

    def read_ahead(self, info: TensorInfo) -> None:
        """One of them will soon be wanted."""


class SpillFile:
    """A file without a name in a folder, to which tensors are appended. Threads may share it.

    Raises:
        LocalIOError: the folder does not exist, or may not be written to.
        ResourceError: it has less room than `nbytes`.
    """

    def __init__(self, folder: Path, nbytes: int) -> None:
        self._where, self._descriptor = printable(folder), -1
        try:
            free = shutil.disk_usage(folder).free
            self._descriptor, path = tempfile.mkstemp(dir=folder)
            os.unlink(path)  # the bytes stay until it is closed
        except OSError as problem:
            raise self._refused(problem) from problem
        if free < nbytes:
            needed = f"offload_folder needs {nbytes / 1e9:.2f} GB, {free / 1e9:.2f} GB are free in"
            raise ResourceError(f"{needed} {self._where}")
        self._lock = threading.Lock()
        self._end = 0

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def append(self, tensor: Tensor) -> TensorInfo:
        """Write a tensor of any device."""
        data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        with self._lock:
            info = TensorInfo(tuple(tensor.shape), tensor.dtype, self._where, self._end)
            self._end += info.nbytes
        view, done = data.numpy().data, 0
        try:
            while done < len(view):
                done += os.pwrite(self._descriptor, view[done:], info.offset + done)
        except OSError as problem:
            raise self._refused(problem) from problem
        return info

    def read_into(self, info: TensorInfo, memory: Tensor) -> Tensor:
        """A tensor in memory that is given, uint8 (nbytes,).

        Raises:
            LocalIOError: the disk refused, or the file has become shorter.
        """
        try:
            is_whole = read_bytes(self._descriptor, info.offset, memory)
        except OSError as problem:
            raise self._refused(problem) from problem
        if not is_whole:
            raise LocalIOError(f"offload_folder {self._where}: what was written is not there")
        return memory.view(info.dtype).view(info.shape)

    def read_ahead(self, info: TensorInfo) -> None:
        """It was just written, so the system has it where there is memory for it."""

    def _refused(self, problem: OSError) -> LocalIOError:
        return LocalIOError(f"offload_folder {self._where}: {problem.strerror}")


class Offload:
    """Puts the weights of a placed model where they belong while they are read.

    Args:
        placement: where that is.
        checkpoint: with the names of the model.
        dtype: of the model.
        converted: weights that become quantized while they are read.

    Raises:
        RequestError: a folder is needed, and none is given.
        LocalIOError, ResourceError: as `SpillFile`.
    """

    def __init__(
        self,
        placement: Placement,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        converted: Mapping[str, object],
    ) -> None:
        self._placement, self._checkpoint = placement, checkpoint
        self._on_disk: dict[str, tuple[_File, TensorInfo]] = {}
        infos = checkpoint.tensors
        stored = {name for name, info in infos.items() if isinstance(info, QuantizedInfo)}
        self._quantized = stored | converted.keys()
        needed = {
            name: loaded_bytes(info, dtype)
            for name, info in infos.items()
            if placement.device_of(name) == DISK
            and (name in self._quantized or info.dtype != dtype)
        }
        self._spilled = needed.keys()
        if needed and placement.offload_folder is None:
            size = f"{len(needed)} weights ({sum(needed.values()) / 1e9:.2f} GB)"
            message = f"offload_folder is needed: {size} on disk have another form in memory"
            raise RequestError(message, hint="name a folder on a disk with that much room")
        if needed and placement.offload_folder is not None:
            self._spill = SpillFile(placement.offload_folder, sum(needed.values()))

    def place(self, name: str, read: Callable[[torch.device | str], Weighty]) -> Weighty:
        """A `load_into.Place`."""
        device = self._placement.device_of(name)
        if device != DISK:
            # Small integers have the form that suits the device where they are used.
            is_away = name in self._quantized and device == "cpu"
            return read(self._placement.main_device if is_away else device).to(device)
        if name not in self._spilled:
            info = self._checkpoint.tensors[name]
            assert isinstance(info, TensorInfo)
            self._on_disk[name] = self._checkpoint.files[info.shard], info
            return torch.empty(info.shape, dtype=info.dtype, device="meta")
        weight = read(self._placement.main_device)
        if isinstance(weight, Tensor):
            self._on_disk[name] = self._spill, self._spill.append(weight)
            return weight.to("meta")
        layer = name.rpartition(".")[0]
        for part, tensor in weight.named_buffers():
            self._on_disk[f"{layer}.{part}"] = self._spill, self._spill.append(tensor)
        return weight.to("meta")

    def dispatch(self, model: nn.Module) -> None:
        """Have accelerate bring the weights of each module where it computes."""
        main = self._placement.main_device
        first: dict[nn.Parameter, str] = {}
        in_memory: dict[str, Tensor] = {}
        parameters = [*model.named_parameters(remove_duplicate=False)]
        for name, parameter in parameters:
            stored = first.setdefault(parameter, name)  # tied weights are stored once
            if stored in self._on_disk:
                self._on_disk[name] = self._on_disk[stored]
        for name, tensor in (*parameters, *model.named_buffers()):
            if main.type != "cpu" and self._placement.device_of(name) == "cpu":
                in_memory[name] = tensor.detach()
        order = [*self._placement.device_map]
        on_disk = sorted(self._on_disk, key=lambda name: order.index(unit_of(name)))
        weights = AbsentWeights(in_memory, {name: self._on_disk[name] for name in on_disk})
        accelerate().dispatch_model(
            model,
            dict(self._placement.device_map),
            main_device=str(main),
            state_dict=weights,
            offload_index={},
            offload_buffers=True,
            preload_module_classes=[*WHOLE_MODULES],
            force_hooks=True,
        )


class AbsentWeights(Mapping[str, Tensor]):
    """Weights by name, on the CPU.

    Those on disk are valid until one of another layer is asked for: they share one piece of memory,
    which is as large as the largest layer. They are expected in the order of the model.
    """

    def __init__(
        self, in_memory: Mapping[str, Tensor], on_disk: Mapping[str, tuple[_File, TensorInfo]]
    ) -> None:
        self._in_memory, self._on_disk = in_memory, on_disk
        self._units: dict[str, list[str]] = {}
        for name in on_disk:
            self._units.setdefault(unit_of(name), []).append(name)
        self._next = dict(zip(self._units, [*self._units][1:] + [*self._units][:1], strict=True))
        sizes = (sum(map(self._room, names)) for names in self._units.values())
        self._buffer = allocate(max(sizes, default=0) or 1)
        self._unit: str | None = None
        self._held: dict[str, Tensor] = {}
        self._pool = ThreadPoolExecutor(READING_THREADS)

    def _room(self, name: str) -> int:
        return -(-self._on_disk[name][1].nbytes // _ALIGNMENT) * _ALIGNMENT

    def __getitem__(self, name: str) -> Tensor:
        if name in self._in_memory:
            return self._in_memory[name]
        if (unit := unit_of(name)) != self._unit:
            self._read(unit)
        return self._held[name]

    def _read(self, unit: str) -> None:
        """All weights of a module, by several threads; the system is told of the next."""
        places: dict[str, Tensor] = {}
        end = 0
        for name in self._units[unit]:
            places[name] = self._buffer[end : end + self._on_disk[name][1].nbytes]
            end += self._room(name)

        def read(name: str) -> Tensor:
            file, info = self._on_disk[name]
            return file.read_into(info, places[name])

        self._unit = None  # should the disk refuse
        self._held = dict(zip(places, self._pool.map(read, places), strict=True))
        self._unit = unit
        for name in self._units[self._next[unit]]:
            file, info = self._on_disk[name]
            file.read_ahead(info)

    def __iter__(self) -> Iterator[str]:
        return iter((*self._in_memory, *self._on_disk))

    def __len__(self) -> int:
        return len(self._in_memory) + len(self._on_disk)
