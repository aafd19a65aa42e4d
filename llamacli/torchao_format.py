"""Quantized weights on disk as torchao and transformers flatten them; torchao is not needed.

`layer.weight` is stored as `layer._weight_qdata`, `layer._weight_scale` and
`layer._weight_zero_point`. The metadata of every shard holds `tensor_names`, a JSON list of all
weights, and for each of them a JSON object: `{"_type": "Tensor"}`, or the class, its `_data` (the
size of a block, …) and its `_tensor_data_names`. config.json has a `quantization_config` that
says how new weights would be quantized; what was done stands in the metadata.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from llamacli.errors import CheckpointError, first_five, printable
from llamacli.quantization import Scheme
from llamacli.weight_file import TensorInfo

PARTS = ("qdata", "scale", "zero_point")

_CONFIG_NAMES = {4: "Int4WeightOnlyConfig", 8: "Int8WeightOnlyConfig"}
# torchao's config → the version of it that is known.
_CONFIG_VERSIONS = {"Int4WeightOnlyConfig": 2, "Int8WeightOnlyConfig": 2, "FqnToConfig": 1}
USE_ANOTHER = "use the model that was not quantized"
_WHERE = "the weights' metadata"


@dataclass(frozen=True, slots=True)
class QuantizedInfo:
    """A quantized weight as the headers describe it: the tensors it is made of.

    Attributes:
        shape: (N, K) of the weight.
        dtype: of the weight before it was quantized.
        parts: by the names in PARTS.
    """

    scheme: Scheme
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: Mapping[str, TensorInfo]

    @property
    def nbytes(self) -> int:
        """Size of all parts in bytes."""
        return sum(part.nbytes for part in self.parts.values())

    def rows(self, start: int, stop: int) -> "QuantizedInfo":
        """A part of the weight along N."""
        stop = min(stop, self.shape[0])
        parts = {name: part.rows(start, stop) for name, part in self.parts.items()}
        if self.scheme.bits == 4:  # rows of the weight are columns of scale and zero point
            parts |= {name: self.parts[name].columns(start, stop) for name in PARTS[1:]}
        return replace(self, shape=(stop - start, self.shape[1]), parts=parts)

    def columns(self, start: int, stop: int) -> "QuantizedInfo":
        """A part of the weight along K, of whole groups in int4."""
        values, size = 8 // self.scheme.bits, self.scheme.group_size
        qdata = self.parts["qdata"].columns(start // values, stop // values)
        parts = {**self.parts, "qdata": qdata}
        if self.scheme.bits == 4:
            groups = start // size, stop // size
            parts |= {name: self.parts[name].rows(*groups) for name in PARTS[1:]}
        else:
            size = stop - start
        scheme = Scheme(self.scheme.bits, size)
        return replace(self, scheme=scheme, shape=(self.shape[0], stop - start), parts=parts)


WeightInfo = TensorInfo | QuantizedInfo


def part_name(weight: str, part: str) -> str:
    """Where a part of `layer.weight` is stored: `layer._weight_qdata`."""
    layer, _, attribute = weight.rpartition(".")
    return f"{layer}._{attribute}_{part}" if layer else f"_{attribute}_{part}"


def part_layouts(
    scheme: Scheme, shape: tuple[int, ...], dtype: torch.dtype
) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
    """Part → shape and dtype, of a weight (N, K) that had this dtype."""
    n, k = shape
    if scheme.bits == 8:
        one = (n, 1)
        return {
            "qdata": ((n, k), torch.int8),
            "scale": (one, torch.float32),
            "zero_point": (one, torch.int8),
        }
    groups = (k // scheme.group_size, n)
    return {
        "qdata": ((n, k // 2), torch.int8),
        "scale": (groups, dtype),
        "zero_point": (groups, dtype),
    }


# ----------------------------------------------------------------------------------------------
# Read


def check_quantization_config(config: Mapping[str, Any] | None) -> None:
    """Refuse weights quantized in a way that cannot be read, before they are taken for others.

    Args:
        config: quantization_config of config.json; None means that nothing is quantized.

    Raises:
        CheckpointError: not torchao's weight-only int4 or int8, or in another version.
    """
    if config is None:
        return
    method = config.get("quant_method", "an unnamed method")
    if method != "torchao":
        message = f"weights quantized by {printable(method)} cannot be read"
        raise CheckpointError(message, hint=USE_ANOTHER)
    match config.get("quant_type"):
        case {"default": dict(default)}:
            _check_torchao_config(default)
        case _:
            raise _unreadable("an unnamed config")


def _check_torchao_config(config: Mapping[str, Any]) -> None:
    name, version = str(config.get("_type")), config.get("_version")
    if (name, version) not in _CONFIG_VERSIONS.items():
        raise _unreadable(f"{name} version {version}")
    if name == "FqnToConfig":  # a config for each layer, None for layers that are not quantized
        match config.get("_data"):
            case {"fqn_to_config": dict(by_layer)}:
                inner = [found for found in by_layer.values() if found is not None]
            case _:
                raise _unreadable("FqnToConfig without fqn_to_config")
        for found in inner:
            if not isinstance(found, dict) or found.get("_type") == "FqnToConfig":
                raise _unreadable("FqnToConfig with a nested or malformed entry")
            _check_torchao_config(found)


def _unreadable(found: str) -> CheckpointError:
    known = ", ".join(f"{name} version {number}" for name, number in _CONFIG_VERSIONS.items())
    message = f"weights quantized by torchao's {printable(found)} cannot be read; known: {known}"
    return CheckpointError(message, hint=USE_ANOTHER)


def fold_parts(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]
) -> dict[str, WeightInfo]:
    """The weights that a checkpoint's tensors are, in the order of the files.

    Args:
        tensors: as the headers list them.
        metadata: of the headers; without torchao's `tensor_names` every tensor is a weight.

    Raises:
        CheckpointError: malformed metadata, an unknown class, parts that are missing or do not fit
            each other, or a weight that is stored plainly, too.
    """
    if "tensor_names" not in metadata:
        return dict(tensors)
    names = _parse(metadata, "tensor_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{_WHERE}: tensor_names must be a list of names")
    quantized: dict[str, QuantizedInfo] = {}
    for name in names:
        described = _parse(metadata, name)
        if described != {"_type": "Tensor"}:
            quantized[name] = _quantized_info(name, described, tensors)
    if both := sorted(quantized.keys() & tensors.keys()):
        raise CheckpointError(f"stored both plainly and quantized: {first_five(both)}")
    weight_of = {
        part_name(name, part): name for name, info in quantized.items() for part in info.parts
    }
    return {
        weight: quantized[weight] if name in weight_of else info
        for name, info in tensors.items()
        if (weight := weight_of.get(name, name))
    }


def _parse(metadata: Mapping[str, str], key: str) -> Any:
    if key not in metadata:
        raise CheckpointError(f"{_WHERE} lacks {printable(key)}")
    try:
        return json.loads(metadata[key])
    except (ValueError, RecursionError) as problem:
        message = f"{_WHERE}: {printable(key)} is not JSON: {printable(problem)}"
        raise CheckpointError(message) from problem


def _quantized_info(name: str, described: Any, tensors: Mapping[str, TensorInfo]) -> QuantizedInfo:
    """Of one weight; its parts must be in the file and fit each other."""
    match described:
        case {
            "_type": "Int4Tensor",
            "_data": {"block_size": [1, int(columns)], "activation_dtype": activations},
            "_tensor_data_names": list(part_names),
        } if activations == _dtype_object(torch.bfloat16):
            bits = 4
        case {
            "_type": "Int8Tensor",
            "_data": {
                "block_size": [1, int(columns)],
                "act_quant_kwargs": None,
                "dtype": {"_data": "float32" | "bfloat16" | "float16" as dtype_name},
            },
            "_tensor_data_names": list(part_names),
        }:
            bits = 8
        case {"_type": "Int4Tensor" | "Int8Tensor"}:
            raise _misfit(name, "its description is not that of weight-only quantization")
        case {"_type": type_name}:
            message = f"{printable(name)} is torchao's {printable(type_name)}"
            hint = "known are Int4Tensor and Int8Tensor; update llamacli, or quantize again"
            raise CheckpointError(f"{message}, which cannot be read", hint=hint)
        case _:
            raise CheckpointError(f"{_WHERE}: {printable(name)} must be an object with _type")
    if sorted(map(str, part_names)) != sorted(PARTS):
        raise _misfit(name, f"its parts must be {', '.join(PARTS)}")
    missing = [part for part in PARTS if part_name(name, part) not in tensors]
    if missing:
        raise _misfit(name, f"its {first_five(missing)} is not in the files")
    parts = {part: tensors[part_name(name, part)] for part in PARTS}
    dtype = parts["scale"].dtype if bits == 4 else getattr(torch, dtype_name)
    return _checked(name, Scheme(bits, columns), parts, dtype)


def _checked(
    name: str, scheme: Scheme, parts: Mapping[str, TensorInfo], dtype: torch.dtype
) -> QuantizedInfo:
    n, width = (*parts["qdata"].shape, 0, 0)[:2]
    k = width * 8 // scheme.bits
    size = scheme.group_size
    groups = f"it has groups of {printable(size)}"
    if scheme.bits == 8 and size != k:
        raise _misfit(name, f"{groups}; in int8 only whole rows ({k}) are read")
    if scheme.bits == 4 and (size < 2 or size % 2 or k % size):
        raise _misfit(name, f"{groups}, which must be even and divide {k}")
    if not dtype.is_floating_point:
        raise _misfit(name, f"its scale is of {dtype}")
    layouts = part_layouts(scheme, (n, k), dtype)
    for part, info in parts.items():
        shape, expected = layouts[part]
        if (info.shape, info.dtype) != (shape, expected):
            found = printable(f"{info.shape} of {info.dtype}")
            raise _misfit(name, f"its {part} is {found}, expected {shape} of {expected}")
    return QuantizedInfo(scheme, (n, k), dtype, parts)


def _misfit(name: str, reason: str) -> CheckpointError:
    return CheckpointError(f"{printable(name)} is quantized, but {reason}")


def _dtype_object(dtype: torch.dtype) -> dict[str, str]:
    return {"_type": "torch.dtype", "_data": str(dtype).removeprefix("torch.")}


# ----------------------------------------------------------------------------------------------
# Write


StoredAs = tuple[Scheme | None, tuple[int, ...], torch.dtype]  # None: plainly; (N, K); dtype


def metadata_for(weights: Mapping[str, StoredAs]) -> dict[str, str]:
    """What the header of every shard says about all weights of the checkpoint."""
    described = {name: json.dumps(_description(*stored)) for name, stored in weights.items()}
    return {"format": "pt", "tensor_names": json.dumps([*weights])} | described


def _description(
    scheme: Scheme | None, shape: tuple[int, ...], dtype: torch.dtype
) -> dict[str, Any]:
    if scheme is None:
        return {"_type": "Tensor"}
    data: dict[str, Any] = {"block_size": [1, scheme.group_size]}
    if scheme.bits == 4:
        data |= {"activation_dtype": _dtype_object(torch.bfloat16), "shape": [*shape]}
        return {"_type": "Int4Tensor", "_data": data, "_tensor_data_names": [*PARTS]}
    data |= {"dtype": _dtype_object(dtype), "act_quant_kwargs": None, "reduce_range": False}
    return {"_type": "Int8Tensor", "_data": data, "_tensor_data_names": [*PARTS]}


def quantization_config(schemes: Iterable[Scheme]) -> dict[str, Any]:
    """config.json's, in the words of the scheme that most weights have."""
    bits, group_size = Counter(
        (scheme.bits, scheme.group_size if scheme.bits == 4 else None) for scheme in schemes
    ).most_common(1)[0][0]
    data: dict[str, Any] = {"group_size": group_size, "set_inductor_config": True}
    if bits == 4:
        data |= {
            "int4_packing_format": {"_type": "Int4PackingFormat", "_data": "PLAIN"},
            "int4_choose_qparams_algorithm": {
                "_type": "Int4ChooseQParamsAlgorithm",
                "_data": "TINYGEMM",
            },
            "int4_tile_packed_ntile": 8,
        }
    else:
        data["granularity"] = {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}
    name = _CONFIG_NAMES[bits]
    default = {"_type": name, "_version": _CONFIG_VERSIONS[name], "_data": data}
    return {
        "quant_method": "torchao",
        "quant_type": {"default": default},
        "modules_to_not_convert": None,
        "include_input_output_embeddings": False,
        "untie_embedding_weights": False,
    }
