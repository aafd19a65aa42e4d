"""`LlamaForCausalLM.generate` against that of transformers."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM as Reference
from transformers.generation.streamers import BaseStreamer

from llamacli.errors import RequestError
from llamacli.generation_config import GenerationConfig
from llamacli.model import LlamaForCausalLM
from llamacli.tokenizer_fast import load_tokenizer
from tests.command_line import TALE, write_chain
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


def test_none_says_nothing() -> None:
    unsaid = dict.fromkeys(("temperature", "top_p", "top_k", "eos_token_id", "streamer"))
    found = OURS.generate(IDS, do_sample=False, max_new_tokens=9, **unsaid)
    assert found.tolist() == OURS.generate(IDS, max_new_tokens=9).tolist()


def test_the_result_has_the_type_of_the_prompt() -> None:
    found = OURS.generate(IDS.int(), max_new_tokens=3)
    assert found.dtype == torch.int32
    assert found.shape == (3, 15)


@pytest.mark.parametrize("keyword", ["num_beams", "use_cache", "temprature"])
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


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_lengths_equal() -> None:
    mask = torch.ones_like(IDS)
    for length in ({}, {"max_length": 17}):
        assert OURS.generate(IDS, **length).tolist() == expected(
            THEIRS, IDS, attention_mask=mask, **length
        )
    with pytest.raises(RequestError, match="max_length must be above the prompt's 12 tokens"):
        OURS.generate(IDS, max_length=12)
    with pytest.raises(RequestError, match="contradict"):
        OURS.generate(IDS, max_length=20, max_new_tokens=3)


def test_end_and_padding_can_be_given() -> None:
    mask = torch.ones_like(IDS)
    end = int(OURS.generate(IDS, max_new_tokens=6)[0, -1])
    given = {"eos_token_id": [end, 96], "pad_token_id": 5, "max_new_tokens": 20}
    found = OURS.generate(IDS, **given).tolist()
    assert found == expected(THEIRS, IDS, attention_mask=mask, **given)
    assert found[0][-1] == 5


def test_samples_of_a_row_stand_together_and_differ() -> None:
    settings = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 8, "seed": 7}
    found = OURS.generate(IDS[:2], **settings)
    assert found[:, :12].tolist() == IDS[:2].repeat_interleave(3, dim=0).tolist()
    assert len({tuple(row) for row in found.tolist()}) == 6
    assert found.tolist() == OURS.generate(IDS[:2], **settings).tolist()
    with pytest.raises(RequestError, match="num_return_sequences"):
        OURS.generate(IDS, num_return_sequences=2)
    with pytest.raises(RequestError, match="num_return_sequences"):
        OURS.generate(IDS, num_return_sequences=0)


def test_the_model_says_whether_to_draw() -> None:
    model = twin(THEIRS)
    greedy = model.generate(IDS, do_sample=False)
    assert model.generate(IDS).tolist() == greedy.tolist()
    model.generation_config = GenerationConfig(sampling={"temperature": 5.0, "top_k": 3})
    assert model.generate(IDS, seed=1).tolist() != greedy.tolist()
    assert model.generate(IDS, do_sample=False).tolist() == greedy.tolist()
    model.generation_config = GenerationConfig(sampling={"temperature": 0.0})
    assert model.generate(IDS).tolist() == greedy.tolist()


def test_a_streamer_is_given_the_prompt_and_each_id() -> None:
    def streamed(model: LlamaForCausalLM | Reference, **settings: Any) -> list[list[int]]:
        class Listener(BaseStreamer):  # type: ignore[misc]
            calls: ClassVar[list[list[int]]] = []

            def put(self, value: Tensor) -> None:
                self.calls.append(value.tolist())

            def end(self) -> None:
                self.calls.append([])

        model.generate(IDS[:1], streamer=Listener(), max_new_tokens=4, **settings)
        return Listener.calls

    theirs = streamed(THEIRS, do_sample=False, attention_mask=torch.ones_like(IDS[:1]))
    assert streamed(OURS) == theirs
    with pytest.raises(RequestError, match="streamer"):
        OURS.generate(IDS, streamer=BaseStreamer())


def test_a_stop_string_ends_a_row_and_stays_in_it(tmp_path: Path) -> None:
    write_chain(tmp_path, TALE)
    model, tokenizer = LlamaForCausalLM.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = torch.tensor([tokenizer.encode("The")])
    given = {"stop_strings": ["river.", "sun"], "do_sample": False, "max_new_tokens": 20}
    found = model.generate(ids, tokenizer=tokenizer, **given).tolist()
    theirs, their_tokenizer = (
        Reference.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    mask = torch.ones_like(ids)
    expected = theirs.generate(ids, attention_mask=mask, tokenizer=their_tokenizer, **given)
    assert found == expected.tolist()
    assert tokenizer.decode(found[0], skip_special_tokens=True) == "The moon sees river."
    with pytest.raises(RequestError, match=r"stop_strings .* tokenizer"):
        model.generate(ids, stop_strings="river")
