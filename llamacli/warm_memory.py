"""Memory that the system clears while torch is still being imported.

Clearing 0.7 GB takes 0.1 s, and up to 1.2 s in a virtual machine that must get it from its host:
as long as the import. It is given to the weights, and what they leave goes back.
"""

import ctypes
import mmap
import resource
import threading
from contextlib import suppress

from llamacli.machine_memory import available_memory_bytes

HUGE_PAGE = 1 << 21

_ALIGNMENT = 64
_STEP = 8 * HUGE_PAGE  # after each, the thread waits 5 ms for those that import
_AT_LEAST = 64_000_000  # less is cleared in no time


class WarmMemory:
    """A mapping in huge pages; a thread has the system clear one after the other."""

    def __init__(self, nbytes: int) -> None:
        whole = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(whole))
        start = -self._address % HUGE_PAGE
        self._address += start
        self._whole, self._start, self._size = whole, start, nbytes // HUGE_PAGE * HUGE_PAGE
        self._taken = self._cleared = 0
        self._lock, self._stop = threading.Lock(), threading.Event()
        whole.madvise(mmap.MADV_HUGEPAGE, start, self._size)
        self._thread = threading.Thread(target=self._clear, daemon=True)
        self._thread.start()

    def _clear(self) -> None:
        while self._cleared < self._size and not self._stop.is_set():
            length = min(_STEP, self._size - self._cleared)
            with self._lock:
                if self._taken <= self._cleared:  # else it belongs to others
                    ctypes.memset(self._address + self._cleared, 0, length)
                self._cleared += length

    @property
    def left(self) -> int:
        """Bytes that are cleared, and that nobody has taken."""
        return max(0, self._cleared - self._taken)

    def take(self, nbytes: int) -> memoryview | None:
        """The next part, aligned to a cache line; None if there is not so much."""
        with self._lock:
            start = -(-self._taken // _ALIGNMENT) * _ALIGNMENT
            end = start + nbytes
            if end > self._size:
                return None
            self._taken = end
        return memoryview(self._whole)[self._start + start : self._start + end]

    def close(self) -> None:
        """Give back what nobody has taken."""
        self._stop.set()
        self._thread.join()
        with self._lock:
            rest = self._start + -(-self._taken // mmap.PAGESIZE) * mmap.PAGESIZE
            self._taken = self._size
        if rest < self._start + self._size:
            self._whole.madvise(mmap.MADV_DONTNEED, rest, self._start + self._size - rest)


_warm: WarmMemory | None = None


def begin(nbytes: int) -> None:
    """Prepare for weights of so many bytes, where the system can, and has twice as much."""
    global _warm
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    free = available_memory_bytes()
    if limit != resource.RLIM_INFINITY or free is None or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    if (nbytes := min(nbytes, free // 2)) >= _AT_LEAST:
        with suppress(OSError):
            _warm = WarmMemory(nbytes)


def take(nbytes: int) -> memoryview | None:
    """Memory that was prepared, if there is so much."""
    return None if _warm is None else _warm.take(nbytes)


def left() -> int:
    """Bytes that are prepared: the system counts them as taken."""
    return 0 if _warm is None else _warm.left


def end() -> None:
    """The weights have come: give back what they have not taken."""
    global _warm
    if _warm is not None:
        _warm.close()
        _warm = None
