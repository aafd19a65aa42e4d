"""What the Flax twins give: arrays by name, and by number as `transformers` 4 counts them."""

from dataclasses import dataclass, fields
from typing import Any

import jax

from llamacli.flax_cache import FlaxKVCache


class FlaxModelOutput:
    """Fields by attribute or by key; a number or a slice counts those that are not None."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None."""
        values = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return tuple(value for value in values if value is not None)

    def __getitem__(self, key: str | int | slice) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FlaxBaseModelOutput(FlaxModelOutput):
    """What the model without a head gives.

    Attributes:
        last_hidden_state: (B, T, C), after the last norm.
        past_key_values: has the tokens so far; None unless one was given.
        hidden_states: of the embedding and after each layer, L + 1 of (B, T, C), the last one
            after the last norm; None unless asked for.
        attentions: the weights of each layer, L of (B, H, T, S); None unless asked for.
    """

    last_hidden_state: jax.Array
    past_key_values: FlaxKVCache | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FlaxCausalLMOutput(FlaxModelOutput):
    """What the language model gives.

    Attributes:
        logits: (B, T, V) of the token after each.
        past_key_values, hidden_states, attentions: as in `FlaxBaseModelOutput`.
    """

    logits: jax.Array
    past_key_values: FlaxKVCache | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FlaxGenerateOutput(FlaxModelOutput):
    """What `generate` gives.

    Attributes:
        sequences: (B, T + new tokens), prompts and new ids, padded on the right.
    """

    sequences: jax.Array
