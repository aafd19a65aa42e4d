"""Ranks as forks of one process that has imported torch: what they compute and read, as JSON."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llamacli.cache import KVCache
from llamacli.collectives import join
from llamacli.generation import next_logits
from llamacli.loading import load_model, open_weights
from llamacli.model import LlamaForCausalLM
from llamacli.model_folder import read_config
from llamacli.ranks import Place
from llamacli.weight_file import Take, TensorInfo, WeightFile
from llamacli.wires import Wires
from tests.tiny import random_ids

bytes_read: list[int] = []


def count_reads() -> None:
    read = WeightFile.read

    def counted(self: WeightFile, info: TensorInfo, *take: Take) -> torch.Tensor:
        bytes_read.append(info.nbytes)
        return read(self, info, *take)

    WeightFile.read = counted  # type: ignore[method-assign]


def become_rank(size: int, *, wired: bool) -> Place | None:
    """One of the ranks; None is the process that waits for them."""
    meeting = socket.create_server(("127.0.0.1", 0))
    port = meeting.getsockname()[1]
    wires = Wires.between(size)
    pids = []
    for rank in range(size):
        if (pid := os.fork()) == 0:
            theirs: Any = {"master_listen_fd": meeting.detach()} if rank == 0 else {}
            store = dist.TCPStore(
                "127.0.0.1", port, size, rank == 0, wait_for_workers=False, **theirs
            )
            return Place(rank, size, rank, size, store, wires[rank] if wired else None)
        pids.append(pid)
    meeting.close()
    for pid in pids:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return None


@torch.inference_mode()
def logits(folder: Path, dtype: str, **placed: Any) -> torch.Tensor:
    """Of a prompt, then of one token after it: (2, V)."""
    config = read_config(folder)
    model = load_model(
        LlamaForCausalLM, config, open_weights(folder, config), dtype=dtype, **placed
    )
    cache = KVCache(config.num_hidden_layers)
    ids = random_ids(1, 9)
    found = [next_logits(model, part, cache) for part in (ids[:, :8], ids[:, 8:])]
    return torch.cat(found).float()


def measure(folder: str, size: int, dtype: str, means: str) -> None:
    place = become_rank(size, wired=means == "wires")
    if place is None:
        return
    count_reads()
    ours = logits(Path(folder), dtype, device=join(place, "cpu"))
    everybody: list[Any] = [None] * size
    dist.all_gather_object(everybody, (sum(bytes_read), ours))
    if place.rank == 0:
        alone, exact = (logits(Path(folder), kind, device="cpu") for kind in (dtype, "float32"))
        report = {
            "error": max(float((found - exact).norm()) for _, found in everybody),
            "error_alone": float((alone - exact).norm()),
            "difference": max(float((found - alone).abs().max()) for _, found in everybody),
            "bytes": [count for count, _ in everybody],
        }
        print(json.dumps(report), flush=True)
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in json.loads(sys.argv[1]):
        measure(*case)
