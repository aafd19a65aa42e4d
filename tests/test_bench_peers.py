"""Peers: llama-bench played by a script that prints its JSON, and the real transformers."""

import json
import sys
from pathlib import Path

import pytest
import torch

from llamacli.benchmark import peers
from llamacli.benchmark.cases import Case
from llamacli.benchmark.peers import LlamaBench, Transformers, peer
from llamacli.benchmark.random_weights import random_weights
from llamacli.benchmark.session import Settings, Source, measure
from llamacli.errors import NotFoundError, RequestError, ResourceError
from tests.test_bench_measure import SIZES
from tests.test_memory_estimate import estimated

# Records what it was asked, and answers as llama-bench does.
LLAMA_BENCH = f"""#!{sys.executable}
import json, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with open(options["-m"], "a") as asked:
    print(json.dumps(options), file=asked)
print("warming up", file=sys.stderr)
row = {{"build_commit": "b5b2", "model_type": "llama 1B Q4_0", "model_n_params": 66, "backends":
       "CPU", "avg_ts": 50.0, "stddev_ts": 0.0, "samples_ts": [50.0]}}
print(json.dumps([row]))
"""


def write_program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def llama_bench(tmp_path: Path) -> LlamaBench:
    (tmp_path / "model.gguf").touch()
    return LlamaBench(write_program(tmp_path / "llama-bench", LLAMA_BENCH), tmp_path / "model.gguf")


def test_llama_bench_is_asked_for_the_same_case(llama_bench: LlamaBench, tmp_path: Path) -> None:
    cases = [
        Case(prompt_tokens=8, depth=4),
        Case(new_tokens=3),
        Case(prompt_tokens=5, new_tokens=2),
    ]
    assert [llama_bench.sample(case, 2) for case in cases] == [50.0] * 3
    asked = [json.loads(line) for line in (tmp_path / "model.gguf").read_text().splitlines()]
    names = ("-p", "-n", "-pg", "-d", "-t", "-r", "-o")
    assert [[each.get(name) for name in names] for each in asked] == [
        ["8", "0", None, "4", "2", "1", "json"],
        ["0", "3", None, "0", "2", "1", "json"],
        ["0", "0", "5,2", "0", "2", "1", "json"],
    ]
    assert llama_bench.about() == "b5b2, llama 1B Q4_0, 66, CPU"


def test_peers_run_in_turns_and_ratios_are_those_of_a_round(
    llama_bench: LlamaBench, caplog: pytest.LogCaptureFixture
) -> None:
    weights = random_weights(SIZES)
    source = Source(name="tiny", revision=None, config=SIZES, weights=weights, recipe=None)
    settings = Settings(cases=[Case(new_tokens=2)], threads=[1], repetitions=3, roof_s=0)
    (row,) = measure(source, settings, [llama_bench], lambda phase, step="": None)
    (other,) = row.versus
    assert (other.peer, list(other.samples)) == ("llama.cpp", [50.0] * 3)
    assert list(other.ratios) == [sample / 50 for sample in row.samples]
    (note,) = caplog.messages  # the file of the script has 66 parameters
    assert "model.gguf has 0.00 B parameters" in note
    assert note.endswith("the ratio is one of two shapes")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"#!{sys.executable}\nimport sys; sys.exit('no such model')", "1: no such model"),
        (f"#!{sys.executable}\nprint('[]')", "0: it printed no result"),
        (f"#!{sys.executable}\nprint('[{{}}]')", "0: it printed no result"),
        ("no program", "Exec format error"),
    ],
)
def test_a_peer_that_fails_ends_the_run(text: str, said: str, tmp_path: Path) -> None:
    program = write_program(tmp_path / "llama-bench", text)
    with pytest.raises(ResourceError, match=f"llama.cpp failed: .*{said}"):
        LlamaBench(program, program).sample(Case(new_tokens=1), 1)


def test_a_missing_peer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = write_program(tmp_path / "llama-bench", LLAMA_BENCH)
    for missing in (f"{tmp_path / 'x'},{program}", f"{program},{tmp_path / 'x'}"):
        with pytest.raises(NotFoundError, match="x, which is not there"):
            peer(f"llama.cpp={missing}", [])
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    with pytest.raises(NotFoundError, match="transformers is not installed"):
        peer("transformers", [])


@pytest.mark.parametrize("text", ["", "vllm", "llama.cpp", "llama.cpp=x", "transformers=x"])
def test_an_unknown_peer_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"^versus must be llama\.cpp=PATH"):
        peer(text, [])


def test_llama_bench_has_no_batches() -> None:
    with pytest.raises(RequestError, match="no batches"):
        peer("llama.cpp=a,b", [Case(new_tokens=1, batch=2)])


def test_the_peers_models_count_as_memory(
    llama_bench: LlamaBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = random_weights(SIZES)
    source = Source(name="tiny", revision=None, config=SIZES, weights=weights, recipe=None)
    settings = Settings(cases=[Case(new_tokens=2)], threads=[1], repetitions=1)
    monkeypatch.setattr("llamacli.benchmark.session.READ_BYTES", 0)
    needed = estimated(weights, tokens=2)
    free = needed.total_bytes + weights.total_bytes
    monkeypatch.setattr("llamacli.devices.available_memory_bytes", lambda: free)
    source.require_memory(settings, [Transformers(), llama_bench])
    (tmp_path / "model.gguf").write_bytes(bytes(1))
    with pytest.raises(ResourceError):
        source.require_memory(settings, [Transformers(), llama_bench])


def test_transformers_measures_the_same_case() -> None:
    other = Transformers()
    try:
        other.open(SIZES)
        for case in (
            Case(prompt_tokens=4),
            Case(new_tokens=2, depth=3, batch=2),
            Case(prompt_tokens=2, new_tokens=2),
        ):
            assert other.sample(case, torch.get_num_threads()) > 0
            assert other.sample(case, torch.get_num_threads()) > 0
        assert other.about().endswith("random bfloat16")
        with pytest.raises(ResourceError, match=r"transformers failed: .*Error"):
            other.sample(Case(new_tokens=1), -1)
    finally:
        other.close()
