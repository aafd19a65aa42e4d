"""Choosing tokens on a GPU without waiting for it: the ids stay there, and are read later."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from llamacli.sampling import Sampler

_FINITE, _INFINITE, _NAN = range(3)


def needs_ids(sampler: Sampler) -> bool:
    """Whether a sampler must know the tokens before it, or tells more than the token."""
    return bool(sampler.processors) or sampler.logprobs is not None


class ChosenTokens:
    """One token of each row, on its way from the device.

    Attributes:
        ids: (B, 1) int64 on the device.
    """

    def __init__(self, samplers: Sequence[Sampler], reports: Tensor) -> None:
        self._samplers, self._reports = samplers, reports  # (B, 2): id, what the logits were
        self.ids = reports[:, :1]
        if reports.device.type == "cuda":
            self._host = torch.empty(reports.shape, dtype=reports.dtype, pin_memory=True)
            self._host.copy_(reports, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(reports.device))
        else:
            self._host = reports

    @classmethod
    @torch.inference_mode()
    def of(cls, samplers: Sequence[Sampler], logits: Tensor) -> Self:
        """Choose from logits (B, V) as the samplers do, each with the same random numbers."""
        reports = [_choose(*pair) for pair in zip(samplers, logits, strict=True)]
        return cls(samplers, torch.stack(reports))

    def read(self) -> list[int]:
        """The ids, once they are here; the samplers remember them.

        Raises:
            CheckpointError: the logits were NaN or infinite.
        """
        if self._reports.device.type == "cuda":
            self._arrived.synchronize()
        found = []
        for sampler, (token_id, kind) in zip(self._samplers, self._host.tolist(), strict=True):
            if kind != _FINITE:
                bad = float("nan" if kind == _NAN else "inf")
                sampler(torch.full((sampler.vocab_size,), bad))  # raises
            sampler.token_ids.append(token_id)
            found.append(token_id)
        return found

    def keep(self, rows: Sequence[int]) -> Self:
        """Those of some rows."""
        if len(rows) == len(self._samplers):
            return self
        index = torch.tensor(rows, device=self._reports.device)
        return type(self)([self._samplers[row] for row in rows], self._reports[index])


def _choose(sampler: Sampler, logits: Tensor) -> Tensor:
    """(2,) int64: the id, and what the logits were."""
    logits = logits[: sampler.vocab_size].float()
    best, chosen = logits.max(dim=-1)
    if sampler.filters:
        chosen = _draw(sampler, logits - best)
    return torch.stack((chosen, best.isinf() * _INFINITE + best.isnan() * _NAN))


def _draw(sampler: Sampler, logits: Tensor) -> Tensor:
    """As `Sampler` does, but over the whole vocabulary: how many tokens are left, nobody knows."""
    for keep in sampler.filters:
        logits = keep(logits)
    cumulative = logits.softmax(-1, dtype=torch.float64).cumsum(-1)
    point = cumulative[-1] * (1 - sampler.uniform())
    return torch.searchsorted(cumulative, point).clamp(max=len(logits) - 1)
