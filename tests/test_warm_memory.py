"""Memory that is cleared while torch is imported: to the weights, and what is left back."""

import mmap
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from llamacli import warm_memory
from llamacli.checkpoint import open_checkpoint, save_state_dict
from llamacli.devices import free_memory_bytes
from llamacli.load_into import load_into
from llamacli.memory import Scratch, allocate_weight
from llamacli.warm_memory import HUGE_PAGE, WarmMemory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell enough")

SIZE = 48 * HUGE_PAGE


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    warm_memory.end()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * mmap.PAGESIZE


def wait_for(nbytes: int) -> None:
    deadline = time.monotonic() + 60
    while warm_memory.left() < nbytes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert warm_memory.left() == nbytes


def test_weights_get_what_was_cleared() -> None:
    warm_memory.begin(SIZE)
    wait_for(SIZE)
    before = resident_bytes()
    weights = [allocate_weight(SIZE // 4 - 64).fill_(index) for index in range(4)]
    assert resident_bytes() - before < SIZE // 8
    assert [int(weight.unique()) for weight in weights] == [0, 1, 2, 3]
    assert all(weight.data_ptr() % 64 == 0 for weight in weights)
    beyond = allocate_weight(SIZE).fill_(1)  # no room for it: memory of its own
    assert int(beyond.sum()) == SIZE


def test_what_is_taken_meanwhile_is_not_cleared() -> None:
    warm_memory.begin(SIZE)
    taken = [allocate_weight(HUGE_PAGE // 2).fill_(7) for _ in range(95)]
    deadline = time.monotonic() + 60
    warm = warm_memory._warm
    while warm is not None and warm._thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(int(weight.min()) == 7 for weight in taken)


def test_threads_get_parts_of_their_own() -> None:
    warm_memory.begin(SIZE)
    with ThreadPoolExecutor(8) as pool:
        parts = [*pool.map(lambda index: allocate_weight(1000).fill_(index % 251), range(5000))]
    assert all(bool((part == index % 251).all()) for index, part in enumerate(parts))
    spans = sorted((part.data_ptr(), part.data_ptr() + 1000) for part in parts)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_what_nobody_took_goes_back() -> None:
    before = resident_bytes()
    warm_memory.begin(SIZE)
    wait_for(SIZE)
    assert resident_bytes() - before > SIZE * 7 // 8
    weight = allocate_weight(HUGE_PAGE).fill_(3)
    warm_memory.end()
    assert resident_bytes() - before < SIZE // 8
    assert (warm_memory.left(), int(weight.min())) == (0, 3)
    warm_memory.end()  # there is nothing to do


def test_it_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a model would be refused for the memory that is prepared for it."""
    monkeypatch.setattr("llamacli.devices.available_memory_bytes", lambda: 5)
    warm_memory.begin(SIZE)
    wait_for(SIZE)
    assert free_memory_bytes(torch.device("cpu")) == 5 + SIZE


def test_at_most_half_of_the_free_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_memory, "available_memory_bytes", lambda: 2 * SIZE)
    warm_memory.begin(100 * SIZE)
    wait_for(SIZE)
    monkeypatch.setattr(warm_memory, "available_memory_bytes", lambda: None)
    warm_memory.end()
    warm_memory.begin(SIZE)
    assert warm_memory.take(1) is None


def test_small_models_and_limited_address_spaces_do_without() -> None:
    warm_memory.begin(1_000_000)
    assert warm_memory.take(1) is None
    code = (
        "import resource; from llamacli import warm_memory;"
        f"resource.setrlimit(resource.RLIMIT_AS, ({1 << 40}, {1 << 40}));"
        f"warm_memory.begin({SIZE}); print(warm_memory.take(1))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "None\n"


def test_ends_while_it_is_cleared() -> None:
    before = resident_bytes()
    WarmMemory(SIZE).close()
    assert resident_bytes() - before < SIZE // 8


@pytest.mark.parametrize(("dtype", "is_taken"), [(torch.bfloat16, True), (torch.float32, False)])
def test_weights_that_are_converted_do_not_wait_for_it_to_go_back(
    tmp_path: Path, dtype: torch.dtype, is_taken: bool
) -> None:
    """What is prepared for the files, and what they become, would need memory at the same time."""
    module = torch.nn.Linear(1024, 1024, bias=False).bfloat16()
    save_state_dict(tmp_path, module.state_dict())
    warm_memory.begin(SIZE)
    wait_for(SIZE)
    warm, left = warm_memory._warm, []
    assert warm is not None
    load_into(
        module.to("meta"),
        open_checkpoint(tmp_path),
        dtype=dtype,
        progress=lambda *_: left.append(warm_memory.left()),
    )
    assert left == [SIZE - module.weight.nbytes if is_taken else 0]
    assert warm_memory.left() == 0


def test_scratch_is_used_again_until_it_belongs_to_others() -> None:
    scratch = Scratch()
    first = scratch.take(100).data_ptr(), scratch.take(50).data_ptr()
    scratch.reuse()
    again = scratch.take(80), scratch.take(50)
    assert tuple(part.data_ptr() for part in again) == first
    assert [len(part) for part in again] == [80, 50]
    scratch.reuse()
    assert len(scratch.take(200)) == 200
    kept = scratch.take(10).fill_(1)
    scratch.forget()
    scratch.take(200), scratch.take(10).fill_(2)
    assert int(kept.sum()) == 10
