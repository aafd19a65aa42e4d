import pytest
import torch

from llamacli.cache import KVCache
from llamacli.errors import CheckpointError, RequestError
from llamacli.generation import TokenStream, next_logits
from llamacli.model import LlamaForCausalLM
from llamacli.request import SamplingParams
from tests.command_line import TALE, write_chain
from tests.tiny import random_ids, reference, twin

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=30)
MODEL = twin(reference("gqa"))


def prompt(length: int, seed: int = 1) -> list[int]:
    return random_ids(1, length, seed)[0].tolist()


def ids_of(stream: TokenStream) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in stream.prompts]
    for token in stream:
        rows[token.row].append(token.id)
    return rows


def test_greedy_ids_equal_those_of_transformers() -> None:
    expected = reference("gqa").generate(
        torch.tensor([prompt(9)]), max_new_tokens=30, do_sample=False, pad_token_id=0
    )
    assert ids_of(TokenStream(MODEL, [prompt(9)], [GREEDY])) == [expected[0, 9:].tolist()]


def test_a_static_cache_gives_the_same_ids() -> None:
    growing = ids_of(TokenStream(MODEL, [prompt(9)], [GREEDY]))
    assert ids_of(TokenStream(MODEL, [prompt(9)], [GREEDY], static_cache=True)) == growing


def test_the_end_of_sequence_id_ends_a_row_and_is_its_last_token() -> None:
    free = ids_of(TokenStream(MODEL, [prompt(9)], [GREEDY]))[0]
    eos = free[7]
    tokens = list(TokenStream(MODEL, [prompt(9)], [GREEDY], eos_token_ids=frozenset({eos, 5000})))
    assert [token.id for token in tokens] == free[: free.index(eos) + 1]
    assert [token.finish_reason for token in tokens[-2:]] == [None, "stop"]


def test_ignored_and_early_ends_are_never_chosen() -> None:
    eos = frozenset(ids_of(TokenStream(MODEL, [prompt(9)], [GREEDY]))[0][:5])
    ignoring = SamplingParams(temperature=0.0, max_new_tokens=25, ignore_eos=True)
    found = ids_of(TokenStream(MODEL, [prompt(9)], [ignoring], eos_token_ids=eos))[0]
    assert len(found) == 25
    assert eos.isdisjoint(found)
    later = SamplingParams(temperature=0.0, max_new_tokens=25, min_new_tokens=10)
    found = ids_of(TokenStream(MODEL, [prompt(9)], [later], eos_token_ids=eos))[0]
    assert len(found) >= 11
    assert eos.isdisjoint(found[:10])


def test_fault_062_generation_ends_at_the_context() -> None:
    endless = SamplingParams(temperature=0.0, max_new_tokens=10**9)
    tokens = list(TokenStream(MODEL, [prompt(60)], [endless]))
    assert len(tokens) == MODEL.config.context_length - 60
    assert tokens[-1].finish_reason == "length"


def test_fault_061_a_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(RequestError, match="64 tokens, the model's context 64"):
        TokenStream(MODEL, [prompt(64)], [GREEDY])


def test_fault_066_no_new_tokens_is_no_work() -> None:
    nothing = SamplingParams(max_new_tokens=0)
    assert list(TokenStream(MODEL, [prompt(5)], [nothing])) == []


def test_a_row_that_is_finished_from_outside_leaves_the_batch() -> None:
    stream = TokenStream(MODEL, [prompt(4), prompt(9, 2)], [GREEDY, GREEDY])
    alone = ids_of(TokenStream(MODEL, [prompt(9, 2)], [GREEDY]))[0]
    rows: list[list[int]] = [[], []]
    for token in stream:
        rows[token.row].append(token.id)
        if token.row == 0 and len(rows[0]) == 3:
            stream.finish(0)
    assert len(rows[0]) == 3
    assert rows[1] == alone


def test_timings_count_every_token_once() -> None:
    stream = TokenStream(MODEL, [prompt(4), prompt(9, 2)], [GREEDY, GREEDY])
    rows = ids_of(stream)
    assert stream.timings.prompt_tokens == 13
    assert stream.timings.decoded_tokens == sum(map(len, rows)) - 2
    assert stream.timings.prefill_tokens_per_second > 0
    assert stream.timings.decode_tokens_per_second > 0


def test_fault_072_nan_logits_are_an_error_after_the_text_so_far() -> None:
    model = twin(reference("gqa"))
    stream = iter(TokenStream(model, [prompt(9)], [GREEDY]))
    next(stream)
    with torch.no_grad():
        model.lm_head.weight[:, 0] = torch.nan
    with pytest.raises(CheckpointError, match="NaN"):
        list(stream)


@torch.no_grad()
def test_next_logits_in_chunks_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = random_ids(2, 50)
    mask = torch.ones_like(ids).bool()
    mask[0, :13] = False
    whole = next_logits(MODEL, ids, KVCache(2), mask)
    monkeypatch.setattr("llamacli.generation.PREFILL_CHUNK", 7)
    chunked = next_logits(MODEL, ids, KVCache(2), mask)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------------- lookup


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    """Says the same nine tokens again and again."""
    folder = tmp_path_factory.mktemp("models") / "chain"
    write_chain(folder, TALE, loop=True, max_position_embeddings=256)
    return LlamaForCausalLM.from_pretrained(folder)


def decode_steps(stream: TokenStream, model: LlamaForCausalLM) -> int:
    """How often the model is called after the prefill."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    with model.model.register_forward_hook(count):
        ids_of(stream)
    return calls - 1


def test_a_text_that_repeats_itself_takes_few_steps(chain: LlamaForCausalLM) -> None:
    long = SamplingParams(temperature=0.0, max_new_tokens=200)
    stream = TokenStream(chain, [[300]], [long], lookup=8)
    steps = decode_steps(stream, chain)
    timings = stream.timings
    assert steps <= 11 + 3 + 190 / 9  # until it repeats, until the draft has grown, from then on
    assert timings.decoded_tokens == steps + timings.accepted_tokens == 199
    assert timings.accepted_tokens == timings.drafted_tokens


def test_a_text_that_does_not_repeat_itself_takes_a_step_a_token() -> None:
    once = SamplingParams(temperature=0.0, max_new_tokens=30, no_repeat_ngram_size=3)
    stream = TokenStream(MODEL, [prompt(9)], [once], lookup=8)
    assert decode_steps(stream, MODEL) == 29
    assert stream.timings.drafted_tokens == 0


def test_wrong_drafts_are_few(chain: LlamaForCausalLM) -> None:
    nine = range(10, 19)
    pairs = [token_id for one in nine for other in nine for token_id in (one, other)]
    params = SamplingParams(
        temperature=1000.0, logit_bias=dict.fromkeys(nine, 1e6), seed=1, max_new_tokens=90
    )  # each of the nine is as probable
    stream = TokenStream(chain, [pairs], [params], lookup=8)
    assert decode_steps(stream, chain) >= 80
    assert 0 < stream.timings.drafted_tokens <= 9


def test_the_last_row_of_a_padded_batch_is_decoded_with_drafts() -> None:
    few = dict.fromkeys((5, 6, 7), 30.0)
    prompts = [prompt(20), prompt(3, 2)]
    params = [SamplingParams(seed=3, max_new_tokens=n, logit_bias=few) for n in (3, 40)]
    expected = ids_of(TokenStream(MODEL, prompts, params))
    stream = TokenStream(MODEL, prompts, params, lookup=4)
    assert ids_of(stream) == expected
    assert 0 < stream.timings.accepted_tokens < stream.timings.drafted_tokens


def test_a_batch_has_no_drafts(chain: LlamaForCausalLM) -> None:
    stream = TokenStream(chain, [[300], [301]], [GREEDY, GREEDY], lookup=8)
    assert decode_steps(stream, chain) == 29
    assert stream.timings.drafted_tokens == 0


def test_positions_that_follow_the_length_of_a_step_allow_no_draft() -> None:
    long = SamplingParams(temperature=0.0, max_new_tokens=100)
    model = twin(reference("dynamic"))
    stream = TokenStream(model, [[5, 6, 7] * 10], [long], lookup=8)
    assert ids_of(stream) == ids_of(TokenStream(model, [[5, 6, 7] * 10], [long]))
    assert stream.timings.drafted_tokens == 0
