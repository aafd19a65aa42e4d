"""The Llama, top to bottom: norm, rotary positions, attention, MLP, layer, model, head.

Papers: Llama (arXiv:2302.13971), Llama 2 (2307.09288), Llama 3 (2407.21783), RMSNorm (1910.07467),
RoPE (2104.09864), SwiGLU (2002.05202), grouped-query attention (2305.13245).

Shapes, with one letter a size:
    B batch · T tokens in this call · S keys visible (cache + T) · H query heads · K key/value heads
    D head_dim · C hidden_size · F intermediate_size · V vocab_size · L layers

Attribute paths are the names of the tensors in Hugging Face checkpoints. A module asks tensors,
not the config, how many heads there are, so a sharded projection needs no change here.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamacli import masks
from llamacli.batch_generation import generate_batch
from llamacli.cache import KVCache
from llamacli.config import LlamaConfig
from llamacli.flash_attention import flash_attention
from llamacli.loading import PreTrainedModel, choose
from llamacli.outputs import BaseModelOutput, CausalLMOutput
from llamacli.rope import rope_frequencies

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class RMSNorm(nn.Module):
    """x / rms(x) · weight, the mean square taken in float32 (arXiv:1910.07467, equation 4)."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension: (…, C) → (…, C)."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


# ----------------------------------------------------------------------------------------------
# Rotary positions


class RotaryEmbedding(nn.Module):
    """cos and sin of every position's angles.

    The frequencies are a plain attribute, not a buffer: they stay in float32 when the module is
    cast, and exist while the module is still on the meta device.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        frequencies, self.attention_factor = rope_frequencies(config)
        self.frequencies = torch.tensor(frequencies, dtype=torch.float32, device="cpu")  # (D/2,)

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(B, T) positions → cos and sin, each (B, 1, T, D), halves repeated."""
        angles = position_ids[..., None].float() * self._frequencies_for(position_ids)
        angles = torch.cat((angles, angles), dim=-1)[:, None]  # (B, 1, T, D)
        cos, sin = angles.cos() * self.attention_factor, angles.sin() * self.attention_factor
        return cos.to(dtype), sin.to(dtype)

    def _frequencies_for(self, position_ids: Tensor) -> Tensor:
        """(D/2,), or (B, 1, D/2) where they follow the length of each row."""
        device = position_ids.device
        if self.config.rope_follows_length:
            lengths = (position_ids.amax(dim=-1) + 1).tolist()
            rows = [[rope_frequencies(self.config, length)[0]] for length in lengths]
            return torch.tensor(rows, dtype=torch.float32, device=device)
        self.frequencies = self.frequencies.to(device)
        return self.frequencies


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + D/2) of (B, heads, T, D) by their angles: Hugging Face's layout."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


# ----------------------------------------------------------------------------------------------
# Attention. A mask of None means plain causal attention of the last T of S positions.


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Torch's fused attention: q (B, H, T, D), k and v (B, K, S, D) → (B, H, T, D)."""
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and q.shape[2] > 1,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def eager_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """The same, step by step as in arXiv:1706.03762, equation 1."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)  # (B, H, S, D)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, S)
    if mask is None:
        mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1, dtype=torch.float32)
    return F.dropout(weights, dropout).to(v.dtype) @ v


ATTENTION = {
    "sdpa": sdpa_attention,
    "eager": eager_attention,
    "flash_attention_2": flash_attention,
}


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: LlamaConfig, layer_idx: int, attn_implementation: str) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.head_size
        self.dropout = config.attention_dropout
        self.attend = choose("attn_implementation", attn_implementation, ATTENTION)
        width, bias = config.hidden_size, config.attention_bias
        q_width = config.num_attention_heads * self.head_dim
        kv_width = config.kv_heads * self.head_dim
        self.q_proj = nn.Linear(width, q_width, bias=bias)
        self.k_proj = nn.Linear(width, kv_width, bias=bias)
        self.v_proj = nn.Linear(width, kv_width, bias=bias)
        self.o_proj = nn.Linear(q_width, width, bias=bias)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H or K, T, D)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.update(self.layer_idx, k, v)  # (B, K, S, D)
        out = self.attend(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, H, T, D)
        return self.o_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """down(act(gate(x)) · up(x)), a gated linear unit (arXiv:2002.05202)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        narrow, wide, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(narrow, wide, bias=bias)
        self.up_proj = nn.Linear(narrow, wide, bias=bias)
        self.down_proj = nn.Linear(wide, narrow, bias=bias)
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Attention and MLP, each on normed input and added to the residual stream.

    `post_attention_layernorm` is the MLP's norm, whatever its name says.
    """

    def __init__(self, config: LlamaConfig, layer_idx: int, attn_implementation: str) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer_idx, attn_implementation)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


# ----------------------------------------------------------------------------------------------
# The model and its head


class LlamaModel(PreTrainedModel):
    """Token ids in, hidden states out."""

    def __init__(self, config: LlamaConfig, *, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, index, attn_implementation)
            for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)
        initialize(self, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KVCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutput:
        """Hidden states after the last norm, in the dtype of the weights.

        Args:
            input_ids: (B, T), int64.
            attention_mask: (B, S), True or 1 where a real token stands, False or 0 for padding;
                None means no padding.
            position_ids: (B, T); counted from each row's first real token when None.
            cache: holds the tokens before these, and is given these.
            inputs_embeds: (B, T, C), in place of `input_ids`.
            use_cache: give a new cache where there is none; None means as the config says, and
                not in training.
            output_hidden_states: give those before and between the layers, too.
        """
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, C)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and cache is None:
            cache = KVCache(len(self.layers))
        offset, length = cache.length if cache is not None else 0, x.shape[1]
        if position_ids is None:
            position_ids = self._position_ids(x, attention_mask, offset)
        rope = self.rotary_emb(position_ids, x.dtype)
        mask = visible(offset, offset + length, attention_mask, x.device)
        between = []  # (B, T, C) each
        for layer in self.layers:
            if output_hidden_states:
                between.append(x)
            x = layer(x, rope, mask, cache)
        if cache is not None:
            cache.advance(length)
        x = self.norm(x)
        hidden_states = (*between, x) if output_hidden_states else None
        return BaseModelOutput(last_hidden_state=x, cache=cache, hidden_states=hidden_states)

    @staticmethod
    def _position_ids(tokens: Tensor, attention_mask: Tensor | None, offset: int) -> Tensor:
        """(B or 1, T) positions of tokens (B, T, …)."""
        length = tokens.shape[1]
        if attention_mask is None:
            return torch.arange(offset, offset + length, device=tokens.device)[None]
        return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -length:]


def visible(
    offset: int, end: int, attention_mask: Tensor | None, device: torch.device
) -> Tensor | None:
    """The mask (B or 1, 1, T, S) of queries offset … end-1; None where causal says it all."""
    if attention_mask is None and (offset == 0 or end - offset == 1):
        return None
    query = torch.arange(offset, end, device=device)[:, None]  # (T, 1)
    key = torch.arange(end, device=device)  # (S,)
    if attention_mask is None:
        return masks.causal(query, key)[None, None]  # type: ignore[no-any-return]
    is_token = attention_mask.bool()[:, None, None]  # (B, 1, 1, S)
    return masks.padded(masks.causal, lambda k: is_token[..., k])(query, key)  # type: ignore[no-any-return]


def initialize(module: nn.Module, std: float) -> None:
    """Random weights: normal with this standard deviation, biases zero."""
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Embedding):
            nn.init.normal_(child.weight, std=std)
        if isinstance(child, nn.Linear) and child.bias is not None:
            nn.init.zeros_(child.bias)


class LlamaForCausalLM(PreTrainedModel):
    """Token ids in, logits of the next token out."""

    def __init__(self, config: LlamaConfig, *, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config, attn_implementation=attn_implementation)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        nn.init.normal_(self.lm_head.weight, std=config.initializer_range)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        past_key_values: KVCache | None = None,
        **inputs: Any,
    ) -> CausalLMOutput:
        """(B, T) ids → logits (B, T, V).

        Args:
            input_ids, attention_mask, inputs: as `LlamaModel.forward`.
            labels: (B, T) int64, mostly the ids themselves: each is predicted from those before it.
                -100 does not count in the mean cross-entropy, in nats.
            logits_to_keep: of the last tokens alone; 0 is all.
            past_key_values: the cache, by its name in `transformers` 4.

        Raises:
            TypeError: an argument that is not supported, by name.
        """
        if past_key_values is not None:
            inputs["cache"] = past_key_values
        outputs = self.model(input_ids, attention_mask, **inputs)
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            predicted = logits[:, :-1].float().flatten(0, 1)  # (B · (T - 1), V)
            loss = F.cross_entropy(predicted, labels[:, 1:].flatten())
        return CausalLMOutput(
            loss=loss, logits=logits, cache=outputs.cache, hidden_states=outputs.hidden_states
        )

    def generate(self, input_ids: Tensor, **options: Any) -> Tensor:
        """Continue each row of a batch; options and result as `generate_batch`."""
        return generate_batch(self, input_ids, **options)
