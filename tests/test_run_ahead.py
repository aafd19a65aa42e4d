"""Reading one step behind gives the tokens of an ordinary stream."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from llamacli.device_sampling import ChosenTokens
from llamacli.errors import CheckpointError
from llamacli.generation import Token, TokenStream
from llamacli.model import LlamaForCausalLM
from llamacli.request import SamplingParams
from llamacli.run_ahead import RunAheadStream, token_stream
from llamacli.sampling import Sampler
from tests.tiny import random_ids, reference, twin

PROMPTS = [[5, 9, 33], [7], [60, 61, 62, 63, 64]]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return twin(reference("gqa"))


def both(
    model: LlamaForCausalLM, params: Sequence[SamplingParams], **options: Any
) -> list[list[Token]]:
    prompts = PROMPTS[: len(params)]
    return [list(kind(model, prompts, params, **options)) for kind in (RunAheadStream, TokenStream)]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_k": 9},
        {"temperature": 1.2, "top_p": 0.7},
        {"temperature": 1.0, "min_p": 0.05},
        {"temperature": 1.0, "typical_p": 0.6},
    ],
)
def test_tokens_are_the_same(model: LlamaForCausalLM, sampling: dict[str, float]) -> None:
    params = [SamplingParams(**sampling, max_new_tokens=12, seed=seed) for seed in range(3)]
    found, expected = both(model, params)
    assert found == expected


def test_rows_may_end_at_different_times(model: LlamaForCausalLM) -> None:
    params = [SamplingParams(temperature=1.0, max_new_tokens=n, seed=n) for n in (1, 20, 6)]
    eos = frozenset(range(0, 97, 9))
    found, expected = both(model, params, eos_token_ids=eos, static_cache=True)
    assert sorted(found, key=lambda t: t.row) == sorted(expected, key=lambda t: t.row)
    assert {token.finish_reason for token in found} == {None, "stop", "length"}


def test_a_row_can_be_finished_from_outside(model: LlamaForCausalLM) -> None:
    stream = RunAheadStream(model, PROMPTS[:1], [SamplingParams(max_new_tokens=20)])
    tokens = []
    for token in stream:
        tokens.append(token)
        if len(tokens) == 3:
            stream.finish(0)
    assert len(tokens) == 3


def test_nothing_is_launched_after_the_last_token(model: LlamaForCausalLM) -> None:
    stream = RunAheadStream(model, PROMPTS[:1], [SamplingParams(max_new_tokens=5)])
    assert len(list(stream)) == 5
    assert stream.timings.decoded_tokens == 4


@pytest.mark.parametrize(
    "asked", [{"repetition_penalty": 1.3}, {"logprobs": 2}, {"ignore_eos": True}]
)
def test_what_needs_the_ids_first_is_decoded_step_by_step(
    model: LlamaForCausalLM, asked: dict[str, Any]
) -> None:
    found, expected = both(model, [SamplingParams(temperature=0.0, max_new_tokens=9, **asked)])
    assert found == expected


def test_a_draft_is_tried_step_by_step(model: LlamaForCausalLM) -> None:
    found, expected = both(model, [SamplingParams(temperature=0.0, max_new_tokens=9)], lookup=4)
    assert found == expected


@pytest.mark.parametrize(("bad", "word"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_logits_that_are_not_finite_are_told_when_they_are_read(bad: float, word: str) -> None:
    sampler = Sampler(
        SamplingParams(),
        prompt_ids=[1],
        eos_token_ids=frozenset(),
        vocab_size=4,
        device=torch.device("cpu"),
    )
    chosen = ChosenTokens.of([sampler], torch.tensor([[0.0, bad, 1.0, 2.0]]))
    with pytest.raises(CheckpointError, match=f"{word} logits after 1 tokens"):
        chosen.read()


def test_a_model_on_the_cpu_gets_an_ordinary_stream(model: LlamaForCausalLM) -> None:
    stream = token_stream(model, PROMPTS[:1], [SamplingParams()])
    assert type(stream) is TokenStream


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_text_on_cuda_is_that_of_the_cpu(temperature: float, model: LlamaForCausalLM) -> None:
    on_cuda = twin(reference("gqa")).cuda()
    options = {"max_new_tokens": 20, "temperature": temperature, "seed": 1}
    ids = random_ids(2, 5)
    found = on_cuda.generate(ids.cuda(), do_sample=temperature > 0, **options)
    assert torch.equal(found.cpu(), model.generate(ids, do_sample=temperature > 0, **options))
