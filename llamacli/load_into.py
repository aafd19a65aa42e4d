"""The weights of a checkpoint become those of a module, or nothing changes."""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from math import prod
from types import MappingProxyType

import torch
from torch import Tensor, nn

from llamacli import warm_memory
from llamacli.checkpoint import Checkpoint, Weight
from llamacli.errors import CheckpointError, first_five
from llamacli.kernels import native
from llamacli.memory import Scratch, allocate_weight
from llamacli.quantization import Scheme, quantize
from llamacli.quantized_linear import TiledLinear, quantized_linear
from llamacli.torchao_format import USE_ANOTHER, QuantizedInfo, WeightInfo, part_name
from llamacli.weight_file import TensorInfo

logger = logging.getLogger(__name__)

READING_THREADS = min(4, os.cpu_count() or 1)

Weighty = Tensor | nn.Module  # a weight, or the layer that computes with it
# Is given a name, and what reads that weight onto a device; says what the module gets.
Place = Callable[[str, Callable[[torch.device | str], Weighty]], Weighty]

# Rotary frequencies that old converters stored; they follow from the config.
_REDUNDANT = re.compile(r"(.+\.)?rotary_emb\.inv_freq|rope\.freqs")


def load_into(
    module: nn.Module,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | Place = "cpu",
    schemes: Mapping[str, Scheme] = MappingProxyType({}),
    algorithm: str = "rtn",
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Give every parameter of a module its weight; the module is unchanged if that fails.

    A linear layer whose weight is quantized is replaced by one that computes with it. The memory
    needed is that of the weights, plus one per reading thread.

    Args:
        module: on the meta device, with the names of the checkpoint. Parameters that it shares,
            as tied embeddings, need one of their names in the checkpoint.
        checkpoint: the weights.
        dtype: of the parameters; None keeps that of the file.
        device: of the parameters, or who decides that for each.
        schemes: name → how a weight that is not quantized becomes so; weights for which the module
            has no use may be among them.
        algorithm: by which it does, one of `quantization.ALGORITHMS`.
        progress: called with the bytes read so far and in all, after each weight.

    Raises:
        CheckpointError: weights are missing, have another shape than the module, or are quantized
            and not those of a linear layer; found before memory is allocated.
        CheckpointError, LocalIOError, ResourceError: as `Checkpoint.read`.
    """
    sources = weight_sources(module, checkpoint, schemes)
    read = _Reader(checkpoint, dtype, schemes, algorithm)

    def put(name: str) -> Weighty:
        return device(name, partial(read, name)) if callable(device) else read(name, device)

    names = set(sources.values())
    if callable(device) or not all(read.takes_warm_memory(name, device) for name in names):
        warm_memory.end()  # nobody would give it back before all is read
    sizes = {name: info.nbytes for name, info in checkpoint.tensors.items() if name in names}
    weights = _read_all(put, sizes, progress)
    warm_memory.end()
    _place(module, {parameter: weights[name] for parameter, name in sources.items()})


class _Reader:
    """Reads weights as a model has them; several threads may at once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype | None,
        schemes: Mapping[str, Scheme],
        algorithm: str,
    ) -> None:
        self._checkpoint, self._dtype = checkpoint, dtype
        self._schemes, self._algorithm = schemes, algorithm
        self._scratch = Scratch()

    def __call__(self, name: str, device: torch.device | str) -> Weighty:
        if self._stays(name, device):
            return self._checkpoint.read(name, allocate_weight)  # type: ignore[return-value]
        found = self._convert(name, self._checkpoint.read(name, self._scratch.take), device)
        if isinstance(found, TiledLinear):  # it has tiles, and nothing of what was read
            self._scratch.reuse()
        else:
            self._scratch.forget()
        return found

    def _stays(self, name: str, device: torch.device | str) -> bool:
        """Whether a weight is used as it is read."""
        info = self._checkpoint.tensors[name]
        is_same = isinstance(info, TensorInfo) and self._dtype in (None, info.dtype)
        return is_same and name not in self._schemes and torch.device(device).type == "cpu"

    def takes_warm_memory(self, name: str, device: torch.device | str) -> bool:
        """Whether memory that was cleared ahead is filled by a weight."""
        if isinstance(self._checkpoint.tensors[name], QuantizedInfo):
            return native.kernels() is not None and torch.device(device).type == "cpu"
        return self._stays(name, device)

    def _convert(self, name: str, weight: Weight, device: torch.device | str) -> Weighty:
        if isinstance(weight, Tensor):
            weight = weight.to(device=device, dtype=self._dtype)
            if name not in self._schemes:
                return weight
            weight = quantize(weight, self._schemes[name], self._algorithm)
        return quantized_linear(weight.to(device), None)  # in its final form: no second copy


def _read_all(
    read: Callable[[str], Weighty],
    sizes: Mapping[str, int],
    progress: Callable[[int, int], object] | None,
) -> dict[str, Weighty]:
    """What is read of these names, in this order by several threads."""
    weights: dict[str, Weighty] = {}
    done, total = 0, sum(sizes.values())
    with ThreadPoolExecutor(READING_THREADS) as pool:
        results = pool.map(read, sizes)
        # Closed early, by an exception, it cancels what has not begun.
        with closing(results):  # type: ignore[type-var]
            for (name, size), weight in zip(sizes.items(), results, strict=True):
                weights[name] = weight
                done += size
                if progress is not None:
                    progress(done, total)
    return weights


def _place(module: nn.Module, weights: Mapping[nn.Parameter, Weighty]) -> None:
    tensors = {
        parameter: nn.Parameter(weight, requires_grad=parameter.requires_grad)
        for parameter, weight in weights.items()
        if isinstance(weight, Tensor)
    }
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        path, _, attribute = name.rpartition(".")
        owner, weight = module.get_submodule(path), weights[parameter]
        if isinstance(weight, Tensor):
            setattr(owner, attribute, tensors[parameter])
        else:
            weight.bias = owner.bias
            for hook in owner._forward_hooks.values():
                weight.register_forward_hook(hook)
            module.set_submodule(path, weight)


def loaded_bytes(info: WeightInfo, dtype: torch.dtype) -> int:
    """Size of a stored weight in memory, in a model of this dtype."""
    if isinstance(info, QuantizedInfo) or not info.dtype.is_floating_point:
        return info.nbytes
    return prod(info.shape) * dtype.itemsize


def weight_sources(
    module: nn.Module, checkpoint: Checkpoint, schemes: Mapping[str, Scheme]
) -> dict[nn.Parameter, str]:
    """The stored weight of each parameter, the first of its names that the checkpoint has.

    Raises:
        CheckpointError: the weights do not fit the module, as `load_into`.
    """
    names = dict(module.named_parameters(remove_duplicate=False))
    sources: dict[nn.Parameter, str] = {}
    for name, parameter in names.items():
        if name in checkpoint.tensors:
            sources.setdefault(parameter, name)
    missing = [name for name, parameter in module.named_parameters() if parameter not in sources]
    if missing:
        message = f"the weights lack {first_five(missing)}"
        raise CheckpointError(message, hint=_hint(missing, checkpoint))
    misfits = [
        f"{name} (file has {_described(info)}, config wants {_described(parameter)})"
        for parameter, name in sources.items()
        if _described(info := checkpoint.tensors[name]) != _described(parameter)
    ]
    if misfits:
        raise CheckpointError(f"the weights do not fit the config: {first_five(misfits)}")
    _check_quantized(module, checkpoint, sources, schemes)
    strays = [name for name in checkpoint.tensors if name not in names]
    if strays := [name for name in strays if not _REDUNDANT.fullmatch(name)]:
        logger.warning("tensors that the model has no use for: %s", first_five(strays))
    return sources


def _hint(missing: Sequence[str], checkpoint: Checkpoint) -> str | None:
    if missing == ["lm_head.weight"]:
        return "if the embeddings are tied, config.json must say so: tie_word_embeddings"
    if part_name(missing[0], "qdata") in checkpoint.tensors:
        return "the metadata that describes quantized weights was lost: download the files again"
    return None


def _check_quantized(
    module: nn.Module,
    checkpoint: Checkpoint,
    sources: Mapping[nn.Parameter, str],
    schemes: Mapping[str, Scheme],
) -> None:
    """Only linear layers can compute with a quantized weight, and no weight is quantized twice."""
    stored = {name for name, info in checkpoint.tensors.items() if isinstance(info, QuantizedInfo)}
    if twice := stored & schemes.keys():
        raise CheckpointError(f"already quantized: {first_five(sorted(twice))}")
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owner = module.get_submodule(name.rpartition(".")[0])
        if sources[parameter] in stored | schemes.keys() and not isinstance(owner, nn.Linear):
            message = f"{name} is quantized, and is not the weight of a linear layer"
            raise CheckpointError(message, hint=USE_ANOTHER)


def _described(tensor: WeightInfo | Tensor) -> str:
    """The shape, and the dtype only where it is no floating-point one: the rest is cast."""
    shape = str(tuple(tensor.shape))
    return shape if tensor.dtype.is_floating_point else f"{shape} of {tensor.dtype}"
