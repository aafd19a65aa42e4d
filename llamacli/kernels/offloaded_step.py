"""The native step of a model whose weights are partly elsewhere: some layers at a time.

It computes what `DecodeStep` computes, bit for bit: the residual stream stays where it is between
the calls, in float32.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref, c_int64, memmove, pointer, sizeof
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from llamacli.kernels.decode_step import _PROJECTIONS, DecodeStep, FewRows
from llamacli.kernels.long_prompts import fuse
from llamacli.kernels.native import Layer, Step, kernels
from llamacli.quantized_linear import TiledLinear


def dispatch_with_kernels(model: nn.Module, dispatch: Callable[[], object]) -> None:
    """Have accelerate take care of a model, with the kernels behind it where they fit."""
    base: Any = getattr(model, "model", model)
    if kernels() is None or not _is_supported(base):
        dispatch()
        return
    for layer in base.layers:
        fuse(layer)
    if isinstance(head := getattr(model, "lm_head", None), nn.Linear):
        head.forward = FewRows(head)  # type: ignore[assignment, method-assign]
    dispatch()
    base.forward = OffloadedStep(base)


def _is_supported(base: Any) -> bool:
    linears = [layer.get_submodule(p) for layer in base.layers for p in _PROJECTIONS.values()]
    tensors = (*base.parameters(), *base.buffers())
    return (
        base.config.hidden_act in ("silu", "swish")
        and all(isinstance(linear, nn.Linear | TiledLinear) for linear in linears)
        and all(p.dtype == torch.bfloat16 for p in base.parameters())
        and all(t.device.type in ("cpu", "meta") for t in tensors)
    )


@contextmanager
def present(module: Any) -> Iterator[Any]:
    """Within it the weights of a module are on its device, brought by accelerate."""
    hook = module._hf_hook
    hook.pre_forward(module)
    try:
        yield module
    finally:
        hook.post_forward(module, None)


class OffloadedStep(DecodeStep):
    """The forward of a LlamaModel that computes on a CPU, dispatched by accelerate."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        with present(model.norm):
            self._norm = self._float(model.norm.weight)

    def _is_changed(self) -> bool:
        return False  # weights come and go; accelerate warns of those that are moved

    def _run(self, step: Step, layers: Any, input_ids: Tensor, threads: int) -> None:
        x = self._model.embed_tokens(input_ids).contiguous()  # (B, T, C)
        step.embeddings, step.token_ids = x.data_ptr(), (c_int64 * step.rows)(*range(step.rows))
        for first, count in self._runs():
            step.num_layers, step.layers = count, pointer(layers[first])
            with self._bound(self._model.layers[first], layers[first]):
                kernels().llamacli_step(byref(step), threads)
            step.embeddings = None

    def _runs(self) -> Iterator[tuple[int, int]]:
        """First layer and number: of those that are here in a row, of the others one by one."""
        layers = enumerate(self._model.layers)
        for is_absent, group in groupby(layers, lambda pair: pair[1]._hf_hook.offload):
            indices = [index for index, _ in group]
            yield from ((i, 1) for i in indices) if is_absent else ((indices[0], len(indices)),)

    @contextmanager
    def _bound(self, module: Any, layer: Layer) -> Iterator[None]:
        """Within it the layer points to the weights of an absent module."""
        if not module._hf_hook.offload:
            yield
            return
        kept = len(self._kept)
        with present(module):
            there = self._layer(module)
            there.keys, there.values = layer.keys, layer.values
            memmove(byref(layer), byref(there), sizeof(Layer))
            yield
        del self._kept[kept:]
