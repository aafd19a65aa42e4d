"""Random weights, made in the form in which they are used when they are asked for, one at a time.

They stand where the weights of a file would stand, so a model is loaded from them as from a file.
How fast a product is does not depend on the numbers in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor

from llamacli.checkpoint import Checkpoint, Weight
from llamacli.config import LlamaConfig
from llamacli.empty_model import meta_model
from llamacli.memory import allocate
from llamacli.model import LlamaForCausalLM
from llamacli.quantization import Int4Weight, Int8Weight
from llamacli.quantization_plan import PlannedWeight, Recipe, plan_quantization
from llamacli.torchao_format import QuantizedInfo, WeightInfo, part_layouts
from llamacli.weight_file import Take, TensorInfo

_STD = 0.02
_POOL = (1 << 20) + 7  # numbers that are repeated; no power of two, so that rows differ


@dataclass(frozen=True)
class RandomWeights(Checkpoint):
    """Weights that no file holds: norms are 1, the rest is noise."""

    def read(self, name: str, take: Take = allocate) -> Weight:
        """One weight."""
        info = self.tensors[name]
        if isinstance(info, TensorInfo):
            is_matrix = len(info.shape) > 1
            return _noise(info, take) if is_matrix else torch.ones(info.shape, dtype=info.dtype)
        qdata = _noise(info.parts["qdata"], take)
        scale = torch.full_like(_empty(info.parts["scale"]), _STD / 2 ** (info.scheme.bits - 2))
        if info.scheme.bits == 8:
            return Int8Weight(qdata, scale)
        return Int4Weight(qdata, scale, torch.zeros_like(scale))


def random_weights(config: LlamaConfig, recipe: Recipe | None = None) -> RandomWeights:
    """Those of a LlamaForCausalLM in the config's dtype, quantized as `recipe` says."""
    dtype: torch.dtype = getattr(torch, config.dtype or "bfloat16")
    parameters = meta_model(LlamaForCausalLM, config).named_parameters()
    infos = {name: _info(tuple(parameter.shape), dtype) for name, parameter in parameters}
    weights = RandomWeights(infos, {})
    if recipe is None:
        return weights
    plan = plan_quantization(weights, recipe, tied=config.tie_word_embeddings)
    return RandomWeights({name: _planned_info(planned) for name, planned in plan.items()}, {})


def _planned_info(planned: PlannedWeight) -> WeightInfo:
    scheme, shape = planned.scheme, planned.source.shape
    if scheme is None:
        return _info(shape, planned.dtype)
    layouts = part_layouts(scheme, shape, planned.dtype)
    parts: Mapping[str, TensorInfo] = {name: _info(*layout) for name, layout in layouts.items()}
    return QuantizedInfo(scheme, shape, planned.dtype, parts)


def _info(shape: tuple[int, ...], dtype: torch.dtype) -> TensorInfo:
    return TensorInfo(shape, dtype, shard="", offset=0)


def _empty(info: TensorInfo) -> Tensor:
    return torch.empty(info.shape, dtype=info.dtype)


def _noise(info: TensorInfo, take: Take) -> Tensor:
    whole = take(info.nbytes).view(info.dtype)
    fill_with_noise(whole)
    return whole.view(info.shape)


def fill_with_noise(values: Tensor) -> None:
    """Write noise over all numbers (N)."""
    pool = _pool(values.dtype)
    for part in torch.split(values, len(pool)):
        part.copy_(pool[: len(part)])


@cache
def _pool(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        return torch.randn(_POOL, generator=generator).mul_(_STD).to(dtype)
    return torch.randint(-128, 128, (_POOL,), generator=generator, dtype=dtype)


def values(weights: Checkpoint) -> int:
    """How many numbers all weights hold."""
    return sum(prod(info.shape) for info in weights.tensors.values())
