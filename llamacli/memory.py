"""Memory for weights: taken and given back at once, in huge pages where the system has them.

malloc keeps the holes that dropped tensors leave, and a process grows to twice its model. With
small pages a stream through the weights ran at 12 GB/s, with huge ones at 15.
"""

import mmap
import threading

import torch
from torch import Tensor

from llamacli import warm_memory
from llamacli.warm_memory import HUGE_PAGE


def allocate(nbytes: int) -> Tensor:
    """A mapping of its own, as uint8 (nbytes,); aligned to a huge page if it is as large as one.

    Raises:
        OSError: no memory.
    """
    room = HUGE_PAGE if nbytes >= HUGE_PAGE else 0
    memory = mmap.mmap(-1, nbytes + room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % HUGE_PAGE if room else 0
    if room and hasattr(mmap, "MADV_HUGEPAGE"):
        # Whole pages only: beyond the end nothing should be taken.
        memory.madvise(mmap.MADV_HUGEPAGE, start, nbytes // HUGE_PAGE * HUGE_PAGE)
    return whole[start : start + nbytes]


def allocate_weight(nbytes: int) -> Tensor:
    """Memory for what lives as long as the model, uint8 (nbytes,); errors as `allocate`."""
    warm = warm_memory.take(nbytes) if nbytes else None
    return allocate(nbytes) if warm is None else torch.frombuffer(warm, dtype=torch.uint8)


class Scratch(threading.local):
    """Memory for what a thread reads, and needs no longer when it reads the next."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._used = 0

    def take(self, nbytes: int) -> Tensor:
        """uint8 (nbytes,); errors as `allocate`."""
        index, self._used = self._used, self._used + 1
        if index == len(self._parts):
            self._parts.append(allocate(nbytes))
        elif len(self._parts[index]) < nbytes:
            self._parts[index] = allocate(nbytes)
        return self._parts[index][:nbytes]

    def reuse(self) -> None:
        """What was taken is needed no longer."""
        self._used = 0

    def forget(self) -> None:
        """What was taken belongs to others now."""
        self._parts, self._used = [], 0


class Arena:
    """Memory for tensors that live together, such as the weights of a model, one after the other.

    So almost all of it is in huge pages, which hold the ends and beginnings of several. A slab is
    given back when the last tensor in it is dropped.
    """

    _SLAB = 16 * HUGE_PAGE
    _ALIGNMENT = 64

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free = torch.empty(0, dtype=torch.uint8)

    def take(self, nbytes: int) -> Tensor:
        """uint8 (nbytes,), aligned to a cache line; errors as `allocate`."""
        size = -(-nbytes // self._ALIGNMENT) * self._ALIGNMENT
        if size > self._SLAB // 4:
            return allocate_weight(nbytes)
        with self._lock:
            if size > len(self._free):
                self._free = allocate_weight(self._SLAB)
            taken, self._free = self._free[:nbytes], self._free[size:]
        return taken
