"""Parameters of a Flax twin ↔ the weights of its torch class, by name.

`layers.0.mlp.up_proj.weight` (out, in) is `layers/0/mlp/up_proj/kernel` (in, out), and the weight
of an embedding is called `embedding`. All else is the same.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import torch
import torch.utils.dlpack
from flax.traverse_util import flatten_dict, unflatten_dict
from torch import Tensor, nn

from llamacli.checkpoint import Checkpoint
from llamacli.empty_model import names_for
from llamacli.load_into import weight_sources
from llamacli.loading import PreTrainedModel
from llamacli.quantization import QuantizedWeight

Params = Mapping[str, Any]  # a tree of dicts whose leaves are arrays

_LEAVES = {nn.Linear: "kernel", nn.Embedding: "embedding"}


def read_params(
    twin: PreTrainedModel,
    opened: Checkpoint,
    *,
    dtype: torch.dtype,
    progress: Callable[[int, int], object] | None = None,
) -> Params:
    """Read the weights of a checkpoint; those that are quantized become plain.

    Args:
        twin: of the torch class, on the meta device.
        opened: the weights.
        dtype: of the parameters.
        progress: called with the bytes read so far and in all, after each weight.

    Raises:
        CheckpointError, LocalIOError, ResourceError: as `load_into`.
    """
    tensors = {ours: opened.tensors[name] for ours, name in names_for(twin, opened.tensors).items()}
    opened = dataclasses.replace(opened, tensors=tensors)
    sources = weight_sources(twin, opened, {})
    done, total = 0, sum(tensors[name].nbytes for name in sources.values())
    leaves: dict[tuple[str, ...], jax.Array] = {}
    for name, parameter in twin.named_parameters():
        source = sources[parameter]
        weight = opened.read(source)
        plain = (
            weight.dequantize(dtype) if isinstance(weight, QuantizedWeight) else weight.to(dtype)
        )
        path = _path(twin, name)
        leaves[path] = _turned(path, plain)
        done += tensors[source].nbytes
        if progress is not None:
            progress(done, total)
    params: Params = unflatten_dict(leaves)
    return params


def fill_twin(twin: PreTrainedModel, params: Params) -> None:
    """Give the parameters to a model of the torch class that is on the meta device."""
    leaves = flatten_dict(params)
    weights: dict[nn.Parameter, Tensor] = {}
    for name, parameter in twin.named_parameters():
        path = _path(twin, name)
        leaf = to_torch(leaves[path])
        weights[parameter] = leaf.T if path[-1] == "kernel" else leaf
    names = twin.named_parameters(remove_duplicate=False)
    twin.load_state_dict({name: weights[parameter] for name, parameter in names}, assign=True)


def _path(twin: nn.Module, name: str) -> tuple[str, ...]:
    """Where the twin of a torch parameter is."""
    *owner, attribute = name.split(".")
    kind = type(twin.get_submodule(".".join(owner)))
    return (*owner, _LEAVES.get(kind, attribute) if attribute == "weight" else attribute)


def _turned(path: tuple[str, ...], weight: Tensor) -> jax.Array:
    """A torch weight as an array on JAX's first device.

    It comes by numpy: what comes by DLPack is bound to its device, and a program is compiled once
    for arrays that are bound and once for those that are not.
    """
    whole = (weight.T if path[-1] == "kernel" else weight).contiguous()
    if whole.dtype == torch.bfloat16:  # which numpy knows from JAX alone
        return jax.device_put(whole.view(torch.int16).numpy().view(jnp.bfloat16))
    return jax.device_put(whole.numpy())


def to_torch(array: jax.Array) -> Tensor:
    """A JAX array on the CPU, without a copy if it is there."""
    return torch.utils.dlpack.from_dlpack(jax.device_put(array, jax.devices("cpu")[0]))
