"""Filters of the logits alone, each of which keeps at least one token; see sampling.py.

None waits for a GPU: how many tokens are kept stays on the device.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from llamacli.request import SamplingParams

LogitsFilter = Callable[[Tensor], Tensor]

# Below this temperature the best token has all the probability that float32 can show.
GREEDY_TEMPERATURE = 1e-5


def _top_k(k: int, logits: Tensor) -> Tensor:
    """Keep the k most probable tokens, and those that equal the last of them."""
    lowest = logits.topk(min(k, len(logits))).values[-1]
    return logits.masked_fill(logits < lowest, -math.inf)


def _top_p(p: float, logits: Tensor) -> Tensor:
    """Keep the fewest tokens whose probabilities add up to p (arXiv:1904.09751)."""
    probs = logits.softmax(-1)
    if logits.device.type != "cpu":
        return _keep_mass(p, probs.argsort(descending=True, stable=True), probs, logits)
    # Sorting a vocabulary is slow. Tokens below (1 - p) / V cannot have more than 1 - p together,
    # so none of them is kept; half of that leaves room for rounding.
    candidates = (probs > (1 - p) / len(probs) / 2).nonzero().squeeze(-1)
    order = probs[candidates].argsort(descending=True, stable=True)
    return _keep_mass(p, candidates[order], probs, logits)


def _min_p(p: float, logits: Tensor) -> Tensor:
    """Keep the tokens with at least p times the best probability (arXiv:2407.01082)."""
    return logits.masked_fill(logits < logits.max() + math.log(p), -math.inf)


def _typical_p(mass: float, logits: Tensor) -> Tensor:
    """Keep the tokens nearest to the expected information, up to a mass (arXiv:2202.00666)."""
    logprobs = logits.log_softmax(-1)
    probs = logprobs.exp()
    entropy = -(probs * logprobs).nansum()  # 0 * -inf counts as 0
    order = (logprobs + entropy).abs().argsort(stable=True)
    return _keep_mass(mass, order, probs, logits)


def _keep_mass(mass: float, order: Tensor, probs: Tensor, logits: Tensor) -> Tensor:
    """Keep the first of the ids in `order`, up to the one whose probability completes `mass`."""
    is_kept = (
        torch.arange(len(order), device=order.device) <= (probs[order].cumsum(-1) < mass).sum()
    )
    kept = logits[order].masked_fill(~is_kept, -math.inf)
    return torch.full_like(logits, -math.inf).index_copy(0, order, kept)


def make_filters(params: SamplingParams) -> list[LogitsFilter]:
    """Temperature and the filters that `params` asks for, in their order; none when greedy."""
    if params.temperature < GREEDY_TEMPERATURE:
        return []
    filters: list[LogitsFilter] = [lambda logits: logits / params.temperature]
    if params.top_k:
        filters.append(partial(_top_k, params.top_k))
    if params.top_p < 1:
        filters.append(partial(_top_p, params.top_p))
    if params.min_p:
        filters.append(partial(_min_p, params.min_p))
    if params.typical_p < 1:
        filters.append(partial(_typical_p, params.typical_p))
    return filters
