"""bench --tp: each number of ranks is measured in processes of its own."""

import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import typer

from llamacli.cli.console import Terminal
from llamacli.cli.ranks import fork_ranks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from llamacli.benchmark.record import Row

Measure = Callable[["DeviceMesh"], Iterable["Row"]]


def measure_ranks(
    terminal: Terminal, counts: Sequence[int], device: str, measure: Measure
) -> "list[Row]":
    """The rows of every number of ranks, with their efficiency beside one.

    Args:
        terminal: where errors are told.
        counts: of ranks.
        device: that was asked for.
        measure: gives the rows, on every rank of a mesh.
    """
    rows: list[Row] = []
    for count in counts:
        rows += _measure(terminal, count, device, measure)
    return [replace(row, efficiency=_efficiency(row, rows)) for row in rows]


def _measure(terminal: Terminal, count: int, device: str, measure: Measure) -> "list[Row]":
    from llamacli.collectives import join
    from llamacli.devices import choose_device

    with TemporaryFile() as file:
        place = fork_ranks(count, terminal)
        if isinstance(place, int):
            if place:
                raise typer.Exit(place)
            file.seek(0)
            rows: list[Row] = pickle.load(file)
            return rows
        found = list(measure(join(place, choose_device(device).type)))
        if place.rank == 0:
            pickle.dump(found, file)
            file.flush()
        os._exit(0)


def _efficiency(row: "Row", rows: "Sequence[Row]") -> float | None:
    """Speed for each thread, or GPU, beside that of one rank."""

    def what(row: "Row") -> tuple[object, ...]:
        return row.subject.model, row.subject.weights, row.case

    def units(row: "Row") -> int:
        return row.subject.tp if row.subject.device.startswith("cuda") else row.subject.threads

    for alone in rows:
        if alone.subject.tp == 1 and what(alone) == what(row):
            speeds = row.tokens_per_second / alone.tokens_per_second
            return speeds * units(alone) / units(row)
    return None
