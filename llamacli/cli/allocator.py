"""How malloc treats what a step of a model frees, which the next step takes again."""

import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_MOST_BYTES = 1 << 25  # that glibc takes for a threshold of mmap
_KEPT_BYTES = 1 << 29


def keep_freed_memory() -> None:
    """Do not give memory back to the system between steps, where glibc is the allocator.

    A prompt of 512 tokens of a 1.1B model took 94,000 page faults, 0.2 s of 0.85. Weights have
    mappings of their own, and are given back as before.
    """
    import ctypes

    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_MMAP_THRESHOLD, _MOST_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
