"""`--backend flax` of `run` and `bench`: the same flags, the same text, computed by JAX."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llamacli import flax_extra
from llamacli.benchmark import session
from llamacli.benchmark.roofs import Roofs
from llamacli.model_folder import DEMO_FOLDER
from tests.command_line import here, refused, run


@pytest.fixture
def _installed() -> None:
    pytest.importorskip("flax")
    import tests.flax_twins  # noqa: F401  # JAX compiles fast there


@pytest.fixture
def _quick_roofs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(session, "roofs", lambda *_: Roofs(1e10, 1e12))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def told(record: dict[str, Any]) -> dict[str, Any]:
    """A record without times, and with the log-probabilities rounded."""
    del record["timings"]
    for token in record["logprobs"]:
        for each in (token, *token["top"]):
            each["logprob"] = round(each["logprob"], 3)
    return record


@pytest.mark.usefixtures("_installed")
def test_samples_biases_stops_and_batches_are_those_of_torch(noise: Path) -> None:
    lines = b"The sun\nThe moon sees the river. The stone warms\nA\n"
    flags = ["--lines", "--json", "-n", 24, "--seed", 1, "--temperature", 0.7, "--stop", "e"]
    flags += ["--logprobs", 2, "--logit-bias", "The=-5", "--repetition-penalty", 1.2]
    flags += ["--dtype", "float32"]
    expected = run(noise, *flags, stdin=lines).records
    found = run(noise, *flags, "--backend", "flax", stdin=lines).records
    assert list(map(told, found)) == list(map(told, expected))
    assert len({record["usage"]["completion_tokens"] for record in found}) > 1  # rows drop out


@pytest.mark.usefixtures("_installed")
def test_text_streams_and_the_statistics_name_the_compiler(tale: Path) -> None:
    done = run(tale, "The", "--greedy", "--backend", "flax", "--device", "cpu", "--stats")
    assert (done.code, done.out) == (0, b" moon sees river. The bird follows sun\n")
    assert "xla" in done.err


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    "option", ["--quantize int4", "--activations int8", "--threads 1", "--lookup 4"]
)
def test_what_jax_does_not_do_is_refused(noise: Path, option: str) -> None:
    done = run(noise, "The", "--backend", "flax", *option.split())
    refused(done, f"--backend flax has no {option.split()[0]}", "--backend torch")


@pytest.mark.usefixtures("_installed")
def test_devices_and_benchmarks_that_jax_does_not_know_are_refused(noise: Path) -> None:
    refused(
        run(noise, "The", "--backend", "flax", "--device", "cuda:1"),
        "--device must be one of auto, cpu, got 'cuda:1'",
    )
    done = here("bench", noise, "--backend", "flax", "--quantize", "int4", "-q")
    refused(done, "--backend flax has no --quantize")


@pytest.mark.usefixtures("_installed")
def test_the_plan_counts_wide_weights() -> None:
    plans = [
        json.loads(run(DEMO_FOLDER, "The", "--plan", "--json", *flags).out)
        for flags in ([], ["--dtype", "float32"], ["--backend", "flax"])
    ]
    sizes = [[plan[f"{part}_bytes"] for part in ("weights", "cache", "total")] for plan in plans]
    assert sizes[0] != sizes[1] == sizes[2]


@pytest.mark.usefixtures("_installed", "_quick_roofs")
def test_bench_measures_the_twin(noise: Path) -> None:
    flags = ["-p", 4, "-n", 2, "-r", 2, "-q", "-o", "json"]
    done = here("bench", noise, *flags, "--backend", "flax")
    assert (done.code, done.err) == (0, "")
    theirs = here("bench", noise, *flags, "--dtype", "float32")
    for row, other in zip(*(json.loads(d.out)["rows"] for d in (done, theirs)), strict=True):
        assert (row["kernels"], row["dtype"], row["device"]) == ("xla", "float32", "cpu")
        assert (row["test"], len(row["samples"])) == (other["test"], 2)
        assert row["bytes_per_token"] == other["bytes_per_token"]


def test_without_the_extra_one_sentence_says_how_to_get_it(
    noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flax_extra, "find_spec", lambda name: None)
    hint = "the Flax twins need jax and flax, not installed here: pip install 'llamacli[flax]'"
    refused(run(noise, "The", "--backend", "flax"), hint)
    import llamacli

    with pytest.raises(llamacli.RequestError, match=r"pip install 'llamacli\[flax\]'"):
        llamacli.FlaxLlamaForCausalLM  # noqa: B018
