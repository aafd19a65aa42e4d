"""TorchAoConfig, as the transformers documentation writes it: quantize weights while loading."""

from collections.abc import Sequence

from llamacli.errors import RequestError, printable
from llamacli.quantization_plan import Recipe

_BITS = {
    "int4_weight_only": 4,
    "int8_weight_only": 8,
    "Int4WeightOnlyConfig": 4,
    "Int8WeightOnlyConfig": 8,
}
_DEFAULT_GROUP_SIZE = 128


class TorchAoConfig:
    """How `from_pretrained` quantizes weights.

        TorchAoConfig("int4_weight_only", group_size=128)

    As with `llamacli quantize`, the output head gets 8 bits; modules_to_not_convert=["lm_head"]
    keeps it as it is.

    Args:
        quant_type: "int4_weight_only", "int8_weight_only", or torchao's Int4WeightOnlyConfig or
            Int8WeightOnlyConfig.
        modules_to_not_convert: paths, or ends of paths, of layers and blocks that stay.
        group_size: weights of a row that share a scale, with 4 bits; 128 when None.

    Raises:
        RequestError: something else, or a choice in torchao's config that is not supported.
    """

    def __init__(
        self,
        quant_type: object,
        modules_to_not_convert: Sequence[str] | None = None,
        *,
        group_size: int | None = None,
    ) -> None:
        name = quant_type if isinstance(quant_type, str) else type(quant_type).__name__
        if name not in _BITS:
            known = ", ".join(_BITS)
            raise RequestError(f"quant_type must be one of {known}, got {printable(name)}")
        self.quant_type = quant_type
        self.modules_to_not_convert = modules_to_not_convert
        self.bits = _BITS[name]
        if not isinstance(quant_type, str):
            group_size = _group_size(quant_type, group_size)
        if self.bits == 8 and group_size is not None:
            raise RequestError("group_size is for int4; int8 has one scale for each row")
        self.group_size = _DEFAULT_GROUP_SIZE if group_size is None else group_size


def _group_size(config: object, given: int | None) -> int | None:
    """Of torchao's config, whose other choices must be the ones that are known."""
    expected = {
        "int4_packing_format": "plain",
        "int4_choose_qparams_algorithm": "tinygemm",
        "granularity": "PerRow(dim=-1)",
    }
    for name, known in expected.items():
        value = getattr(config, name, known)
        if known not in (value, repr(value)):
            raise RequestError(f"{name} must be {known}, got {printable(repr(value))}")
    if given is not None:
        raise RequestError("group_size stands in torchao's config already")
    return getattr(config, "group_size", None)


def recipe_of(config: object) -> Recipe:
    """What a TorchAoConfig asks for, that of transformers included.

    Raises:
        RequestError: it is none, or not supported.
    """
    if not hasattr(config, "quant_type"):
        message = f"quantization_config must be a TorchAoConfig, got {type(config).__name__}"
        raise RequestError(message)
    if not isinstance(config, TorchAoConfig):
        config = TorchAoConfig(config.quant_type, getattr(config, "modules_to_not_convert", None))
    skip = tuple(map(_pattern, config.modules_to_not_convert or ()))
    return Recipe(bits=config.bits, group_size=config.group_size, skip=skip)


def _pattern(module: str) -> str:
    """Of the linear layers that a path, or the end of one, names or contains."""
    is_layer = module.endswith("_proj") or module == "lm_head"
    return f"*{module}" if is_layer else f"*{module}.*"
