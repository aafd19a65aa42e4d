"""Which of several processes this is, as torchrun says it: no torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from llamacli.errors import RequestError, printable

# What torchrun sets, and llamacli for the ranks that it starts itself.
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True, slots=True)
class Place:
    """Of a process among those that share a model.

    Attributes:
        rank: 0 … size-1, over all machines.
        local_rank, local_size: of those on this machine.
        store: where they meet; None is torchrun's.
        wires: to the others, where all are on this machine; see `wires.Wires`.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    store: Any = None
    wires: Any = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self | None:
        """As torchrun tells it; None for a process that it did not start.

        Raises:
            RequestError: the variables are no numbers.
        """
        if not all(name in environ for name in (*_VARIABLES, "MASTER_ADDR", "MASTER_PORT")):
            return None
        try:
            return cls(*(int(environ[name]) for name in _VARIABLES))
        except ValueError as problem:
            raise RequestError(f"torchrun's variables: {printable(problem)}") from problem
