"""What a model gives: tensors by name, and by number as `transformers` counts them."""

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from llamacli.cache import KVCache


class ModelOutput:
    """Fields by attribute or by key; a number or a slice counts those that are not None."""

    __slots__ = ()

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None."""
        values = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return tuple(value for value in values if value is not None)

    def __getitem__(self, key: str | int | slice) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    @property
    def past_key_values(self) -> KVCache | None:
        """The cache, by its name in `transformers` 4."""
        return getattr(self, "cache", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModelOutput(ModelOutput):
    """What a model without a head gives.

    Attributes:
        last_hidden_state: (B, T, C), after the last norm.
        cache: has the tokens so far; give it back with those that follow.
        hidden_states: of the embedding and after each layer, L + 1 of (B, T, C), the last one
            after the last norm; None unless asked for.
    """

    last_hidden_state: Tensor
    cache: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalLMOutput(ModelOutput):
    """What a language model gives.

    Attributes:
        loss: (), float32; None without labels.
        logits: (B, T, V) of the token after each.
        cache, hidden_states: as in `BaseModelOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor
    cache: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierOutput(ModelOutput):
    """What a classifier gives.

    Attributes:
        loss: (), None without labels.
        logits: (B, labels) of sequences, (B, T, labels) of tokens.
        hidden_states: as in `BaseModelOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionAnsweringOutput(ModelOutput):
    """Where an answer may begin and end.

    Attributes:
        loss: (), None without positions.
        start_logits, end_logits: (B, T).
        hidden_states: as in `BaseModelOutput`.
    """

    loss: Tensor | None = None
    start_logits: Tensor
    end_logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
