"""The names of what a report is about: this machine, and this llamacli."""

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_CPU_INFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """What is the same in every row."""
    return {
        "system": platform.platform(),
        "cpu": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "llamacli": version("llamacli"),
        "commit": commit(),
    }


def device_name(device: torch.device) -> str:
    """Of a CPU or a GPU, as its maker calls it."""
    if device.type != "cpu":
        module = torch.get_device_module(device)
        return str(module.get_device_name(device) if hasattr(module, "get_device_name") else device)
    with suppress(OSError, IndexError):
        text = _CPU_INFO.read_text(encoding="ascii", errors="replace")
        return text.partition("model name")[2].splitlines()[0].lstrip("\t :")
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Of llamacli, with "-dirty" where it was changed since; None where it is no repository."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    with suppress(OSError, subprocess.CalledProcessError):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip() or None
    return None
