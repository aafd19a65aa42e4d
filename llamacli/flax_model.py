"""The Flax twin of `model.py`, top to bottom: norm, rotary positions, attention, MLP, layer, model.

Shapes have the letters of `model.py`. Heads stand behind the tokens, (B, T, H, D), as JAX's
attention wants them. The paths of parameters are those of Hugging Face's Flax models, such as
`model/layers/0/self_attn/q_proj/kernel`; a kernel is the transposed weight.

Flax keeps the parameters of a module outside of it. So a model is two classes: a module that
computes, and a model that holds the module and its parameters.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from llamacli import masks
from llamacli.config import LlamaConfig
from llamacli.flax_cache import FlaxKVCache
from llamacli.flax_generation import generate
from llamacli.flax_loading import FlaxPreTrainedModel
from llamacli.flax_outputs import FlaxBaseModelOutput, FlaxCausalLMOutput, FlaxGenerateOutput
from llamacli.loading import choose
from llamacli.model import LlamaForCausalLM, LlamaModel
from llamacli.rope import rope_frequencies

Cache = FlaxKVCache | None
Rope = tuple[Array, Array]  # cos and sin

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "swish": nn.silu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_new": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu,
    "relu": nn.relu,
}


class FlaxRMSNorm(nn.Module):
    """x / rms(x) · weight, the mean square taken in float32 (arXiv:1910.07467, equation 4)."""

    hidden_size: int
    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalize the last dimension: (…, C) → (…, C)."""
        weight = self.param("weight", nn.initializers.ones, (self.hidden_size,))
        wide = x.astype(jnp.float32)
        wide = wide * lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps)
        return weight * wide.astype(x.dtype)


# ----------------------------------------------------------------------------------------------
# Rotary positions


class FlaxRotaryEmbedding(nn.Module):
    """cos and sin of every position's angles."""

    config: LlamaConfig

    def __call__(self, position_ids: Array, dtype: Any) -> Rope:
        """(B, T) positions → cos and sin, each (B, T, 1, D), halves repeated."""
        frequencies, attention_factor = self._frequencies_for(position_ids)
        angles = position_ids[..., None].astype(jnp.float32) * frequencies
        angles = jnp.concatenate((angles, angles), axis=-1)[:, :, None]  # (B, T, 1, D)
        cos, sin = jnp.cos(angles) * attention_factor, jnp.sin(angles) * attention_factor
        return cos.astype(dtype), sin.astype(dtype)

    def _frequencies_for(self, position_ids: Array) -> tuple[Array, float]:
        """(D/2,), or (B, 1, D/2) where they follow the length of each row; the factor of both."""
        plain, attention_factor = rope_frequencies(self.config)
        frequencies = jnp.asarray(plain, jnp.float32)
        scaling = self.config.rope_scaling
        if scaling is None or not self.config.rope_follows_length:
            return frequencies, attention_factor
        # `rope_frequencies` for a length that is no number yet: theta · growth^(D/(D-2)) to the
        # power of -i/D, with a growth of 1 within the context.
        factor, dim = scaling.factor or 1.0, self.config.head_size
        length = position_ids.max(axis=-1)[:, None, None] + 1  # (B, 1, 1)
        excess = jnp.maximum(length / self.config.max_position_embeddings - 1, 0)
        exponents = -jnp.arange(0, dim, 2) / max(dim - 2, 1)
        return frequencies * (1 + factor * excess) ** exponents, attention_factor


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate pairs (i, i + D/2) of (B, T, heads, D) by their angles: Hugging Face's layout."""
    first, second = jnp.split(x, 2, axis=-1)
    return x * cos + jnp.concatenate((-second, first), axis=-1) * sin


# ----------------------------------------------------------------------------------------------
# Attention


def sdpa_attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """JAX's own attention: q (B, T, H, D), k and v (B, S, K, D) → (B, T, H, D)."""
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


def eager_attention(
    q: Array, k: Array, v: Array, mask: Array, dropout: Callable[[Any], Any]
) -> tuple[Array, Array]:
    """The same, step by step as in arXiv:1706.03762, equation 1, and the weights (B, H, T, S)."""
    groups = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, groups, axis=2), jnp.repeat(v, groups, axis=2)  # (B, S, H, D)
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
    scores = jnp.where(mask, scores.astype(jnp.float32), -jnp.inf)
    weights = dropout(nn.softmax(scores)).astype(v.dtype)
    return jnp.einsum("bhts,bshd->bthd", weights, v), weights


ATTENTION = {"sdpa": True, "eager": False}


class FlaxAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    config: LlamaConfig
    layer_idx: int
    attn_implementation: str

    def setup(self) -> None:
        """The projections."""
        config, bias = self.config, self.config.attention_bias
        q_width = config.num_attention_heads * config.head_size
        kv_width = config.kv_heads * config.head_size
        self.q_proj = dense(config, q_width, bias)
        self.k_proj = dense(config, kv_width, bias)
        self.v_proj = dense(config, kv_width, bias)
        self.o_proj = dense(config, config.hidden_size, bias)
        self.dropout = nn.Dropout(config.attention_dropout)
        self.fused = choose("attn_implementation", self.attn_implementation, ATTENTION)

    def __call__(
        self, x: Array, rope: Rope, mask: Array, cache: Cache, *, train: bool, weigh: bool
    ) -> tuple[Array, Cache, Array | None]:
        """(B, T, C) → (B, T, C), the cache with these tokens, and the weights if asked for."""
        q, k, v = (
            proj(x).reshape(*x.shape[:2], -1, self.config.head_size)  # (B, T, H or K, D)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            cache = cache.update(self.layer_idx, k, v)
            k, v = cache.keys[self.layer_idx], cache.values[self.layer_idx]  # (B, S, K, D)
        weights = None
        if self.fused and not weigh and not (train and self.config.attention_dropout):
            out = sdpa_attention(q, k, v, mask)  # (B, T, H, D)
        else:
            out, weights = eager_attention(
                q, k, v, mask, lambda w: self.dropout(w, deterministic=not train)
            )
        out = self.o_proj(out.reshape(*x.shape[:2], -1))
        return out, cache, weights if weigh else None


def dense(config: LlamaConfig, features: int, bias: bool = False) -> nn.Dense:
    """A linear layer with the random weights that the config asks for."""
    return nn.Dense(features, bias, kernel_init=nn.initializers.normal(config.initializer_range))


class FlaxMLP(nn.Module):
    """down(act(gate(x)) · up(x)), a gated linear unit (arXiv:2002.05202)."""

    config: LlamaConfig

    def setup(self) -> None:
        """The projections."""
        config, bias = self.config, self.config.mlp_bias
        self.gate_proj = dense(config, config.intermediate_size, bias)
        self.up_proj = dense(config, config.intermediate_size, bias)
        self.down_proj = dense(config, config.hidden_size, bias)

    def __call__(self, x: Array) -> Array:
        """(B, T, C) → (B, T, C)."""
        act = ACTIVATIONS[self.config.hidden_act]
        return self.down_proj(act(self.gate_proj(x)) * self.up_proj(x))


class FlaxDecoderLayer(nn.Module):
    """Attention and MLP, each on normed input and added to the residual stream.

    `post_attention_layernorm` is the MLP's norm, whatever its name says.
    """

    config: LlamaConfig
    layer_idx: int
    attn_implementation: str

    def setup(self) -> None:
        """The parts."""
        config = self.config
        self.self_attn = FlaxAttention(config, self.layer_idx, self.attn_implementation)
        self.mlp = FlaxMLP(config)
        self.input_layernorm = FlaxRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = FlaxRMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(
        self, x: Array, rope: Rope, mask: Array, cache: Cache, **wanted: bool
    ) -> tuple[Array, Cache, Array | None]:
        """(B, T, C) → (B, T, C), and what `FlaxAttention` gives besides."""
        out, cache, weights = self.self_attn(self.input_layernorm(x), rope, mask, cache, **wanted)
        x = x + out
        return x + self.mlp(self.post_attention_layernorm(x)), cache, weights


# ----------------------------------------------------------------------------------------------
# The model and its head


class FlaxLayersModule(nn.Module):
    """All layers, by number as in torch's ModuleList."""

    config: LlamaConfig
    attn_implementation: str

    def setup(self) -> None:
        """The layers."""
        for index in range(self.config.num_hidden_layers):
            layer = FlaxDecoderLayer(self.config, index, self.attn_implementation)
            setattr(self, str(index), layer)

    def __iter__(self) -> Iterator[FlaxDecoderLayer]:
        return (getattr(self, str(index)) for index in range(self.config.num_hidden_layers))


class FlaxLlamaModule(nn.Module):
    """Token ids in, hidden states out."""

    config: LlamaConfig
    attn_implementation: str

    def setup(self) -> None:
        """The parts."""
        config, std = self.config, self.config.initializer_range
        self.embed_tokens = nn.Embed(
            config.vocab_size, config.hidden_size, embedding_init=nn.initializers.normal(std)
        )
        self.layers = FlaxLayersModule(config, self.attn_implementation)
        self.norm = FlaxRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = FlaxRotaryEmbedding(config)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        cache: Cache = None,
        *,
        train: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> FlaxBaseModelOutput:
        """Hidden states after the last norm; arguments as `FlaxPreTrainedModel.__call__`."""
        offset, length = cache.length if cache is not None else 0, input_ids.shape[1]
        width = cache.max_length if cache is not None else length
        if attention_mask is not None:  # causality hides what is behind
            rest = width - attention_mask.shape[1]
            attention_mask = jnp.pad(
                attention_mask.astype(bool), ((0, 0), (0, rest)), constant_values=True
            )
        if position_ids is None:
            position_ids = self._position_ids(length, attention_mask, offset)
        x = self.embed_tokens(input_ids)  # (B, T, C)
        rope = self.rotary_emb(position_ids, x.dtype)
        mask = visible(offset, length, width, attention_mask)
        between, attentions = [], []
        for layer in self.layers:
            between.append(x)
            x, cache, weights = layer(x, rope, mask, cache, train=train, weigh=output_attentions)
            attentions.append(weights)
        x = self.norm(x)
        return FlaxBaseModelOutput(
            last_hidden_state=x,
            past_key_values=None if cache is None else cache.advance(length),
            hidden_states=(*between, x) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    @staticmethod
    def _position_ids(length: int, attention_mask: Array | None, offset: Array | int) -> Array:
        """(B or 1, T)."""
        if attention_mask is None:
            return offset + jnp.arange(length)[None]
        counted = (attention_mask.cumsum(axis=-1) - 1).clip(min=0)
        return lax.dynamic_slice_in_dim(counted, offset, length, axis=1)


def visible(offset: Array | int, length: int, width: int, attention_mask: Array | None) -> Array:
    """The mask (B or 1, 1, T, S) of `length` queries from `offset` on and `width` keys."""
    query = offset + jnp.arange(length)[:, None]  # (T, 1)
    key = jnp.arange(width)  # (S,)
    if attention_mask is None:
        return masks.causal(query, key)[None, None]
    is_token = attention_mask[:, None, None]  # (B, 1, 1, S)
    return masks.padded(masks.causal, lambda k: is_token[..., k])(query, key)


class FlaxLlamaForCausalLMModule(nn.Module):
    """Token ids in, logits of the next token out."""

    config: LlamaConfig
    attn_implementation: str

    def setup(self) -> None:
        """The model, and its head unless that is the embedding."""
        self.model = FlaxLlamaModule(self.config, self.attn_implementation)
        if not self.config.tie_word_embeddings:
            self.lm_head = dense(self.config, self.config.vocab_size)

    def __call__(self, *inputs: Any, logits_to_keep: int = 0, **wanted: Any) -> FlaxCausalLMOutput:
        """(B, T) ids → logits (B, T, V), or of the last tokens alone; as `FlaxLlamaModule`."""
        outputs = self.model(*inputs, **wanted)
        return FlaxCausalLMOutput(
            logits=self.head(outputs.last_hidden_state[:, -logits_to_keep:]),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def head(self, x: Array) -> Array:
        """(…, C) → logits (…, V)."""
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens.attend(x)
        return self.lm_head(x)


class FlaxLlamaModel(FlaxPreTrainedModel):
    """Token ids in, hidden states out, with its parameters."""

    module_class = FlaxLlamaModule
    torch_class = LlamaModel


class FlaxLlamaForCausalLM(FlaxPreTrainedModel):
    """Token ids in, logits of the next token out, with its parameters."""

    module_class = FlaxLlamaForCausalLMModule
    torch_class = LlamaForCausalLM

    def generate(self, input_ids: Any, **options: Any) -> FlaxGenerateOutput:
        """Continue each row of a batch; options and result as `flax_generation.generate`."""
        return generate(self, input_ids, **options)
