"""`generate` of the Flax twin: one compiled loop that chooses as the torch sampler does."""

from collections import Counter
from copy import copy

import numpy as np
import pytest
import torch

pytest.importorskip("flax")

import jax

from llamacli.errors import CheckpointError, RequestError
from llamacli.flax_generation import bucket
from llamacli.generation_config import GenerationConfig
from llamacli.request import SamplingParams
from llamacli.sampling import make_filters
from tests.flax_twins import logits, no_compilation, pair
from tests.tiny import random_ids


def test_buckets_are_powers_of_two() -> None:
    assert [bucket(n) for n in (1, 16, 17, 32, 33, 1000)] == [16, 16, 32, 32, 64, 1024]


def test_a_bucket_is_compiled_once_whatever_the_prompt_and_the_parameters() -> None:
    _, flax = pair("plain")
    for prompt, new, options in ((17, 20, {}), (20, 17, {"do_sample": True, "temperature": 2.0})):
        flax.generate(random_ids(2, prompt).numpy(), max_new_tokens=new, **options)
    with no_compilation():
        out = flax.generate(random_ids(2, 32).numpy(), max_new_tokens=32, repetition_penalty=1.3)
        assert out.sequences.shape == (2, 64)
        out = flax.generate(
            random_ids(2, 25).numpy(),
            attention_mask=np.arange(25) >= np.array([[3], [0]]),
            max_new_tokens=19,
            do_sample=True,
            temperature=0.5,
            top_k=7,
            top_p=0.8,
            min_p=0.01,
            eos_token_id=[5, 6],
        )
        assert 25 < out.sequences.shape[1] <= 25 + 19


@pytest.mark.parametrize(
    "options",
    [
        {"eos_token_id": [7, 19, 30, 66, 80], "pad_token_id": 1},
        {"repetition_penalty": 1.5, "max_length": 55},
        {"eos_token_id": [7, 19, 30, 66, 80], "min_new_tokens": 12},
        {"eos_token_id": [7, 19, 30, 66, 80], "ignore_eos": True, "max_new_tokens": 25},
    ],
)
def test_greedy_rows_are_those_of_torch(options: dict[str, object]) -> None:
    ours, flax = pair("plain")
    ids, mask = random_ids(2, 24), torch.ones(2, 24, dtype=torch.long)
    mask[1, :9] = 0
    options = {"max_new_tokens": 30} | options if "max_length" not in options else options
    expected = ours.generate(ids, attention_mask=mask, **options)
    found = flax.generate(ids.numpy(), attention_mask=mask.numpy(), **options).sequences
    assert found.tolist() == expected.tolist()


def test_a_row_has_the_same_samples_alone_and_in_a_batch() -> None:
    _, flax = pair("plain")
    ids = random_ids(2, 20).numpy()
    options = {"max_new_tokens": 32, "do_sample": True, "temperature": 1.5, "seed": 3}
    both = flax.generate(ids, **options).sequences
    assert both[0, 20:].tolist() != both[1, 20:].tolist()
    twice = flax.generate(ids[1:], num_return_sequences=2, **options).sequences
    assert twice[0].tolist() == both[1].tolist()
    assert twice[0].tolist() != twice[1].tolist()
    assert flax.generate(ids, **options | {"seed": 4}).sequences.tolist() != both.tolist()


def test_samples_follow_the_filters_of_torch() -> None:
    ours, flax = pair("plain")
    ids, rows = random_ids(1, 20), 2000
    params = SamplingParams(temperature=3.0, top_k=12, top_p=0.9, min_p=0.05)
    kept = logits(ours, ids)[0, -1]
    for keep in make_filters(params):
        kept = keep(kept)
    expected = kept.softmax(-1)
    assert 3 < int((expected > 0).sum()) <= 12
    out = flax.generate(
        ids.numpy(),
        max_new_tokens=1,
        do_sample=True,
        temperature=3.0,
        top_k=12,
        top_p=0.9,
        min_p=0.05,
        num_return_sequences=rows,
        seed=0,
    )
    drawn = Counter(out.sequences[:, -1].tolist())
    found = torch.tensor([drawn[i] / rows for i in range(len(expected))])
    assert (found[expected == 0] == 0).all()
    # Five standard deviations of a share.
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / rows).sqrt()).all()


def test_what_the_loop_cannot_do_is_refused_by_name() -> None:
    _, flax = pair("plain")
    ids = random_ids(1, 6).numpy()
    with pytest.raises(TypeError, match="does not support presence_penalty, stop_strings"):
        flax.generate(ids, stop_strings="x", presence_penalty=1.0)
    with pytest.raises(RequestError, match="the prompt is empty"):
        flax.generate(ids, attention_mask=np.zeros((1, 6)))
    with pytest.raises(RequestError, match="top_p must be"):
        flax.generate(ids, do_sample=True, top_p=2)
    with_default = copy(flax)
    with_default.generation_config = GenerationConfig(sampling={"typical_p": 0.9})
    with pytest.raises(TypeError, match="does not support typical_p"):
        with_default.generate(ids)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, flax.params)
    with pytest.raises(CheckpointError, match="not finite"):
        flax.generate(random_ids(2, 20).numpy(), params=broken, max_new_tokens=20)
