"""Runs one case on a model as `llamacli run` runs a prompt, without tokenizing and sampling."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llamacli.benchmark.cases import Case
from llamacli.cache import KVCache, new_cache
from llamacli.generation import CausalLM, next_logits

_WARM_UP_STEPS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """Times of one repetition, in seconds.

    Attributes:
        prefill_s: of the prompt, up to the logits of the next token; 0 without one.
        steps_s: of each decode step.
    """

    prefill_s: float
    steps_s: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Of everything; at least what the clock can tell from nothing."""
        resolution = time.get_clock_info("perf_counter").resolution
        return max(self.prefill_s + sum(self.steps_s), resolution)


def samples(model: CausalLM, case: Case) -> Iterator[Sample]:
    """Repetitions of a case without end, after a warm-up.

    The cache is allocated once. Depth is filled before the first, and found again by each.
    """
    cache = new_cache(model, case.length)
    device = next(iter(model.model.parameters())).device
    generator = torch.Generator().manual_seed(0)
    size = (case.batch, case.length)
    token_ids = torch.randint(model.config.vocab_size, size, generator=generator).to(device)
    if case.depth:
        _time(model, token_ids[:, : case.depth], cache)
    _repetition(model, token_ids, case, cache, _WARM_UP_STEPS)
    while True:
        yield _repetition(model, token_ids, case, cache, case.new_tokens)


def _repetition(
    model: CausalLM, token_ids: Tensor, case: Case, cache: KVCache, steps: int
) -> Sample:
    """One pass through a case, with at most so many decode steps."""
    cache.truncate(case.depth)
    begin = case.depth + case.prompt_tokens
    prompt = token_ids[:, case.depth : begin]
    prefill_s = _time(model, prompt, cache) if case.prompt_tokens else 0.0
    positions = range(begin, begin + min(steps, case.new_tokens))
    return Sample(prefill_s, tuple(_time(model, token_ids[:, p, None], cache) for p in positions))


@torch.inference_mode()
def _time(model: CausalLM, token_ids: Tensor, cache: KVCache) -> float:
    """Seconds until the logits after some tokens (B, T) are there."""
    start = time.perf_counter()
    next_logits(model, token_ids, cache)
    synchronize(token_ids.device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for what a device was told to do; a CPU has done it."""
    if device.type == "mps":
        torch.mps.synchronize()
    elif device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
