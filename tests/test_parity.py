"""Ours against transformers, on the same random weights."""

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM as Reference

from llamacli.cache import KVCache
from llamacli.model import LlamaForCausalLM
from tests.tiny import KINDS, random_ids, reference, twin

TOLERANCE = {"rtol": 0, "atol": 1e-4}


def greedy_cached(model: LlamaForCausalLM, ids: Tensor, steps: int) -> Tensor:
    cache, step = KVCache(model.config.num_hidden_layers), ids
    for _ in range(steps):
        step = model(step, cache=cache).logits[:, -1:].argmax(-1)
        ids = torch.cat((ids, step), dim=1)
    return ids


def greedy_uncached(model: LlamaForCausalLM | Reference, ids: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), dim=1)
    return ids


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_equal(kind: str, attn_implementation: str) -> None:
    theirs, ids = reference(kind), random_ids(2, 150)
    ours = twin(theirs, attn_implementation=attn_implementation)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_greedy_ids_equal_over_200_cached_steps(kind: str) -> None:
    theirs, ids = reference(kind), random_ids(1, 20)
    expected = theirs.generate(ids, max_new_tokens=200, do_sample=False, pad_token_id=0)
    assert greedy_cached(twin(theirs), ids, 200).tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["plain", "llama3", "yarn", "linear", "dynamic"])
@torch.no_grad()
def test_greedy_ids_equal_over_200_uncached_steps(kind: str) -> None:
    theirs, ids = reference(kind), random_ids(1, 20)
    expected = greedy_uncached(theirs, ids, 200)
    assert greedy_uncached(twin(theirs), ids, 200).tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["plain", "gqa", "llama3"])
@torch.no_grad()
def test_left_padded_batch_equals(kind: str) -> None:
    theirs, ids = reference(kind), random_ids(3, 40)
    mask = torch.ones_like(ids)
    mask[0, :17] = 0
    mask[2, :39] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
    found = twin(theirs)(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], **TOLERANCE)


@torch.no_grad()
def test_bfloat16_is_as_close_as_transformers_is_to_itself() -> None:
    exact, ids = reference("llama3"), random_ids(2, 60)
    expected = exact(ids).logits
    ours, theirs = twin(exact).bfloat16(), exact.bfloat16()
    our_error = (ours(ids).logits.float() - expected).abs().mean()
    their_error = (theirs(ids).logits.float() - expected).abs().mean()
    assert our_error < 1.2 * their_error
