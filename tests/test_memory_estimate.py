"""Memory by sums worked out by hand, and refusals before anything is read."""

import json
from pathlib import Path

import pytest
import torch

from llamacli.benchmark.random_weights import random_weights
from llamacli.benchmark.shapes import shape
from llamacli.checkpoint import Checkpoint
from llamacli.config import LlamaConfig
from llamacli.errors import ResourceError
from llamacli.loading import load_model
from llamacli.machine_memory import available_memory_bytes, peak_memory_bytes, reset_peak_memory
from llamacli.memory_estimate import MemoryEstimate, estimate_memory
from llamacli.model import LlamaForCausalLM
from llamacli.quantization_plan import Recipe
from tests.command_line import here, in_shell, refused
from tests.test_bench_measure import SIZES
from tests.tiny import write_model


def estimated(
    weights: Checkpoint,
    recipe: Recipe | None = None,
    dtype: torch.dtype = torch.bfloat16,
    rows: int = 1,
    tokens: int = 8,
    config: LlamaConfig = SIZES,
    ranks: int = 1,
) -> MemoryEstimate:
    return estimate_memory(
        config,
        weights,
        dtype=dtype,
        device=torch.device("cpu"),
        recipe=recipe,
        rows=rows,
        tokens=tokens,
        ranks=ranks,
    )


@pytest.mark.parametrize("recipe", [None, Recipe(bits=4, group_size=32), Recipe(bits=8)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_are_what_a_loaded_model_holds(recipe: Recipe | None, dtype: torch.dtype) -> None:
    weights = random_weights(SIZES)
    model = load_model(LlamaForCausalLM, SIZES, weights, dtype=dtype, recipe=recipe)
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert estimated(weights, recipe, dtype).weights_bytes == pytest.approx(held, rel=0.02)


def test_the_cache_holds_keys_and_values_of_every_token() -> None:
    small, large = (
        estimated(random_weights(SIZES), rows=r, tokens=t) for r, t in ((1, 8), (3, 16))
    )
    assert small.cache_bytes == 2 * 2 * 2 * 16 * 8 * 2  # both, layers, heads, width, tokens, bytes
    assert large.cache_bytes == 6 * small.cache_bytes


def test_known_sizes_of_a_7b() -> None:
    config = shape("llama-2-7b")
    found = estimated(random_weights(config), tokens=4096, config=config)
    assert round(found.weights_bytes / 1e9, 1) == 13.5
    assert found.cache_bytes == 2**31


def test_int4_weights_are_never_beside_the_model_they_stand_for() -> None:
    """The peak of the process is that of the estimate, far below bfloat16's 160 MB."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 5}
    config = LlamaConfig(**sizes, vocab_size=1000, num_attention_heads=8, dtype="bfloat16")
    weights = random_weights(config, Recipe(bits=4))
    needed = estimated(weights, tokens=1, config=config)
    load_model(LlamaForCausalLM, SIZES, random_weights(SIZES, Recipe(bits=4, group_size=32)))
    reset_peak_memory()
    before = peak_memory_bytes()
    load_model(LlamaForCausalLM, config, weights)
    assert needed.total_bytes < 80e6
    assert peak_memory_bytes() - before < needed.total_bytes + 30e6


# --------------------------------------------------------------------------------- what is free


def write_proc(folder: Path, available_kb: int) -> Path:
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {available_kb} kB\n")
    (folder / "self" / "status").write_text("VmSize: 10 kB\n")
    return folder


def write_cgroup(folder: Path, limit: str) -> Path:
    folder.mkdir()
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text("5000\n")
    (folder / "memory.stat").write_text("anon 1000\nfile 4000\nfile_mapped 7\n")
    return folder


@pytest.mark.parametrize(("limit", "free"), [("max", 8192), ("6000", 5000), ("90000", 8192)])
def test_what_is_free_is_the_least_of_system_and_container(
    limit: str, free: int, tmp_path: Path
) -> None:
    proc = write_proc(tmp_path / "proc", 8)
    assert available_memory_bytes(proc, write_cgroup(tmp_path / "cgroup", limit)) == free


def test_a_system_that_does_not_tell_refuses_nothing(tmp_path: Path) -> None:
    assert available_memory_bytes(tmp_path, tmp_path) is None
    unknown = MemoryEstimate(
        weights_bytes=10**15, cache_bytes=0, scratch_bytes=0, available_bytes=None
    )
    unknown.require()
    assert unknown.fits


# ---------------------------------------------------------------------------------- refusals


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_fault_119_the_sum_is_told() -> None:
    needed = MemoryEstimate(
        weights_bytes=15 * 10**9,
        cache_bytes=6 * 10**8,
        scratch_bytes=46 * 10**7,
        available_bytes=81 * 10**8,
    )
    with pytest.raises(ResourceError) as raised:
        needed.require()
    assert str(raised.value) == (
        "the model needs 16.06 GB of memory (weights 15.00 + cache 0.60 + scratch 0.46),"
        " 8.10 GB are free"
    )


def test_fault_119_too_little_memory_is_refused_before_a_weight_is_read(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Checkpoint, "read", read)
    monkeypatch.setattr("llamacli.devices.available_memory_bytes", lambda: 1000)
    for command in (("run", "-m", model, "a"), ("bench", model, "-p", "4", "-n", "0", "-q")):
        refused(here(*command), "weights 0.00 + cache 0.00 +", "0.00 GB are free", code=8)
    with pytest.raises(ResourceError, match=r"weights 0\.00 \+ .* 0\.00 GB are free"):
        LlamaForCausalLM.from_pretrained(model)


def test_ranks_share_the_memory_of_their_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamacli.devices.available_memory_bytes", lambda: 8000)
    assert estimated(random_weights(SIZES), ranks=2).available_bytes == 4000
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in (torchrun | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    assert estimated(random_weights(SIZES), ranks=2).available_bytes == 8000


def test_fault_119_a_limit_of_the_shell_counts() -> None:
    done = in_shell("ulimit -v 12000000; {llamacli} bench --shape llama-2-70b -q")
    refused(done, "the model needs 138.", "weights 137.95", "GB are free", code=8)


def test_a_plan_is_told_and_nothing_is_loaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamacli.devices.available_memory_bytes", lambda: 3 * 10**9)
    text = here("run", "-m", model, "--plan", "-n", "8", "moon").text
    *sizes, verdict = text.splitlines()
    assert verdict == "it fits"
    assert [line.split()[0] for line in sizes] == ["weights", "cache", "scratch", "total", "free"]
    assert sizes[-1].endswith(" 3.0 GB")


def test_a_plan_as_json(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamacli.devices.available_memory_bytes", lambda: 1)
    done = here("run", "-m", model, "--plan", "--json", "-n", "8", tty=("stdin",))
    assert here("run", "-m", model, "--plan", "--json", "-n", "8", stdin=b"").out == done.out
    found = json.loads(done.out)
    assert (found["rows"], found["tokens"], found["fits"]) == (1, 8, False)
    parts = ("weights_bytes", "cache_bytes", "scratch_bytes")
    assert found["total_bytes"] == sum(found[name] for name in parts)
    assert done.code == 0


def test_a_plan_is_of_all_prompts_that_run_together(model: Path) -> None:
    args = ("run", "-m", model, "--plan", "--json", "--lines", "--raw", "-n", "4")
    found = json.loads(here(*args, stdin=b"a\na a a\na\n").out)
    assert found["rows"] == 3
    assert found["tokens"] > 7
