"""Short steps of a Llama in one native call: the same sequence as model.py, fused.

`install` puts it behind the forward of a LlamaModel. What it does not take (long prompts, other
dtypes, masks with holes, gradients) goes on through torch.
"""

from collections.abc import Callable
from ctypes import byref, c_int64
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from llamacli.cache import KVCache
from llamacli.dense_linear import BLOCK_ROWS, cpu_computes_bfloat16, multiply_blocks
from llamacli.kernels.fast_forward import FastForward
from llamacli.kernels.long_prompts import fuse, needs_grad, torch_forward
from llamacli.kernels.native import MAX_ROWS, Layer, Matrix, Step, kernels, multiply, name
from llamacli.quantized_linear import TiledLinear

_PROJECTIONS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def install(model: nn.Module, step: "Callable[[Any], DecodeStep] | None" = None) -> bool:
    """Speed up a LlamaModel, or one with a head, where that is possible; tell whether it is.

    Args:
        step: makes the forward of a LlamaModel, a DecodeStep by default.
    """
    base: Any = getattr(model, "model", model)
    if kernels() is None:
        return False
    if not cpu_computes_bfloat16():
        _install_few_rows(model)
    if not _is_supported(base):
        return False
    base.forward = (step or DecodeStep)(base)
    for layer in base.layers:
        fuse(layer)
    if isinstance(head := getattr(model, "lm_head", None), nn.Linear):
        _install_few_rows(head)
    return True


def _install_few_rows(model: nn.Module) -> None:
    for linear in model.modules():
        if isinstance(linear, nn.Linear) and _is_plain(linear):
            linear.forward = FewRows(linear)  # type: ignore[assignment, method-assign]


def kernel_set(model: nn.Module) -> str:
    """What computes the short steps of a model: the name of a set of kernels, or "torch"."""
    base = getattr(model, "model", model)
    return name() if isinstance(base.__dict__.get("forward"), DecodeStep) else "torch"


def _is_supported(base: Any) -> bool:
    linears = [layer.get_submodule(p) for layer in base.layers for p in _PROJECTIONS.values()]
    return (
        base.config.hidden_act in ("silu", "swish")
        and all(_is_plain(linear) or isinstance(linear, TiledLinear) for linear in linears)
        and _is_plain(base.embed_tokens)
    )


def _is_plain(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Linear | nn.Embedding)
        and module.weight.dtype == torch.bfloat16
        and module.weight.device.type == "cpu"
        and module.weight.is_contiguous()
    )


class FewRows:
    """The forward of a bfloat16 nn.Linear: few rows natively, many by torch."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear

    def __call__(self, x: Tensor) -> Tensor:
        """(…, K) → (…, N)."""
        weight = self.linear.weight
        is_plain = _is_plain(self.linear) and x.dtype == weight.dtype
        if not is_plain or needs_grad():
            return nn.Linear.forward(self.linear, x)
        if x.numel() > MAX_ROWS * x.shape[-1]:
            return self._many_rows(x)
        bias = None if self.linear.bias is None else self.linear.bias.float()
        out = multiply(_matrix(self.linear, bias), x.reshape(-1, weight.shape[1]))
        return out.unflatten(0, x.shape[:-1])  # type: ignore[no-any-return, no-untyped-call]

    def _many_rows(self, x: Tensor) -> Tensor:
        if cpu_computes_bfloat16():
            return nn.Linear.forward(self.linear, x)
        out = multiply_blocks(x, torch.split(self.linear.weight, BLOCK_ROWS))
        return out if self.linear.bias is None else out + self.linear.bias

    def __reduce__(self) -> Any:
        """Copies of a layer compute through torch."""
        return torch_forward, (self.linear,)


def _matrix(linear: Any, bias: Tensor | None) -> Matrix:
    """The weight as the kernels see it; `bias` is float32."""
    if isinstance(linear, TiledLinear):
        matrix = linear.matrix
    else:
        n, k = linear.weight.shape
        matrix = Matrix(linear.weight.data_ptr(), None, n, k, 16, k)
    matrix.bias = None if bias is None else bias.data_ptr()
    return matrix


class _CachedLayers(NamedTuple):
    """The layers as C sees them, with the keys and values of one cache."""

    layers: Any
    keys: Tensor  # of the first layer, (B, K, capacity, D)


class DecodeStep(FastForward):
    """The forward of a LlamaModel on a CPU."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._places = [
            (owner, name, value)
            for module in model.modules()
            for owner in (module._modules, module._parameters, module._buffers)
            for name, value in owner.items()
        ]
        self._tensors = [*model.parameters(), *model.buffers()]
        self._versions = self._current_versions()
        # What C points to stays, whatever becomes of the model: the weights, and float32 copies.
        self._kept: list[Tensor] = [tensor.detach() for tensor in self._tensors]
        self._embeddings = model.embed_tokens.weight.detach()  # (V, C)
        self._layers = (Layer * len(model.layers))(*map(self._layer, model.layers))
        self._norm = self._float(model.norm.weight)
        self._table = torch.empty(0), torch.empty(0)  # cos and sin of positions 0, 1, …
        self._caches: WeakKeyDictionary[KVCache, _CachedLayers] = WeakKeyDictionary()

    def _compute(
        self,
        input_ids: Tensor,
        cache: KVCache,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
    ) -> Tensor | None:
        if (begin := self._begin(input_ids, cache, attention_mask)) is None or (
            layers := self._layers_with(cache, input_ids)
        ) is None:
            return None
        if position_ids is None and attention_mask is not None:
            position_ids = self._model._position_ids(input_ids, attention_mask, cache.length)
        return self._step(input_ids, cache, layers, begin, position_ids)

    def _begin(
        self, input_ids: Tensor, cache: KVCache, attention_mask: Tensor | None
    ) -> list[int] | None:
        """The first position that each row sees; None where the native step does not fit."""
        if input_ids.numel() > MAX_ROWS:
            return None
        if self._model.training or needs_grad():
            return None
        if attention_mask is None:
            return [0] * len(input_ids)
        if attention_mask.shape != (len(input_ids), cache.length + input_ids.shape[1]):
            return None
        real = attention_mask.bool()
        begin = real.int().argmax(dim=1)
        has_holes = (real.sum(dim=1) != real.shape[1] - begin).any()
        return None if has_holes else begin.tolist()

    def _layers_with(self, cache: KVCache, input_ids: Tensor) -> _CachedLayers | None:
        """The layers with this cache's keys and values; None if the model is not what it was.

        Whether it is, is asked when the cache is new, or has grown: that is often enough, and
        looking at every weight for every token took 2 % of a step.
        """
        batch, length = input_ids.shape
        known = self._caches.get(cache)
        if known is not None and len(known.keys) == batch and cache.holds(known.keys, length):
            return known
        if self._is_changed():
            return None
        config = self._model.config
        shape = (batch, config.kv_heads, length, config.head_size)
        buffers = cache.reserve(torch.empty(shape, dtype=torch.bfloat16))
        layers = type(self._layers).from_buffer_copy(self._layers)
        for layer, (keys, values) in zip(layers, buffers, strict=True):
            layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
        known = self._caches[cache] = _CachedLayers(layers, buffers[0][0])
        return known

    def _is_changed(self) -> bool:
        """Whether layers or weights were replaced, moved or written to."""
        return (
            any(owner.get(name) is not value for owner, name, value in self._places)
            or self._current_versions() != self._versions
        )

    def _current_versions(self) -> list[tuple[int, int]]:
        return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in self._tensors]

    def _step(
        self,
        input_ids: Tensor,
        cache: KVCache,
        cached: _CachedLayers,
        begin: list[int],
        position_ids: Tensor | None,
    ) -> Tensor:
        config, (batch, length) = self._model.config, input_ids.shape
        rows, numbers = batch * length, c_int64 * (batch * length)
        token_ids = input_ids.flatten().tolist()
        if not all(0 <= token_id < len(self._embeddings) for token_id in token_ids):
            raise IndexError("a token id outside the vocabulary")
        cos, sin = self._angles(input_ids, position_ids, cache.length)  # (B · T, D)
        positions = [*range(cache.length, cache.length + length)] * batch
        first = [start for start in begin for _ in range(length)]
        first = [min(pair) for pair in zip(first, positions, strict=True)]  # padding sees itself
        out = torch.empty((batch, length, config.hidden_size), dtype=torch.bfloat16)
        step = Step(
            layers=cached.layers,
            norm=self._norm.data_ptr(),
            num_layers=len(cached.layers),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.kv_heads,
            head_size=config.head_size,
            capacity=cached.keys.shape[2],
            eps=config.rms_norm_eps,
            rows=rows,
            sequence=numbers(*(row for row in range(batch) for _ in range(length))),
            begin=numbers(*first),
            position=numbers(*positions),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            embeddings=self._embeddings.data_ptr(),
            token_ids=numbers(*token_ids),
            out=out.data_ptr(),
        )
        threads = torch.get_num_threads()
        scratch = torch.empty(kernels().llamacli_scratch(byref(step), threads))
        step.scratch = scratch.data_ptr()
        self._run(step, cached.layers, input_ids, threads)
        cache.advance(length)
        return out

    def _run(self, step: Step, layers: Any, input_ids: Tensor, threads: int) -> None:
        kernels().llamacli_step(byref(step), threads)

    def _angles(
        self, input_ids: Tensor, position_ids: Tensor | None, offset: int
    ) -> tuple[Tensor, Tensor]:
        """cos and sin (B · T, D) of the tokens' positions, offset … when position_ids is None."""
        batch, length = input_ids.shape
        if self._model.config.rope_follows_length:
            if position_ids is None:
                position_ids = self._model._position_ids(input_ids, None, offset)
            both = self._model.rotary_emb(position_ids, torch.float32)  # (B or 1, 1, T, D)
            cos, sin = (part.expand(batch, -1, -1, -1).flatten(0, 2) for part in both)
            return cos.contiguous(), sin.contiguous()
        end = offset + length if position_ids is None else int(position_ids.max()) + 1
        if end > len(self._table[0]):
            both = self._model.rotary_emb(torch.arange(2 * end)[None], torch.float32)
            self._table = both[0][0, 0], both[1][0, 0]  # (2 · end, D)
        if position_ids is None and batch == 1:
            return self._table[0][offset:end], self._table[1][offset:end]
        places = torch.arange(offset, end) if position_ids is None else position_ids
        places = places.expand(batch, -1).flatten()
        return self._table[0][places], self._table[1][places]

    def _layer(self, layer: Any) -> Layer:
        matrices = {}
        for projection, path in _PROJECTIONS.items():
            linear = layer.get_submodule(path)
            bias = None if linear.bias is None else self._float(linear.bias)
            matrices[projection] = _matrix(linear, bias)
        return Layer(
            **matrices,
            input_norm=self._float(layer.input_layernorm.weight).data_ptr(),
            post_attention_norm=self._float(layer.post_attention_layernorm.weight).data_ptr(),
        )

    def _float(self, tensor: Tensor) -> Tensor:
        """A float32 copy that lives as long as this object."""
        self._kept.append(tensor.detach().float())
        return self._kept[-1]
