"""What the ranks of a model do together, and how a process becomes one of them."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llamacli.errors import RequestError, ResourceError, printable
from llamacli.ranks import Place
from llamacli.wires import Wires

T = TypeVar("T")

# Whoever started the ranks sees a dead one, too, and tells more about it before this rank does.
_PATIENCE_S = 3.0


@contextmanager
def _together() -> Iterator[None]:
    """Within it an error means that another rank is gone.

    Raises:
        ResourceError: it is.
    """
    try:
        yield
    except (RuntimeError, OSError) as problem:
        time.sleep(_PATIENCE_S)
        first = printable(str(problem).partition("\n")[0])
        raise ResourceError(f"another rank of the model is gone: {first}") from problem


class Group:
    """The ranks of a mesh, as layers see them; those of one machine have wires to each other."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self._group: Any = mesh.get_group()
        self._wires: Wires | None = getattr(mesh, "wires", None)

    def add_up(self, part: Tensor) -> Tensor:
        """The sum over all ranks; `part` is this rank's summand, and may be overwritten."""
        part = part.contiguous()
        with _together():
            if self._wires is not None:
                first, *rest = self._wires.exchange(part)
                return sum(rest, first)
            self._group.allreduce([part]).wait()
        return part

    def gather_last(self, part: Tensor, length: int) -> Tensor:
        """The ranks' parts (…, n) in a row: (…, length); the last part may be shorter."""
        size = self._group.size()
        widest = -(-length // size)
        part = F.pad(part, (0, widest - part.shape[-1])).contiguous()
        with _together():
            if self._wires is not None:
                parts = self._wires.exchange(part)
            else:
                parts = [torch.empty_like(part) for _ in range(size)]
                self._group.allgather([parts], [part]).wait()
        return torch.cat(parts, dim=-1)[..., :length]


def join(place: Place, device_type: str) -> DeviceMesh:
    """Meet the other ranks: by NCCL on CUDA devices, one for each local rank, else by Gloo.

    On a CPU layers use the wires of the place, if it has any.

    Raises:
        ResourceError: they cannot be reached.
    """
    if not dist.is_initialized():
        backend = "nccl" if device_type == "cuda" else "gloo"
        with _together():
            dist.init_process_group(
                backend, store=place.store, rank=place.rank, world_size=place.size
            )
    mesh = init_device_mesh(device_type, (place.size,))
    if device_type == "cpu":
        mesh.wires = place.wires  # type: ignore[attr-defined]
    return mesh


def join_torchrun(device_type: str) -> DeviceMesh:
    """Meet the other processes that torchrun started; errors as `join`.

    Raises:
        RequestError: it did not start this one.
    """
    place = Place.from_environment(os.environ)
    if place is None:
        hint = "torchrun --nproc-per-node 2 SCRIPT"
        raise RequestError("tp_plan needs several processes, started by torchrun", hint=hint)
    return join(place, device_type)


def share(value: T) -> T:
    """What rank 0 has, on every rank."""
    values = [value]
    with _together():
        dist.broadcast_object_list(values)
    return values[0]
