"""How many threads torch computes with, and how they wait."""

import logging
import os

logger = logging.getLogger(__name__)

# Parameters of a model whose operations are so short that threads mostly wait for each other: with
# a busy core beside them a step of the demo model took 190 ms on two threads, 2 ms on one.
_SMALL_MODEL = 30_000_000


def calm_threads() -> None:
    """To be called before torch is imported: let its threads sleep soon when there is no work.

    Decode of a 1.1B model by torch beside a busy core: 2.8 tokens/s, otherwise 0.8; alone 9.2, 9.4.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # read by OpenMP when it is loaded


def set_threads(asked: int | None, ranks: int = 1) -> None:
    """Compute with so many threads; None is one for each physical core that may be used.

    Ranks on this machine share them.
    """
    import torch

    from llamacli.cpu_quota import cpu_quota

    cores = torch.get_num_threads()
    count = possible(asked) if asked else min(cores, cpu_quota() or cores)
    torch.set_num_threads(max(1, count // ranks))


def possible(asked: int) -> int:
    """So many threads, or as many as this machine runs at once."""
    most = os.cpu_count() or 1
    if asked > most:
        logger.warning("%s threads are more than this machine runs at once: %s", asked, most)
    return min(asked, most)


def default_threads(values: int) -> int:
    """Threads for a model with so many numbers, where nobody asked for another count."""
    import torch

    return 1 if values < _SMALL_MODEL else torch.get_num_threads()
