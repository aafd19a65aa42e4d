import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from llamacli.errors import CheckpointError, RequestError
from llamacli.evaluation import (
    EVALUATION_TEXT,
    MAX_TOKENS,
    WINDOW_TOKENS,
    Fidelity,
    compare,
    log_probabilities,
    windows,
)
from llamacli.outputs import BaseModelOutput
from tests.tiny import SIZES, random_ids, reference, twin

REFERENCES = [reference("gqa", seed) for seed in (0, 1)]
FIRST, SECOND = map(twin, REFERENCES)


def text(length: int) -> list[int]:
    return random_ids(1, length)[0].tolist()


def cut(token_ids: list[int], context_length: int, bos_token_id: int | None) -> list[list[int]]:
    found = windows(token_ids, context_length=context_length, bos_token_id=bos_token_id)
    return [window.tolist() for window in found]


class LastToken(nn.Embedding):
    def forward(self, input_ids: Tensor) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=super().forward(input_ids))


class Table(nn.Module):
    """A language model whose logits depend on the last token alone."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.model = LastToken.from_pretrained(logits)
        self.lm_head = nn.Identity()


# -------------------------------------------------------------------------------------- windows


def test_a_text_is_cut_without_overlap_and_each_window_begins_with_bos() -> None:
    assert cut([5, 6, 7, 8, 9], 3, bos_token_id=1) == [[1, 5, 6], [1, 7, 8], [1, 9]]


def test_without_bos_a_last_window_of_one_token_predicts_nothing() -> None:
    assert cut([5, 6, 7, 8, 9], 2, bos_token_id=None) == [[5, 6], [7, 8]]
    assert cut([5, 6, 7, 8, 9], 3, bos_token_id=None) == [[5, 6, 7], [8, 9]]


def test_a_long_context_does_not_make_windows_longer() -> None:
    lengths = [len(window) for window in cut(text(WINDOW_TOKENS + 9), 10**6, bos_token_id=1)]
    assert lengths == [WINDOW_TOKENS + 1, 10]


def test_what_lies_beyond_the_limit_is_left_out() -> None:
    found = cut(text(MAX_TOKENS + 50), 65, bos_token_id=1)
    assert [token for window in found for token in window[1:]] == text(MAX_TOKENS + 50)[:MAX_TOKENS]


@pytest.mark.parametrize("bos_token_id", [1, None])
@pytest.mark.parametrize(("length", "context"), [(0, 64), (1, 64), (9, 1)])
def test_a_text_that_leaves_nothing_to_predict_is_refused(
    length: int, context: int, bos_token_id: int | None
) -> None:
    with pytest.raises(RequestError, match=f"at least 2 tokens, got {length} and {context}"):
        windows(text(length), context_length=context, bos_token_id=bos_token_id)


# --------------------------------------------------------------------------------- known numbers


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    uniform, pieces = Table(torch.zeros(7, 7)), [torch.tensor([1, 4, 2]), torch.tensor([1, 6])]
    found = compare(uniform, pieces, log_probabilities(uniform, pieces))
    assert found == Fidelity(3, pytest.approx(7), pytest.approx(7), 0.0, 1.0)


def test_numbers_worked_out_by_hand() -> None:
    # Token 1 follows 0 with 1/2 by the reference, with 1/4 by the model; then both expect 0.
    expected = Table(torch.tensor([[1.0, 2, 1], [8, 1, 1], [1, 1, 1]]).log())
    model = Table(torch.tensor([[2.0, 1, 1], [8, 1, 1], [1, 1, 1]]).log())
    pieces = [torch.tensor([0, 1, 0])]
    assert compare(model, pieces, log_probabilities(expected, pieces)) == Fidelity(
        tokens=2,
        perplexity=pytest.approx((1 / 4 * 8 / 10) ** -0.5),
        reference_perplexity=pytest.approx((1 / 2 * 8 / 10) ** -0.5),
        mean_kl=pytest.approx((1 / 4 * math.log(1 / 2) + 1 / 2 * math.log(2)) / 2),
        top1_agreement=0.5,
    )


def test_perplexity_is_that_of_the_loss_of_transformers() -> None:
    pieces = [random_ids(1, 40)[0]]
    found = compare(SECOND, pieces, log_probabilities(FIRST, pieces))
    losses = [model(input_ids=pieces[0][None], labels=pieces[0][None]).loss for model in REFERENCES]
    expected = [loss.exp().item() for loss in losses]
    assert [found.reference_perplexity, found.perplexity] == pytest.approx(expected, rel=1e-4)


# ------------------------------------------------------------------------------------------ laws


@settings(max_examples=15)
@given(
    length=st.integers(2, 90),
    context_length=st.integers(2, 64),
    bos_token_id=st.sampled_from([None, 1]),
)
@torch.no_grad()
def test_every_number_is_the_mean_over_full_forwards_of_each_window(
    length: int, context_length: int, bos_token_id: int | None
) -> None:
    pieces = windows(text(length), context_length=context_length, bos_token_id=bos_token_id)
    found = compare(SECOND, pieces, log_probabilities(FIRST, pieces))
    p, q = (
        torch.cat([model(w[None]).logits[0, :-1].double().log_softmax(-1) for w in pieces])
        for model in (FIRST, SECOND)
    )
    targets = torch.cat([window[1:] for window in pieces])
    assert found == Fidelity(
        tokens=len(targets),
        perplexity=pytest.approx(F.nll_loss(q, targets).exp().item(), rel=1e-4),
        reference_perplexity=pytest.approx(F.nll_loss(p, targets).exp().item(), rel=1e-4),
        mean_kl=pytest.approx(F.kl_div(q, p, log_target=True, reduction="batchmean").item(), 1e-4),
        top1_agreement=pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item()),
    )


def test_a_model_is_at_no_distance_from_itself() -> None:
    pieces = windows(text(100), context_length=64, bos_token_id=1)
    found = compare(FIRST, pieces, log_probabilities(FIRST, pieces))
    assert found.tokens == 100
    assert (found.mean_kl, found.top1_agreement) == (0.0, 1.0)
    assert found.perplexity == found.reference_perplexity


def test_narrow_weights_are_compared_in_float32() -> None:
    pieces = windows(text(30), context_length=64, bos_token_id=1)
    narrow = twin(REFERENCES[0]).to(torch.bfloat16)
    kept = log_probabilities(narrow, pieces)
    assert [(p.shape, p.dtype) for p in kept] == [((30, SIZES["vocab_size"]), torch.float32)]
    torch.testing.assert_close(kept[0].exp().sum(-1), torch.ones(30))
    assert 0 < compare(FIRST, pieces, kept).mean_kl < 0.1


def test_progress_counts_predicted_tokens_up_to_all_of_them() -> None:
    pieces = windows(text(100), context_length=41, bos_token_id=1)
    calls: list[tuple[int, int]] = []
    kept = log_probabilities(FIRST, pieces, progress=lambda *call: calls.append(call))
    assert calls == [(40, 100), (80, 100), (100, 100)]
    compare(FIRST, pieces, kept, progress=lambda *call: calls.append(call))
    assert calls[3:] == calls[:3]


# ---------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_an_error_of_the_weights(value: float) -> None:
    logits = torch.zeros(5, 5)
    logits[3, 2] = value
    with pytest.raises(CheckpointError, match="NaN or infinite logits"):
        log_probabilities(Table(logits), [torch.tensor([1, 3, 2])])


def test_a_model_that_excludes_the_text_has_infinite_perplexity_not_an_overflow() -> None:
    sure = Table(torch.eye(4) * 5000)
    found = compare(sure, [torch.tensor([1, 2])], log_probabilities(sure, [torch.tensor([1, 2])]))
    assert found.perplexity == math.inf


# -------------------------------------------------------------------------------------- the text


def test_the_bundled_text_is_long_enough_to_fill_the_evaluation() -> None:
    # English has about 4.5 characters a token in the largest vocabularies.
    assert len(EVALUATION_TEXT.read_text(encoding="utf-8")) > 4.5 * MAX_TOKENS
