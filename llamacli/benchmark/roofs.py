"""What this machine can do at best: how fast it reads memory, and how fast it multiplies."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from llamacli.benchmark.measure import synchronize
from llamacli.kernels import native
from llamacli.memory import allocate

READ_BYTES = 1 << 29  # far more than any cache holds
_WIDTH = 4096  # of the matrices
_ROWS = {"cpu": 512}  # of activations, as in a chunk of a prompt; elsewhere as many as columns
_CALLS = {"cpu": 1}  # that are timed together; elsewhere waiting takes as long as a tenth of one
_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Roofs:
    """Of one device, one dtype and one number of threads.

    Attributes:
        bytes_per_second: of a read of memory that is too large for caches, from front to back.
        flops_per_second: of a product of large matrices by torch.
    """

    bytes_per_second: float
    flops_per_second: float


def roofs(device: torch.device, dtype: torch.dtype, seconds: float = _SECONDS) -> Roofs:
    """Measure both with torch's present number of threads, so many seconds each."""
    reading = _reading(device)
    read_s = _best(reading, device, seconds)
    rows = _ROWS.get(device.type, _WIDTH)
    x, weight = (torch.rand(n, _WIDTH, device=device).to(dtype) for n in (rows, _WIDTH))
    product_s = _best(lambda: F.linear(x, weight), device, seconds)
    return Roofs(READ_BYTES / read_s, 2 * rows * _WIDTH**2 / product_s)


def _reading(device: torch.device) -> Callable[[], object]:
    """Something that reads READ_BYTES."""
    if device.type != "cpu":
        # A copy moves every byte twice.
        source = torch.ones(READ_BYTES // 2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)
    data = allocate(READ_BYTES).fill_(1)
    if native.kernels() is None:
        return data.view(torch.float32).sum
    return lambda: native.read(data)


@torch.inference_mode()
def _best(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The shortest time of a call, of those that begin within so many seconds."""
    calls = _CALLS.get(device.type, 10)
    work()  # the first touches memory, and compiles what is compiled late
    synchronize(device)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        synchronize(device)
        times.append((time.perf_counter() - start) / calls)
    return min(times)
