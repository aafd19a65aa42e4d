"""What must hold for every model, prompt and seed."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from llamacli.cache import KVCache
from llamacli.generation import Token, TokenStream
from llamacli.request import SamplingParams
from tests.tiny import KINDS, random_ids, reference, twin

# Dynamic frequencies follow the length of a call, so a cached step is no full forward there.
STEADY = [kind for kind in KINDS if kind != "dynamic"]


def assert_same_logits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to float32 rounding, on the scale of the logits."""
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=2e-5)


MODELS = {kind: twin(reference(kind)) for kind in ("plain", "llama3")}


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", STEADY)
@torch.no_grad()
def test_cached_decode_is_the_full_forward(kind: str, static: bool) -> None:
    model, ids = twin(reference(kind)), random_ids(2, 90)
    cache = KVCache(model.config.num_hidden_layers, max_length=90 if static else None)
    parts = [model(ids[:, :30], cache=cache).logits]
    parts += [model(ids[:, i : i + 1], cache=cache).logits for i in range(30, 90)]
    assert_same_logits(torch.cat(parts, dim=1), model(ids).logits)


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(1, 59), max_size=4, unique=True))
@torch.no_grad()
def test_chunked_prefill_is_one_prefill(cuts: list[int]) -> None:
    model, ids = MODELS["llama3"], random_ids(1, 60)
    edges, cache = [0, *sorted(cuts), 60], KVCache(2)
    chunks = [ids[:, a:b] for a, b in pairwise(edges)]
    parts = [model(chunk, cache=cache).logits for chunk in chunks]
    assert_same_logits(torch.cat(parts, dim=1), model(ids).logits)


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    temperature=st.sampled_from([0.0, 0.8]),
    kind=st.sampled_from(["plain", "llama3"]),
)
def test_a_batch_row_is_the_row_alone(lengths: list[int], temperature: float, kind: str) -> None:
    prompts = [random_ids(1, n, seed=n)[0].tolist() for n in lengths]
    params = [
        SamplingParams(temperature=temperature, seed=7 + i, max_new_tokens=5 + 3 * i)
        for i in range(len(prompts))
    ]
    together: list[list[int]] = [[] for _ in prompts]
    for token in TokenStream(MODELS[kind], prompts, params):
        together[token.row].append(token.id)
    for row, (prompt, param) in enumerate(zip(prompts, params, strict=True)):
        alone = [token.id for token in TokenStream(MODELS[kind], [prompt], [param])]
        assert together[row] == alone


@settings(max_examples=10)
@given(seed=st.integers(0, 2**63 - 1))
def test_the_same_seed_gives_the_same_ids(seed: int) -> None:
    params = SamplingParams(temperature=1.0, top_p=0.95, seed=seed, max_new_tokens=12)
    runs = [
        [token.id for token in TokenStream(MODELS["plain"], [[1, 5, 9]], [params])]
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


# Three likely tokens: the text repeats itself now and then, so drafts are right, wrong and both.
FEW = dict.fromkeys((5, 6, 7), 30.0)


def spoken(stream: TokenStream, stop_after: int) -> list[Token]:
    """Its tokens, up to so many; then the row is finished from outside, as a stop string does."""
    tokens = []
    for token in stream:
        tokens.append(token)
        if len(tokens) == stop_after:
            stream.finish(0)
    return tokens


@settings(max_examples=60)
@given(
    prompt=st.lists(st.integers(5, 8), min_size=1, max_size=30),
    params=st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 1.0, 30.0]),
        top_p=st.sampled_from([1.0, 0.9]),
        repetition_penalty=st.sampled_from([1.0, 1.2]),
        frequency_penalty=st.sampled_from([0.0, 0.5]),
        min_new_tokens=st.sampled_from([0, 20]),
        max_new_tokens=st.integers(20, 70),
        logit_bias=st.just(FEW),
        logprobs=st.just(1),
        seed=st.integers(0, 99),
    ),
    kind=st.sampled_from(["plain", "llama3"]),
    static_cache=st.booleans(),
    eos_token_ids=st.sampled_from([frozenset(), frozenset({7})]),
    lookup=st.integers(1, 9),
    stop_after=st.integers(5, 150),
)
def test_lookup_changes_no_token(
    prompt: list[int],
    params: SamplingParams,
    kind: str,
    lookup: int,
    stop_after: int,
    **options: Any,
) -> None:
    plain, drafted = (
        spoken(TokenStream(MODELS[kind], [prompt], [params], lookup=n, **options), stop_after)
        for n in (0, lookup)
    )
    assert [(t.id, t.finish_reason) for t in drafted] == [(t.id, t.finish_reason) for t in plain]
    for token, expected in zip(drafted, plain, strict=True):
        assert token.logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert token.alternatives[0][1] == pytest.approx(expected.alternatives[0][1], abs=1e-4)
