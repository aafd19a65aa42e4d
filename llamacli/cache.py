"""KVCache: owns the keys, the values and the position."""

from typing import Any

import torch
from torch import Tensor

from llamacli.errors import RequestError

_FIRST_CAPACITY = 64


class KVCache:
    """Keys and values of every layer, for tokens 0 … length-1 of each row.

    It grows by doubling, so a step costs O(1) on average and memory follows use, not the
    model's context. With `max_length` it is static: allocated once, and never larger.
    Dtype and head counts are those of the first keys it is given; the device is each layer's own.
    """

    def __init__(self, num_layers: int, *, max_length: int | None = None) -> None:
        self.length = 0
        self.max_length = max_length
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers

    def update(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append T tokens to one layer and return everything that layer may see.

        The position moves on only by `advance`, once all layers have been updated.

        Args:
            layer_idx: the layer.
            keys: (B, K, T, D), rotated.
            values: (B, K, T, D).

        Returns:
            keys and values (B, K, S, D) with S = length + T, views of the cache.

        Raises:
            RequestError: a static cache is full.
        """
        end = self.length + keys.shape[2]
        all_keys = self._keys[layer_idx] = self._room(self._keys[layer_idx], keys, end)
        all_values = self._values[layer_idx] = self._room(self._values[layer_idx], values, end)
        all_keys[:, :, self.length : end] = keys
        all_values[:, :, self.length : end] = values
        return all_keys[:, :, :end], all_values[:, :, :end]

    def reserve(self, new: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Make room in every layer for the T tokens that follow; who asks writes them himself.

        Args:
            new: (B, K, T, D), of which only shape, dtype and device count.

        Returns:
            for each layer keys and values, (B, K, capacity, D), all of one capacity.

        Raises:
            RequestError: a static cache is full, or these are no keys of the same rows and model.
        """
        held = self._keys[0]
        if held is not None and _kind(held) != _kind(new):
            raise RequestError(f"the cache holds keys of {_kind(held)}, not {_kind(new)}")
        end = self.length + new.shape[2]
        self._keys = [self._room(keys, new, end) for keys in self._keys]
        self._values = [self._room(values, new, end) for values in self._values]
        pairs = zip(self._keys, self._values, strict=True)
        return [(k, v) for k, v in pairs if k is not None and v is not None]

    def holds(self, keys: Tensor, count: int) -> bool:
        """Whether these are still the first layer's keys, with room for `count` tokens more."""
        return self._keys[0] is keys and self.length + count <= keys.shape[2]

    def advance(self, count: int) -> None:
        """Move the position past `count` tokens that every layer has been given."""
        self.length += count

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        self.length = length

    def keep_rows(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order.

        Args:
            rows: (B',) indices, int64.
        """
        self._keys = [_rows(keys, rows) for keys in self._keys]
        self._values = [_rows(values, rows) for values in self._values]

    def _room(self, buffer: Tensor | None, new: Tensor, end: int) -> Tensor:
        """The buffer (B, K, capacity, D) itself, or a larger copy where `end` tokens fit."""
        if buffer is not None and end <= buffer.shape[2]:
            return buffer
        if self.max_length is not None and end > self.max_length:
            raise RequestError(f"the static cache holds {self.max_length:,} tokens, not {end:,}")
        capacity = self.max_length or max(end, 2 * self.length, _FIRST_CAPACITY)
        batch, heads, _, head_dim = new.shape
        larger = torch.empty((batch, heads, capacity, head_dim), dtype=new.dtype, device=new.device)
        if buffer is not None:
            larger[:, :, : self.length] = buffer[:, :, : self.length]
        return larger


def _rows(tensor: Tensor | None, rows: Tensor) -> Tensor | None:
    """Layers may be on several devices."""
    return None if tensor is None else tensor.index_select(0, rows.to(tensor.device))


def new_cache(model: Any, max_length: int | None = None) -> KVCache:
    """An empty cache of the class that a model names, `KVCache` where it names none."""
    cache_class: type[KVCache] = getattr(model, "cache_class", KVCache)
    return cache_class(model.config.num_hidden_layers, max_length=max_length)


def _kind(keys: Tensor) -> str:
    """What all keys of a cache have in common."""
    rows, heads, _, head_dim = keys.shape
    return f"{rows} rows, {heads} heads of {head_dim} {keys.dtype}"
