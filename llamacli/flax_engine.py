"""A Flax twin behind the interface of the torch model, so that `TokenStream` runs it.

JAX computes; all around it (samplers, stop rules, streams, statistics) stays the same. A step is
compiled once for each number of rows and each bucket of tokens.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn

from llamacli.cache import KVCache
from llamacli.checkpoint import Checkpoint
from llamacli.config import LlamaConfig
from llamacli.flax_cache import FlaxKVCache
from llamacli.flax_generation import bucket
from llamacli.flax_loading import choose_platform, load_twin
from llamacli.flax_model import FlaxLlamaForCausalLM
from llamacli.flax_weights import Params, to_torch
from llamacli.outputs import BaseModelOutput


class FlaxCache(KVCache):
    """The position, and the cache of JAX with the rows of it that are still in use.

    Rows that are finished stay where they are: fewer rows would be another program.
    """

    def __init__(self, num_layers: int, *, max_length: int | None = None) -> None:
        super().__init__(num_layers, max_length=max_length)
        self.contents: FlaxKVCache | None = None
        self.rows = np.arange(0)

    def keep_rows(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        self.rows = self.rows[rows.numpy()]


class FlaxEngine:
    """A Flax language model as `generation.CausalLM`.

    Attributes:
        dtype: of the parameters.
        device: where JAX computes, if torch knows it.
        step_bytes: of the parameters that a decode step reads: all but the embedding.
    """

    cache_class = FlaxCache

    def __init__(self, twin: FlaxLlamaForCausalLM) -> None:
        self.config = twin.config
        self.model = _Base(twin)
        self.lm_head = _Head(twin)
        self.dtype: torch.dtype = getattr(torch, jnp.dtype(twin.dtype).name)
        on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if on_gpu else "cpu")
        embedding = {} if self.config.tie_word_embeddings else twin.params["model"]["embed_tokens"]
        self.step_bytes = _nbytes(twin.params) - _nbytes(embedding)


def load_engine(
    config: LlamaConfig,
    opened: Checkpoint,
    *,
    dtype: str = "auto",
    device: str = "auto",
    attn_implementation: str = "sdpa",
    progress: Callable[[int, int], object] | None = None,
) -> FlaxEngine:
    """Read the weights into a Flax language model; options as `load_twin`.

    `device` is "auto", JAX's first, or "cpu".
    """
    choose_platform(device)
    twin = load_twin(
        FlaxLlamaForCausalLM,
        config,
        opened,
        dtype=dtype,
        attn_implementation=attn_implementation,
        progress=progress,
    )
    return FlaxEngine(twin)


def _nbytes(params: Params) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


class _Base(nn.Module):
    """Ids (B, T) → hidden states (B, T, C) in float32, on the CPU."""

    def __init__(self, twin: FlaxLlamaForCausalLM) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # where ids are expected
        self._twin = twin
        self._step = jax.jit(self._compute, donate_argnums=4)

    def _compute(
        self, params: Any, ids: Any, is_token: Any, position_ids: Any, cache: FlaxKVCache
    ) -> tuple[jax.Array, FlaxKVCache]:
        outputs = self._twin.module.apply(
            {"params": params}, ids, is_token, position_ids, cache, method=_base
        )
        return outputs.last_hidden_state.astype(jnp.float32), outputs.past_key_values

    def forward(
        self, input_ids: Tensor, *, cache: FlaxCache, attention_mask: Tensor | None = None
    ) -> BaseModelOutput:
        rows, length = input_ids.shape
        if cache.contents is None:
            config = self._twin.config
            room = bucket(cache.max_length or config.context_length)
            cache.contents = self._twin.init_cache(rows, room)
            cache.rows = np.arange(rows)
        batch, room = cache.contents.keys[0].shape[:2]
        width = 1 if length == 1 else min(bucket(length), room - cache.length)
        ids = np.zeros((batch, width), np.int32)
        ids[cache.rows, :length] = input_ids
        is_token = np.ones((batch, room), bool)
        if attention_mask is not None:
            is_token[cache.rows, : attention_mask.shape[1]] = attention_mask
        position_ids = (is_token.cumsum(axis=1, dtype=np.int32) - 1).clip(min=0)
        position_ids = position_ids[:, cache.length : cache.length + width]
        position_ids[:, length:] = position_ids[:, length - 1 : length]  # of what is cut off
        contents = replace(cache.contents, length=np.int32(cache.length))
        hidden_states, cache.contents = self._step(
            self._twin.params, ids, is_token, position_ids, contents
        )
        cache.advance(length)
        hidden = to_torch(hidden_states)[cache.rows, :length]
        return BaseModelOutput(last_hidden_state=hidden, cache=cache)


class _Head(nn.Module):
    """(B, C) or (B, T, C) in float32 → logits (…, V) in float32."""

    def __init__(self, twin: FlaxLlamaForCausalLM) -> None:
        super().__init__()
        self._twin = twin
        self._step = jax.jit(self._compute)

    def _compute(self, params: Any, hidden_states: Any) -> jax.Array:
        x = hidden_states.astype(self._twin.dtype)
        logits = self._twin.module.apply({"params": params}, x, method="head")
        return logits.astype(jnp.float32)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return to_torch(self._step(self._twin.params, hidden_states.numpy()))


def _base(module: linen.Module, *inputs: Any) -> Any:
    return module.model(*inputs)
