"""What is measured, on models of this machine; no test looks at a time."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from llamacli.benchmark import session
from llamacli.benchmark.cases import Case
from llamacli.benchmark.measure import samples
from llamacli.benchmark.neighbors import Neighbors
from llamacli.benchmark.random_weights import random_weights
from llamacli.benchmark.roofs import roofs
from llamacli.benchmark.session import Settings, Source, measure
from llamacli.benchmark.work import Work
from llamacli.cache import KVCache
from llamacli.config import LlamaConfig
from llamacli.empty_model import meta_model
from llamacli.generation import next_logits
from llamacli.loading import load_model, open_weights
from llamacli.model import LlamaForCausalLM
from llamacli.model_folder import DEMO_FOLDER, read_config
from llamacli.quantization_plan import Recipe
from llamacli.quantized_linear import is_quantized

SIZES = LlamaConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    dtype="bfloat16",
)
FORMS = {"none": None, "int4": Recipe(bits=4, group_size=32), "int8": Recipe(bits=8)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tied", [False, True])
def test_random_weights_load_as_those_of_a_file(form: str, tied: bool) -> None:
    config = dataclasses.replace(SIZES, tie_word_embeddings=tied)
    weights = random_weights(config, FORMS[form])
    model = load_model(LlamaForCausalLM, config, weights)
    assert any(map(is_quantized, model.modules())) == (form != "none")
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    with torch.inference_mode():
        logits = next_logits(model, torch.arange(12)[None], KVCache(2))
    assert logits.shape == (1, 96)
    assert logits.isfinite().all()
    assert logits.std() > 0


def test_random_weights_are_made_in_their_form() -> None:
    """A read makes what is kept, so the largest piece is a weight, not a model."""
    weights = random_weights(SIZES, FORMS["int4"])
    name = "model.layers.0.mlp.gate_proj.weight"
    qdata = weights.read(name).qdata
    assert (qdata.dtype, qdata.shape) == (torch.int8, (128, 32))
    assert weights.tensors[name].nbytes == 128 * 32 + 2 * 2 * 128 * 2


@pytest.mark.parametrize(
    ("case", "prefills", "steps"),
    [
        (Case(prompt_tokens=5), True, 0),
        (Case(new_tokens=3), False, 3),
        (Case(prompt_tokens=4, new_tokens=2, depth=6, batch=2), True, 2),
    ],
)
def test_a_sample_holds_the_times_of_its_parts(case: Case, prefills: bool, steps: int) -> None:
    model = load_model(LlamaForCausalLM, SIZES, random_weights(SIZES))
    for sample in itertools.islice(samples(model, case), 3):
        assert (sample.prefill_s > 0) == prefills
        assert len(sample.steps_s) == steps
        assert sample.seconds == pytest.approx(sample.prefill_s + sum(sample.steps_s))


def test_each_repetition_begins_at_the_depth() -> None:
    seen: list[tuple[int, int]] = []
    model = load_model(LlamaForCausalLM, SIZES, random_weights(SIZES))
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((kwargs["cache"].length, args[0].numel())),
        with_kwargs=True,
    )
    case = Case(prompt_tokens=3, new_tokens=2, depth=8, batch=2)
    list(itertools.islice(samples(model, case), 2))
    repetition = [(8, 6), (11, 2), (12, 2)]
    assert seen == [(0, 16), *repetition * 3]


@pytest.mark.parametrize("form", FORMS)
def test_bytes_of_a_step_are_those_of_the_files_but_for_the_embeddings(form: str) -> None:
    config = read_config(DEMO_FOLDER)
    weights = open_weights(DEMO_FOLDER, config)
    source = Source(name="demo", revision=None, config=config, weights=weights, recipe=FORMS[form])
    model = load_model(LlamaForCausalLM, config, weights, recipe=FORMS[form])
    work = Work.of(model)
    embeddings = 0 if config.tie_word_embeddings else model.model.embed_tokens.weight.nbytes
    assert work.weight_bytes == pytest.approx(source.model_bytes - embeddings, rel=0.02)
    deep = work.step_bytes(Case(new_tokens=1, depth=99)) - work.weight_bytes
    cache = KVCache(config.num_hidden_layers)
    with torch.inference_mode():
        next_logits(model, torch.zeros(1, 100, dtype=torch.long), cache)
    held = [tensor[:, :, :100].nbytes for tensor in (*cache._keys, *cache._values)]
    assert deep == sum(held)


def test_operations_of_a_prompt_are_counted_by_hand() -> None:
    work = Work.of(load_model(LlamaForCausalLM, SIZES, random_weights(SIZES)))
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128
    pairs = 2 * 10 + 3  # two tokens after ten, which see 11 and 12
    attention = pairs * 2 * 2 * 64 * 2  # layers; scores and values; width; multiply and add
    of_row = 2 * (2 * 2 * layer) + attention + 2 * 96 * 64
    assert work.prefill_flops(Case(prompt_tokens=2, depth=10, batch=3)) == 3 * of_row


def test_the_roofs_are_measured() -> None:
    found = roofs(torch.device("cpu"), torch.float32, seconds=0)
    assert found.bytes_per_second > 0
    assert found.flops_per_second > 0


def test_without_kernels_torch_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamacli.kernels.native.kernels", lambda: None)
    assert roofs(torch.device("cpu"), torch.float32, seconds=0).bytes_per_second > 0


def test_a_row_for_each_number_of_threads_and_each_case() -> None:
    weights = random_weights(SIZES)
    source = Source(name="tiny", revision="r", config=SIZES, weights=weights, recipe=None)
    cases = [Case(prompt_tokens=4), Case(new_tokens=2)]
    settings = Settings(cases=cases, threads=[1, 2], repetitions=2, roof_s=0)
    phases: list[str] = []
    before = torch.get_num_threads()
    try:
        rows = list(measure(source, settings, (), lambda phase, step="": phases.append(phase)))
    finally:
        torch.set_num_threads(before)
    assert [(row.subject.threads, row.case.test) for row in rows] == [
        (1, "pp4"), (1, "tg2"), (2, "pp4"), (2, "tg2"),
    ]  # fmt: skip
    roofs_and_rounds = [
        "how fast this machine reads and multiplies",
        *("round 1 of 2",) * 3,
        *("round 2 of 2",) * 3,
    ]
    assert phases == ["loading the weights", *roofs_and_rounds * 2]
    parameters = list(meta_model(LlamaForCausalLM, SIZES).parameters())
    for row in rows:
        assert len(row.seconds) == 2
        assert row.peak_memory_bytes > source.model_bytes
        assert row.subject.parameters == sum(tensor.numel() for tensor in parameters)


def test_cases_take_turns_and_an_end_leaves_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    def repeat(test: session.Test, *args: object) -> None:
        turns.append(test.case.test)
        if len(turns) == 5:
            raise KeyboardInterrupt
        real(test, *args)

    real = session.Test.repeat
    monkeypatch.setattr(session.Test, "repeat", repeat)
    source = Source(
        name="tiny", revision=None, config=SIZES, weights=random_weights(SIZES), recipe=None
    )
    cases = [Case(new_tokens=n) for n in (1, 2, 3)]
    settings = Settings(cases=cases, threads=[1], repetitions=3, roof_s=0)
    rows: list[tuple[str, int]] = []

    def collect() -> None:
        for row in measure(source, settings, (), lambda *_: None):
            rows.append((row.case.test, len(row.seconds)))

    with pytest.raises(KeyboardInterrupt):
        collect()
    assert rows == [("tg1", 2), ("tg2", 1), ("tg3", 1)]
    assert turns == ["tg1", "tg2", "tg3", "tg1", "tg2"]


def test_neighbors_take_what_idle_cores_do_not_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four cores, for ten seconds, others use two, this program one; or one is another rank."""
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("os.sysconf", lambda _: 100)
    stat, after = tmp_path / "stat", "cpu  1500 500 500 9000 9000 0 0 500 7 7\ncpu0 1\n"
    for threads, ranks, taken in ((1, 1, 0.0), (3, 1, 1 / 3), (4, 1, 0.5), (4, 2, 0.25)):
        monkeypatch.setattr("time.perf_counter", iter((100.0, 110.0)).__next__)
        monkeypatch.setattr("time.process_time", iter((0.0, 10.0)).__next__)
        stat.write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
        neighbors = Neighbors(threads, stat, ranks=ranks)
        with neighbors.watched():
            stat.write_text(after)
        assert neighbors.taken == pytest.approx(taken)
    assert Neighbors(1, tmp_path / "none").taken == 0
