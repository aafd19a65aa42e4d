"""The native step of a model that several ranks share: half a layer at a time, and a sum.

The residual stream and the ranks' parts of it stay in float32, as in one process.
"""

from collections.abc import Iterator
from ctypes import byref, c_float, c_int64, pointer
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llamacli.collectives import Group
from llamacli.config import LlamaConfig
from llamacli.kernels.decode_step import DecodeStep
from llamacli.kernels.native import Layer, Matrix, Step, kernels

_ATTENTION, _MLP = ("q", "k", "v", "o"), ("gate", "up", "down")


class _Share:
    """A model whose config has the sizes of this rank's share."""

    def __init__(self, model: Any, config: LlamaConfig) -> None:
        self._model, self.config = model, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class SharedStep(DecodeStep):
    """The forward of a rank's share of a LlamaModel on a CPU."""

    def __init__(self, model: Any, group: Group) -> None:
        super().__init__(model)
        config, layer = model.config, self._layers[0]
        size = config.head_size
        config = replace(
            config,
            num_attention_heads=layer.q.n // size,
            num_key_value_heads=layer.k.n // size,
            head_dim=size,
            intermediate_size=layer.gate.n,
        )
        self._model, self._group = _Share(model, config), group
        self._embeddings = torch.empty(config.vocab_size, 0)  # how many: a rank has some of them

    def _run(self, step: Step, layers: Any, input_ids: Tensor, threads: int) -> None:
        native = kernels().llamacli_step
        embedded = self._model.embed_tokens(input_ids).contiguous()  # (B, T, C)
        step.embeddings = embedded.data_ptr()
        step.token_ids = (c_int64 * step.rows)(*range(step.rows))
        step.num_layers = 0
        native(byref(step), threads)  # x is what was embedded
        step.embeddings = None
        x = _residual(step)
        for half in _halves(step, layers):
            before = x.clone()
            native(byref(half), threads)
            torch.add(before, self._group.add_up(x - before), out=x)
        native(byref(step), threads)  # the norm


def _residual(step: Step) -> Tensor:
    """x of a step: float32 (rows · C), the first of its scratch."""
    size = step.rows * step.hidden_size
    return torch.frombuffer((c_float * size).from_address(step.scratch), dtype=torch.float32)


def _halves(step: Step, layers: Any) -> Iterator[Step]:
    """Steps of half a layer: weights without rows stand for those of the other half."""
    nothing = Matrix(None, None, 0, step.hidden_size, 16, step.hidden_size)
    attention, mlp = Step.from_buffer_copy(step), Step.from_buffer_copy(step)
    attention.num_layers = mlp.num_layers = 1
    attention.intermediate_size = 0
    mlp.heads, mlp.kv_heads, mlp.head_size = 1, 1, 0  # a head without columns,
    mlp.begin = mlp.position  # that sees a token
    for layer in layers:
        for half, others in ((attention, _MLP), (mlp, _ATTENTION)):
            part = Layer.from_buffer_copy(layer)
            for name in others:
                setattr(part, name, nothing)
            half.layers = pointer(part)
            yield half
