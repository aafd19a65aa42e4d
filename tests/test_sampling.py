import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor
from transformers.generation import logits_process as hf

from llamacli.errors import CheckpointError, RequestError
from llamacli.logits_filters import make_filters
from llamacli.request import SamplingParams
from llamacli.sampling import Choice, Sampler, make_processors

V = 64
CPU = torch.device("cpu")
EOS = frozenset({2, 7})
PROMPT = [1, 5, 6, 9, 5, 6, 1, 5]


def make_sampler(
    params: SamplingParams, prompt: Sequence[int] = PROMPT, vocab_size: int = V
) -> Sampler:
    return Sampler(params, prompt_ids=prompt, eos_token_ids=EOS, vocab_size=vocab_size, device=CPU)


def random_logits(seed: int, size: int = V) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


def processed(logits: Tensor, token_ids: Sequence[int], **params: Any) -> Tensor:
    """What processors and filters make of the logits."""
    sampling = SamplingParams(**params)
    for process in make_processors(
        sampling, prompt_length=len(PROMPT), eos_token_ids=EOS, vocab_size=len(logits), device=CPU
    ):
        logits = process(token_ids, logits)
    for keep in make_filters(sampling):
        logits = keep(logits)
    return logits


def one_token(logits: Tensor, **params: Any) -> int:
    return make_sampler(SamplingParams(**params), vocab_size=len(logits))(logits).token_id


# Equal to transformers

Case = tuple[dict[str, Any], list[hf.LogitsProcessor]]
BIASES = {(3,): 4.0, (5, 6): -2.0, (9, 5, 8): -math.inf, (6, 8): 1.5}
EACH: dict[str, Case] = {
    "repetition_penalty": ({"repetition_penalty": 1.3}, [hf.RepetitionPenaltyLogitsProcessor(1.3)]),
    "repetition_reward": ({"repetition_penalty": 0.7}, [hf.RepetitionPenaltyLogitsProcessor(0.7)]),
    "no_repeat_ngram_1": ({"no_repeat_ngram_size": 1}, [hf.NoRepeatNGramLogitsProcessor(1)]),
    "no_repeat_ngram_3": ({"no_repeat_ngram_size": 3}, [hf.NoRepeatNGramLogitsProcessor(3)]),
    "no_repeat_ngram_50": ({"no_repeat_ngram_size": 50}, [hf.NoRepeatNGramLogitsProcessor(50)]),
    "logit_bias": (
        {"logit_bias": {4: 4.0, 8: -math.inf}},
        [hf.SequenceBiasLogitsProcessor({(4,): 4.0, (8,): -math.inf})],
    ),
    "sequence_bias": ({"sequence_bias": BIASES}, [hf.SequenceBiasLogitsProcessor(BIASES)]),
    "min_new_tokens": (
        {"min_new_tokens": 3},
        [hf.MinNewTokensLengthLogitsProcessor(len(PROMPT), 3, sorted(EOS))],
    ),
    "temperature": ({"temperature": 0.6}, [hf.TemperatureLogitsWarper(0.6)]),
    "top_k": ({"top_k": 20}, [hf.TopKLogitsWarper(20)]),
    "top_k_above_vocab_size": ({"top_k": 10 * V}, [hf.TopKLogitsWarper(10 * V)]),
    "top_p": ({"top_p": 0.95}, [hf.TopPLogitsWarper(0.95)]),
    "top_p_tiny": ({"top_p": 1e-9}, [hf.TopPLogitsWarper(1e-9)]),
    "min_p": ({"min_p": 0.02}, [hf.MinPLogitsWarper(0.02)]),
    "min_p_1": ({"min_p": 1.0}, [hf.MinPLogitsWarper(1.0)]),
    "typical_p": ({"typical_p": 0.8}, [hf.TypicalLogitsWarper(0.8)]),
    "typical_p_tiny": ({"typical_p": 1e-9}, [hf.TypicalLogitsWarper(1e-9)]),
}
CHAIN = [
    *("repetition_penalty", "no_repeat_ngram_3", "logit_bias", "sequence_bias", "min_new_tokens"),
    *("temperature", "top_k", "top_p", "min_p", "typical_p"),
]
WHOLE_CHAIN: Case = (
    {name: value for case in CHAIN for name, value in EACH[case][0].items()},
    [processor for case in CHAIN for processor in EACH[case][1]],
)


@pytest.mark.parametrize(
    ("params", "theirs"), [*EACH.values(), WHOLE_CHAIN], ids=[*EACH, "the_whole_chain"]
)
def test_processors_agree_with_transformers_at_every_step(
    params: dict[str, Any], theirs: list[hf.LogitsProcessor]
) -> None:
    sampling, token_ids = SamplingParams(**params), list(PROMPT)
    processors = make_processors(
        sampling, prompt_length=len(PROMPT), eos_token_ids=EOS, vocab_size=V, device=CPU
    )
    for step in range(12):
        logits = got = random_logits(step)
        for process in processors:
            got = process(token_ids, got)
        for keep in make_filters(sampling):
            got = keep(got)
        expected = hf.LogitsProcessorList(theirs)(torch.tensor([token_ids]), logits[None])[0]
        torch.testing.assert_close(got, expected)
        assert torch.equal(logits, random_logits(step))  # the input is left as it was
        token_ids.append(int(expected.argmax()))


# By hand


def test_presence_and_frequency_count_generated_tokens_only() -> None:
    params = {"presence_penalty": 0.5, "frequency_penalty": 0.25}
    got = processed(torch.zeros(8), [*PROMPT, 3, 4, 3, 3], **params)
    assert got.tolist() == [0, 0, 0, -0.5 - 3 * 0.25, -0.5 - 0.25, 0, 0, 0]


def test_the_order_is_penalties_then_biases_then_bans() -> None:
    # 5 is in the prompt: (4 / 2) + 3; presence does not count it. 2 ends the sequence.
    logits = torch.tensor([0.0, 0.0, 9.0, 1.0, 1.0, 4.0])
    got = processed(
        logits,
        [*PROMPT, 3],
        repetition_penalty=2.0,
        presence_penalty=0.25,
        logit_bias={5: 3.0, 2: 100.0},
        ignore_eos=True,
    )
    assert got.tolist() == [0, 0, -math.inf, 0.25, 1, 5]


def test_top_p_keeps_the_fewest_tokens_that_reach_p() -> None:
    logits = torch.tensor([0.125, 0.5, 0.25, 0.125]).log()
    kept = {
        p: processed(logits, PROMPT, top_p=p).isfinite().tolist() for p in (0.5, 0.51, 0.75, 0.8)
    }
    assert kept[0.5] == [False, True, False, False]
    assert kept[0.51] == [False, True, True, False]
    assert kept[0.75] == [False, True, True, False]
    assert kept[0.8] == [True, True, True, False]  # the lower id of two equals


def test_filters_act_after_temperature() -> None:
    logits = torch.tensor([0.6, 0.4]).log()
    warm = processed(logits, PROMPT, top_p=0.7, temperature=1.0)
    cold = processed(logits, PROMPT, top_p=0.7, temperature=0.1)
    assert warm.isfinite().tolist() == [True, True]
    assert cold.isfinite().tolist() == [True, False]


def test_a_temperature_of_0_asks_for_no_filter() -> None:
    assert make_filters(SamplingParams(temperature=0, top_k=1, typical_p=0.1)) == []


def test_min_new_tokens_counts_from_the_prompt() -> None:
    logits = torch.zeros(8)
    logits[2] = 5.0
    sampler = make_sampler(SamplingParams(temperature=0, min_new_tokens=2), vocab_size=8)
    assert [sampler(logits).token_id for _ in range(3)] == [0, 0, 2]


def test_ignore_eos_bans_the_end_for_good() -> None:
    logits = torch.zeros(8)
    logits[2] = 5.0
    sampler = make_sampler(SamplingParams(temperature=0, ignore_eos=True), vocab_size=8)
    assert 2 not in [sampler(logits).token_id for _ in range(20)]


def test_an_eos_id_or_a_prompt_id_beyond_the_usable_ids_is_harmless() -> None:
    params = SamplingParams(
        temperature=0,
        ignore_eos=True,
        repetition_penalty=1.1,
        no_repeat_ngram_size=1,
        presence_penalty=1.0,
    )
    assert make_sampler(params, vocab_size=4)(torch.arange(4.0)).token_id == 3


@pytest.mark.parametrize("bias", [{"logit_bias": {V: 1.0}}, {"sequence_bias": {(1, V): 1.0}}])
def test_a_bias_for_an_id_that_does_not_exist_is_refused(bias: dict[str, Any]) -> None:
    with pytest.raises(
        RequestError, match=f"{next(iter(bias))}: token ids must be below 64, got 64"
    ):
        make_sampler(SamplingParams(**bias))


# Choosing


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-45, 1e-6])
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_fault_064_a_temperature_near_0_is_greedy_and_ties_go_to_the_lowest_id(
    temperature: float, values: list[float]
) -> None:
    best = values.index(max(values))
    assert one_token(torch.tensor(values), temperature=temperature, seed=0) == best


@pytest.mark.parametrize("size", [5, 32_000])
def test_ties_go_to_the_lowest_id_in_any_size(size: int) -> None:
    logits = torch.zeros(size)
    logits[3:] = 1.0
    assert one_token(logits, temperature=0) == 3


_any_params = st.fixed_dictionaries(
    {
        "temperature": st.floats(0, 1e6),
        "top_k": st.integers(0, 100),
        "top_p": st.floats(0, 1, exclude_min=True),
        "min_p": st.floats(0, 1),
        "typical_p": st.floats(0, 1, exclude_min=True),
        "seed": st.integers(0, 2**63 - 1),
    }
)


@given(_any_params, st.data())
def test_fault_065_the_set_is_never_empty_and_banned_tokens_never_come(
    params: dict[str, Any], data: st.DataObject
) -> None:
    number = st.floats(width=32, allow_nan=False, allow_infinity=False)
    size = data.draw(st.integers(1, 12))
    padding = data.draw(st.integers(0, 3))
    values = data.draw(st.lists(number, min_size=size + padding, max_size=size + padding))
    banned = data.draw(st.sets(st.integers(0, size - 1), max_size=size - 1))
    bias = dict.fromkeys(banned, -math.inf)
    sampler = make_sampler(SamplingParams(**params, logit_bias=bias), vocab_size=size)
    chosen = {sampler(torch.tensor(values)).token_id for _ in range(3)}
    assert chosen <= set(range(size)) - banned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fault_043_padded_rows_are_never_chosen(dtype: torch.dtype) -> None:
    logits = torch.zeros(10, dtype=dtype)
    logits[8:] = math.nan
    for temperature in (0, 1):
        sampler = make_sampler(SamplingParams(temperature=temperature, logprobs=100), vocab_size=8)
        choices = [sampler(logits) for _ in range(50)]
        assert max(choice.token_id for choice in choices) < 8
        assert len(choices[0].alternatives) == 8


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_fault_072_nan_and_infinite_logits_are_an_error_of_the_checkpoint(
    bad: float, temperature: float
) -> None:
    logits = random_logits(0)
    logits[V // 2] = bad
    sampler = make_sampler(SamplingParams(temperature=temperature, top_p=0.9))
    kind = "NaN" if math.isnan(bad) else "infinite"
    with pytest.raises(CheckpointError, match=f"the model produced {kind} logits after 8 tokens"):
        sampler(logits)
    assert sampler.token_ids == PROMPT


def test_fault_072_logits_without_any_finite_value_are_an_error_of_the_checkpoint() -> None:
    with pytest.raises(CheckpointError, match="infinite"):
        make_sampler(SamplingParams())(torch.full((V,), -math.inf))


@pytest.mark.parametrize("temperature", [0, 1])
def test_banning_every_token_is_an_error_of_the_request(temperature: float) -> None:
    bans = SamplingParams(temperature=temperature, logit_bias=dict.fromkeys(range(V), -math.inf))
    with pytest.raises(RequestError, match="leave no token"):
        make_sampler(bans)(random_logits(0))


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.5, -1.0, 2.0, -math.inf, 1.0])
    sampler = make_sampler(SamplingParams(seed=1, temperature=2.0), vocab_size=5)
    draws = 4000
    counts = Counter(sampler(logits).token_id for _ in range(draws))
    expected = ((logits / 2).softmax(-1) * draws).tolist()
    assert counts[3] == 0
    statistic = sum((counts[i] - expected[i]) ** 2 / expected[i] for i in (0, 1, 2, 4))
    assert statistic < 11.3  # chi-square, 3 degrees of freedom, 1 %


# Seeds


def tokens(params: SamplingParams, rows: Sequence[int]) -> list[int]:
    sampler = make_sampler(params)
    return [sampler(random_logits(row)).token_id for row in rows]


@given(st.integers(0, 2**63 - 1))
def test_fault_067_the_same_seed_gives_the_same_tokens(seed: int) -> None:
    params = SamplingParams(seed=seed, temperature=1.5)
    assert tokens(params, range(10)) == tokens(params, range(10))


def test_other_seeds_and_no_seed_give_other_tokens() -> None:
    results = {tuple(tokens(SamplingParams(seed=s, temperature=3), range(8))) for s in range(5)}
    results |= {tuple(tokens(SamplingParams(temperature=3), range(8))) for _ in range(5)}
    assert len(results) == 10


def test_samplers_do_not_disturb_each_other_or_the_global_generator() -> None:
    params = SamplingParams(seed=3, temperature=2)
    alone = tokens(params, range(10))
    before = torch.get_rng_state()
    first, second = make_sampler(params), make_sampler(SamplingParams(seed=4, temperature=2))
    beside = []
    for row in range(10):
        second(random_logits(row + 50))
        beside.append(first(random_logits(row)).token_id)
    assert beside == alone
    assert torch.equal(torch.get_rng_state(), before)


def test_a_filter_changes_the_tokens_it_drops_and_no_later_draw() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0, -9.0])
    plain = make_sampler(SamplingParams(seed=5), vocab_size=4)
    filtered = make_sampler(SamplingParams(seed=5, top_k=3), vocab_size=4)
    assert [plain(logits).token_id for _ in range(30)] == [
        filtered(logits).token_id for _ in range(30)
    ]


def test_the_numbers_of_a_seed_stay_the_same_in_all_versions() -> None:
    sampler = make_sampler(SamplingParams(seed=0), vocab_size=1000)
    chosen = [sampler(torch.zeros(1000)).token_id for _ in range(5)]
    assert chosen == [29, 292, 540, 79, 354]


# What is reported


def test_logprobs_are_those_of_the_model_before_any_processor() -> None:
    logits = random_logits(7)
    params = SamplingParams(logprobs=3, temperature=0.3, top_k=2, logit_bias={5: 20.0}, seed=1)
    choice = make_sampler(params)(logits)
    logprobs = logits.log_softmax(-1)
    assert choice.token_id == 5
    assert choice.logprob == pytest.approx(float(logprobs[5]))
    values, ids = logprobs.topk(3)
    assert [i for i, _ in choice.alternatives] == ids.tolist()
    assert [p for _, p in choice.alternatives] == pytest.approx(values.tolist())


def test_equal_alternatives_are_listed_by_id() -> None:
    logits = torch.zeros(1000)
    logits[500] = 1.0
    choice = make_sampler(SamplingParams(logprobs=3, temperature=0), vocab_size=1000)(logits)
    assert [i for i, _ in choice.alternatives] == [500, 0, 1]


@pytest.mark.parametrize(("asked", "count"), [(0, 0), (2, 2), (100, V)])
def test_as_many_alternatives_as_asked_for(asked: int, count: int) -> None:
    choice = make_sampler(SamplingParams(logprobs=asked))(random_logits(0))
    assert choice.logprob is not None
    assert len(choice.alternatives) == count


def test_nothing_is_reported_unasked() -> None:
    assert make_sampler(SamplingParams(temperature=0))(torch.eye(V)[9]) == Choice(9, None, ())


def test_a_sampler_remembers_what_it_chose_and_leaves_its_input_alone() -> None:
    logits, prompt = torch.eye(V)[9], list(PROMPT)
    sampler = make_sampler(SamplingParams(temperature=0, repetition_penalty=2.0), prompt)
    sampler(logits)
    assert sampler.token_ids == [*PROMPT, 9]
    assert prompt == PROMPT
    assert torch.equal(logits, torch.eye(V)[9])
