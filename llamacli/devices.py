"""Which devices this machine has, and which numbers they compute with."""

import logging
from typing import Any

import torch

from llamacli import warm_memory
from llamacli.config import DTYPES
from llamacli.dense_linear import cpu_computes_bfloat16
from llamacli.errors import RequestError, ResourceError, check_choice, printable
from llamacli.kernels import native
from llamacli.machine_memory import available_memory_bytes

logger = logging.getLogger(__name__)

DEVICE_TYPES = ("cuda", "xpu", "mps", "cpu")  # in the order that "auto" prefers


def available_devices() -> list[str]:
    """Device types that this machine has, in the order that "auto" prefers."""
    return [name for name in DEVICE_TYPES if torch.get_device_module(name).is_available()]


def _all_devices() -> list[str]:
    """Each GPU of several by its number."""
    counts = {kind: torch.get_device_module(kind).device_count() for kind in available_devices()}
    return [
        name
        for kind, count in counts.items()
        for name in ([kind] if count < 2 else [f"{kind}:{index}" for index in range(count)])
    ]


def choose_device(device: str | torch.device | int) -> torch.device:
    """The device meant by "auto", "cpu", "cuda", "cuda:1", …; 0, 1, … are GPUs, -1 is the CPU.

    Raises:
        RequestError: not the name of a device.
        ResourceError: this machine does not have it.
    """
    here = available_devices()
    if str(device) == "-1":
        device = "cpu"
    elif str(device).isdecimal():
        device = f"cuda:{device}"
    if device == "auto":
        return torch.device(here[0])
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in DEVICE_TYPES:
        known = ", ".join(("auto", *DEVICE_TYPES))
        shown = printable(repr(str(device)))
        raise RequestError(f"device must be one of {known} (or cuda:1 …), got {shown}")
    count = torch.get_device_module(chosen).device_count() if chosen.type in here else 0
    if (chosen.index or 0) >= count:
        message = f"this machine has no device {chosen}"
        raise ResourceError(message, hint=f"it has: {', '.join(_all_devices())}")
    return chosen


def choose_dtype(
    dtype: str | torch.dtype, stored: torch.dtype, device: torch.device
) -> torch.dtype:
    """The dtype of the weights in memory.

    "auto" is the stored one, except on a CPU: half precision becomes bfloat16 where the CPU
    computes in it, else float32. (float16 is up to 100 times slower there.) bfloat16 stays where
    the kernels read it. On a GPU that does not compute in bfloat16 it becomes float16.

    Raises:
        RequestError: not the name of a dtype that a model runs in.
        ResourceError: the GPU is too old for the one that was asked for.
    """
    name = str(dtype).removeprefix("torch.")
    known: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}
    check_choice("dtype", name, ("auto", *known))
    chosen = known.get(name, stored)
    if chosen == torch.bfloat16 and not _gpu_computes_bfloat16(device):
        return _without_bfloat16(device, is_asked=name != "auto")
    if name != "auto" or device.type != "cpu" or stored not in (torch.float16, torch.bfloat16):
        return chosen
    if stored == torch.bfloat16 and native.reads_bfloat16():
        return torch.bfloat16
    if not cpu_computes_bfloat16():
        return torch.float32
    if stored == torch.float16:
        logger.warning(
            "the weights are rounded from float16 to bfloat16, in which this CPU computes;"
            " dtype float32 keeps every bit"
        )
    return torch.bfloat16


def _gpu_computes_bfloat16(device: torch.device) -> bool:
    """Whether it does in hardware; true of what is no CUDA device."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def _without_bfloat16(device: torch.device, *, is_asked: bool) -> torch.dtype:
    message = f"{device} ({torch.cuda.get_device_name(device)}) does not compute in bfloat16"
    if is_asked:
        raise ResourceError(message, hint="use dtype float16 or float32")
    logger.warning("%s; the weights are rounded to float16", message)
    return torch.float16


def free_memory_bytes(device: torch.device) -> int | None:
    """What a device can still give; None where it does not tell."""
    if device.type == "cpu":
        free = available_memory_bytes()
        return None if free is None else free + warm_memory.left()
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return None


def main_device(model: Any) -> torch.device:
    """Where a model takes ids and gives scores: that of its weights, or the first of several."""
    dispatched = getattr(model, "_hf_hook", None)  # by accelerate
    if dispatched is not None:
        return torch.device(dispatched.execution_device)
    base = getattr(model, "model", model)
    return next(iter(base.parameters())).device  # type: ignore[no-any-return]
