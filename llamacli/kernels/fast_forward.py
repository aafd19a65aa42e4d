"""The forward of a LlamaModel where steps have a faster way: what fits goes there, the rest not."""

from typing import Any

from torch import Tensor

from llamacli.cache import KVCache
from llamacli.kernels.long_prompts import torch_forward
from llamacli.outputs import BaseModelOutput


class FastForward:
    """Stands in the place of a model's forward; a subclass says what fits, and computes it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._forward = torch_forward(model)

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        use_cache: bool | None = None,
        **options: Any,
    ) -> BaseModelOutput:
        """As `LlamaModel.forward`."""
        if input_ids is not None and cache is not None and not options:
            last = self._compute(input_ids, cache, attention_mask, position_ids)
            if last is not None:
                return BaseModelOutput(last_hidden_state=last, cache=cache)
        options |= {"cache": cache, "use_cache": use_cache}
        return self._forward(input_ids, attention_mask, position_ids, **options)  # type: ignore[no-any-return]

    def _compute(
        self,
        input_ids: Tensor,
        cache: KVCache,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
    ) -> Tensor | None:
        """Hidden states after the last norm, (B, T, C); None where the step does not fit."""
        raise NotImplementedError

    def __reduce__(self) -> Any:
        """Copies of a model compute through torch."""
        return torch_forward, (self._model,)
