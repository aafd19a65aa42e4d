"""Token streams on a GPU: the host reads each token while the next is being computed."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from llamacli.device_sampling import ChosenTokens, needs_ids
from llamacli.devices import main_device
from llamacli.generation import CausalLM, Token, TokenStream
from llamacli.request import SamplingParams
from llamacli.sampling import Choice


def token_stream(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    **options: Any,
) -> TokenStream:
    """The stream that suits the device of the model; arguments and errors as `TokenStream`."""
    kind = RunAheadStream if main_device(model).type == "cuda" else TokenStream
    return kind(model, prompts, params, **options)


class RunAheadStream(TokenStream):
    """A `TokenStream` whose chosen ids go back into the model without a detour over the host.

    A step is launched before the ids that it continues have been read, so one step too many is
    computed where a row ends early. What needs the ids first is decoded as in a `TokenStream`:
    processors, log-probabilities and drafts.
    """

    def __iter__(self) -> Iterator[Token]:
        if self._lookup is not None or any(map(needs_ids, self._samplers)):
            yield from super().__iter__()
        elif self._rows:
            yield from self._run_ahead()

    def _run_ahead(self) -> Iterator[Token]:
        start = time.perf_counter()
        chosen = self._choose_all(self._prefill())
        token_ids = chosen.read()  # the first token does not wait for the step after it
        self.timings.prefill_s = self.timings.time_to_first_token_s = time.perf_counter() - start
        yield from self._tokens(token_ids)
        if not (kept := self._kept()):
            return
        ahead = self._next(chosen.keep(kept))
        while True:
            is_last = all(self._budgets[row] == 1 for row in self._rows)
            following = ahead if is_last else self._next(ahead)
            start = time.perf_counter()
            token_ids = ahead.read()
            self.timings.decode_s += time.perf_counter() - start
            yield from self._tokens(token_ids)
            if not (kept := self._kept()):
                return
            ahead = following.keep(kept)

    def _next(self, chosen: ChosenTokens) -> ChosenTokens:
        """Launch the step after these tokens."""
        return self._choose_all(self._decode_step(chosen.ids)[:, -1])

    def _choose_all(self, logits: Tensor) -> ChosenTokens:
        return ChosenTokens.of([self._samplers[row] for row in self._rows], logits)

    def _tokens(self, token_ids: list[int]) -> Iterator[Token]:
        for row, token_id in zip(self._rows, token_ids, strict=True):
            yield self._token(row, Choice(token_id))

    def _kept(self) -> list[int]:
        """Take finished rows out of the batch; the places of those that go on."""
        return self._drop_finished([*range(len(self._rows))])
