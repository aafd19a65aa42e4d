"""What huggingface_hub reads from the environment, checked before it is imported."""

import os
from types import ModuleType

from llamacli.errors import RequestError, printable


def constants() -> ModuleType:
    """huggingface_hub's constants: endpoint, cache, time limits, offline mode.

    Raises:
        RequestError: a variable without which it cannot be imported is no number.
    """
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        value = os.environ.get(name, "0")
        if not (value.isascii() and value.isdigit()):
            shown = printable(repr(value))
            raise RequestError(f"{name} must be a whole number of seconds, got {shown}")
    # Otherwise it would tell the hub about this machine.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants

    return constants
