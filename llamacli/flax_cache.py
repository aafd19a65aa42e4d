"""FlaxKVCache: the keys, the values and the position, as JAX wants them."""

from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import lax

from llamacli.config import LlamaConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FlaxKVCache:
    """Keys and values of every layer, for tokens 0 … length-1 of each row.

    The twin of a static `KVCache`: a pytree of one shape, so what takes it is compiled once. It
    never changes; each method gives another one.

    Attributes:
        length: (), int32.
        keys: (B, S, K, D) of each layer, rotated; S is the room for tokens.
        values: (B, S, K, D) of each layer.
    """

    length: jax.Array
    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]

    @classmethod
    def empty(cls, config: LlamaConfig, batch_size: int, max_length: int, dtype: Any) -> Self:
        """Room for so many rows of so many tokens."""
        shape = (batch_size, max_length, config.kv_heads, config.head_size)
        keys, values = (
            tuple(jnp.zeros(shape, dtype) for _ in range(config.num_hidden_layers))
            for _ in range(2)
        )
        return cls(length=jnp.zeros((), jnp.int32), keys=keys, values=values)

    @property
    def max_length(self) -> int:
        """S."""
        return int(self.keys[0].shape[1])

    def update(self, layer_idx: int, keys: jax.Array, values: jax.Array) -> Self:
        """With T tokens more in one layer; the position moves on only by `advance`.

        Args:
            layer_idx: the layer.
            keys: (B, T, K, D), rotated.
            values: (B, T, K, D).
        """
        start = (0, self.length, 0, 0)
        all_keys, all_values = list(self.keys), list(self.values)
        all_keys[layer_idx] = lax.dynamic_update_slice(all_keys[layer_idx], keys, start)
        all_values[layer_idx] = lax.dynamic_update_slice(all_values[layer_idx], values, start)
        return replace(self, keys=tuple(all_keys), values=tuple(all_values))

    def advance(self, count: int) -> Self:
        """With the position past `count` tokens that every layer has been given."""
        return replace(self, length=self.length + count)
