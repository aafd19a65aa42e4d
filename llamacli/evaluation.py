"""How far one model is from another on a text: perplexity, KL divergence, agreement.

The models need not be in memory together: `log_probabilities` of the first, then `compare` with
the second. What is kept between them takes N · V · 4 bytes for N tokens and V tokens of
vocabulary, 1.05 GB for MAX_TOKENS and the 128,256 of Llama 3.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llamacli.errors import CheckpointError, RequestError
from llamacli.generation import CausalLM

EVALUATION_TEXT = Path(__file__).with_suffix(".txt")  # English prose of several kinds, UTF-8
MAX_TOKENS = 2048
WINDOW_TOKENS = 512  # of text

Progress = Callable[[int, int], object]  # predicted tokens so far, and in all


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How near a model comes to a reference; means over all predicted tokens.

    Attributes:
        tokens: how many were predicted.
        perplexity: exp of the mean negative log-likelihood of the text.
        reference_perplexity: that of the reference.
        mean_kl: KL(reference ‖ model) = Σ p · (log p - log q) over the vocabulary, in nats.
        top1_agreement: share of the tokens where both models find the same one most probable.
    """

    tokens: int
    perplexity: float
    reference_perplexity: float
    mean_kl: float
    top1_agreement: float


def windows(
    token_ids: Sequence[int], *, context_length: int, bos_token_id: int | None
) -> list[Tensor]:
    """Cut a text into windows without overlap, each predicted on its own.

    Every token of a window is predicted from those before it in the window. BOS stands before each
    window where the tokenizer adds one; without it a window's first token cannot be predicted.
    llama.cpp (tools/perplexity) puts BOS in place of a window's first token, counts the second
    half of each window only, and drops the last, shorter one. Here all of a short text counts, so
    perplexities are somewhat higher than there: compare them with each other, not with its tables.

    Args:
        token_ids: the text without special tokens; those after the first MAX_TOKENS are left out.
        context_length: tokens that the model can hold.
        bos_token_id: None where the tokenizer adds no BOS.

    Returns:
        int64 (T,) each, BOS included, of at most `context_length` tokens.

    Raises:
        RequestError: there is nothing to predict.
    """
    if min(len(token_ids), context_length) < 2:
        raise RequestError(
            "nothing to predict: the text and the model's context must have at least 2 tokens,"
            f" got {len(token_ids)} and {context_length:,}"
        )
    front = [] if bos_token_id is None else [bos_token_id]
    size = min(WINDOW_TOKENS, context_length - len(front))
    text = token_ids[:MAX_TOKENS]
    cut = [[*front, *text[start : start + size]] for start in range(0, len(text), size)]
    return [torch.tensor(window) for window in cut if len(window) > 1]


@torch.inference_mode()
def log_probabilities(
    model: CausalLM, windows: Sequence[Tensor], *, progress: Progress | None = None
) -> list[Tensor]:
    """What a model expects at every predicted position, for `compare`.

    Returns:
        float32 (T - 1, V) for each window, on the CPU.

    Raises:
        CheckpointError: the logits are NaN or infinite.
    """
    return [log_probs.cpu() for log_probs in _each_window(model, windows, progress)]


@torch.inference_mode()
def compare(
    model: CausalLM,
    windows: Sequence[Tensor],
    reference: Sequence[Tensor],
    *,
    progress: Progress | None = None,
) -> Fidelity:
    """How near a model comes to the log-probabilities of a reference, one window at a time.

    Args:
        model: of the same vocabulary as the reference.
        windows: those that the reference was given.
        reference: its `log_probabilities`.
        progress: called after each window.

    Raises:
        CheckpointError: the logits are NaN or infinite.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    log_probs = _each_window(model, windows, progress)
    for window, p, q in zip(windows, reference, log_probs, strict=True):
        sums += _statistics(window[1:].to(q.device), p.to(q.device), q).cpu().double().sum(dim=1)
    tokens = _count_predicted(windows)
    nll, reference_nll, kl, agreement = sums / tokens
    return Fidelity(
        tokens=tokens,
        perplexity=nll.exp().item(),
        reference_perplexity=reference_nll.exp().item(),
        mean_kl=kl.item(),
        top1_agreement=agreement.item(),
    )


def _each_window(
    model: CausalLM, windows: Sequence[Tensor], progress: Progress | None
) -> Iterator[Tensor]:
    """Log-probabilities (T - 1, V) of the tokens after the first, window by window."""
    device = next(iter(model.model.parameters())).device
    done, total = 0, _count_predicted(windows)
    for window in windows:
        outputs = model.model(window[None, :-1].to(device))
        log_probs = model.lm_head(outputs.last_hidden_state[0]).float().log_softmax(dim=-1)
        if not log_probs.isfinite().all():
            raise CheckpointError(
                "the model produced NaN or infinite logits",
                hint="the weights are damaged or the dtype is too narrow: try float32",
            )
        done += len(log_probs)
        if progress is not None:
            progress(done, total)
        yield log_probs


def _count_predicted(windows: Sequence[Tensor]) -> int:
    return sum(len(window) - 1 for window in windows)


def _statistics(targets: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Of log-probabilities p, the reference's, and q, both (N, V), for N target ids.

    Returns:
        (4, N): negative log-likelihood by q and by p, KL(p ‖ q), 1 where both have the same best.
    """
    nll, reference_nll = (-x.gather(1, targets[:, None])[:, 0] for x in (q, p))
    kl = (p.exp() * (p - q)).sum(dim=-1)
    agrees = p.argmax(dim=-1) == q.argmax(dim=-1)
    return torch.stack([nll, reference_nll, kl, agrees.float()])
