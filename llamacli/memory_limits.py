"""How much of each device's memory the weights may take, as users write it."""

import re
from collections.abc import Mapping

from llamacli.errors import RequestError, printable

_UNITS = {
    prefix + ending: base**power
    for power, prefix in enumerate(("", "k", "m", "g", "t"))
    for ending, base in (("", 1000), ("b", 1000), ("ib", 1024))
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")
_DEVICE = re.compile(r"\d+|cpu|mps")


def memory_limits(limits: str | Mapping[int | str, int | str]) -> dict[str, int]:
    """Device → bytes, such as {"0": 21474836480, "cpu": 8000000000}; numbers are GPUs.

    Args:
        limits: "0=20GiB,cpu=8GB", or such a mapping.

    Raises:
        RequestError: it is neither.
    """
    if isinstance(limits, str):
        pairs = [entry.partition("=")[::2] for entry in limits.split(",")]
        if len(dict(pairs)) < len(pairs):
            raise _refused(limits)
    elif isinstance(limits, Mapping) and limits:
        pairs = [(str(device), str(size)) for device, size in limits.items()]
    else:
        raise _refused(limits)
    found = {device.strip(): _size(size) for device, size in pairs}
    if None in found.values() or not all(map(_DEVICE.fullmatch, found)):
        raise _refused(limits)
    return {device: size for device, size in found.items() if size is not None}


def _size(text: str) -> int | None:
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None or match[2] not in _UNITS:
        return None
    return int(float(match[1]) * _UNITS[match[2]])


def _refused(limits: object) -> RequestError:
    shown = printable(repr(limits))
    return RequestError(f"max_memory must be such as 0=20GiB,cpu=8GiB, got {shown}")
