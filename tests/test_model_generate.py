"""`LlamaForCausalLM.generate` against that of transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM as Reference

from llamacli.errors import RequestError
from llamacli.generation_config import GenerationConfig
from llamacli.model import LlamaForCausalLM
from tests.tiny import random_ids, reference, twin

THEIRS = reference("gqa")
OURS = twin(THEIRS)
IDS = random_ids(3, 12)


def left_padding() -> Tensor:
    mask = torch.ones_like(IDS)
    mask[0, :7] = 0
    mask[2, :11] = 0
    return mask


def expected(model: Reference, ids: Tensor, **settings: Any) -> list[list[int]]:
    given = {"do_sample": False, "pad_token_id": 0} | settings
    return model.generate(ids, **given).tolist()


@pytest.mark.parametrize("cache_implementation", ["dynamic", "static"])
@pytest.mark.parametrize("padded", [False, True])
def test_greedy_ids_equal(padded: bool, cache_implementation: str) -> None:
    mask = left_padding() if padded else None
    found = OURS.generate(
        IDS, attention_mask=mask, max_new_tokens=40, cache_implementation=cache_implementation
    )
    theirs = {"attention_mask": torch.ones_like(IDS) if mask is None else mask}
    assert found.tolist() == expected(THEIRS, IDS, max_new_tokens=40, **theirs)


@pytest.mark.parametrize("padded", [False, True])
def test_ids_equal_where_rows_end_at_different_lengths(padded: bool) -> None:
    mask = left_padding() if padded else torch.ones_like(IDS)
    free = OURS.generate(IDS, attention_mask=mask, max_new_tokens=40)
    ends = [int(free[0, 12 + 5]), int(free[1, 12 + 20])]
    theirs = reference("gqa", eos_token_id=ends, pad_token_id=0)
    ours = twin(theirs)
    found = ours.generate(IDS, attention_mask=mask, max_new_tokens=40)
    assert found.shape[1] < free.shape[1] or 0 in found
    assert found.tolist() == expected(theirs, IDS, attention_mask=mask, max_new_tokens=40)


def test_end_ids_of_the_generation_config_end_a_row_and_pad_it() -> None:
    free = OURS.generate(IDS, max_new_tokens=20)
    end = int(free[0, 15])
    model: LlamaForCausalLM = twin(THEIRS)
    model.generation_config = GenerationConfig(eos_token_ids=frozenset({end}))
    found = model.generate(IDS, max_new_tokens=20)
    assert found[0, 12:16].tolist() == free[0, 12:16].tolist()
    assert set(found[0, 15:].tolist()) == {end}


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 10, "eos_token_id": 5},
    ],
)
def test_ids_equal_with_processors(settings: dict[str, Any]) -> None:
    eos = settings.get("eos_token_id")
    theirs = reference("gqa", eos_token_id=eos, pad_token_id=0)
    ours = {k: v for k, v in settings.items() if k != "eos_token_id"}
    found = twin(theirs).generate(IDS, max_new_tokens=25, **ours)
    assert found.tolist() == expected(theirs, IDS, max_new_tokens=25, **settings)


def test_a_seed_counts_for_each_row_alone() -> None:
    draw = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 20}
    twice = IDS[:1].repeat(2, 1)
    seeded, again, other = (OURS.generate(twice, seed=seed, **draw) for seed in (1, 1, 2))
    assert seeded.tolist() == again.tolist() != other.tolist()
    assert seeded[0].tolist() == seeded[1].tolist()
    free = OURS.generate(twice, **draw)
    assert free[0].tolist() != free[1].tolist()


def test_no_new_tokens_give_the_prompt_back() -> None:
    assert OURS.generate(IDS, max_new_tokens=0).tolist() == IDS.tolist()


def test_the_result_has_the_type_of_the_prompt() -> None:
    found = OURS.generate(IDS.int(), max_new_tokens=3)
    assert found.dtype == torch.int32
    assert found.shape == (3, 15)


@pytest.mark.parametrize("keyword", ["num_beams", "max_length", "temprature"])
def test_an_unknown_keyword_is_named(keyword: str) -> None:
    with pytest.raises(TypeError, match=keyword):
        OURS.generate(IDS, **{keyword: 2})


def test_an_unknown_cache_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        RequestError, match="cache_implementation must be one of dynamic, static, got 'offloaded'"
    ):
        OURS.generate(IDS, cache_implementation="offloaded")


def test_a_row_of_padding_alone_is_refused() -> None:
    mask = torch.ones_like(IDS)
    mask[1] = 0
    with pytest.raises(RequestError, match="empty"):
        OURS.generate(IDS, attention_mask=mask)
