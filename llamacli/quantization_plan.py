"""Which weights of a checkpoint are quantized, and how: everything that the headers can tell."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod

import torch

from llamacli.checkpoint import Checkpoint
from llamacli.checkpoint_writer import Layout
from llamacli.errors import CheckpointError, RequestError, check_choice, first_five, printable
from llamacli.quantization import ALGORITHMS, GROUP_SIZES, Scheme
from llamacli.torchao_format import PARTS, QuantizedInfo, WeightInfo, part_layouts, part_name

EMBEDDINGS = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is asked for.

    Attributes:
        bits: 4 or 8, of the projections; the output head has 8 unless `mixed` says otherwise.
        group_size: one of GROUP_SIZES; int8 has whole rows.
        algorithm: one of ALGORITHMS.
        skip: patterns (`*.down_proj`, `lm_head`) of layers that stay as they are.
        mixed: pattern → bits; the last that matches counts.

    Raises:
        RequestError: a value that is not known.
    """

    bits: int = 4
    group_size: int = 128
    algorithm: str = "rtn"
    skip: tuple[str, ...] = ()
    mixed: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        for bits in (self.bits, *(bits for _, bits in self.mixed)):
            if bits not in (4, 8):
                raise RequestError(f"bits must be 4 or 8, got {bits}")
        for name, value, known in (
            ("group_size", self.group_size, GROUP_SIZES),
            ("algorithm", self.algorithm, tuple(ALGORITHMS)),
        ):
            check_choice(name, value, known)


@dataclass(frozen=True, slots=True)
class PlannedWeight:
    """A weight before and after.

    Attributes:
        source: where it is read.
        scheme: how it is stored; None means plainly.
        dtype: of it, or of what it was before it was quantized.
        reason: why a layer is not as the recipe says; "" if it is.
    """

    source: WeightInfo
    scheme: Scheme | None
    dtype: torch.dtype
    reason: str = ""

    def layouts(self, name: str) -> dict[str, Layout]:
        """Stored name → layout, of the tensors that it becomes."""
        if self.scheme is None:
            return {name: Layout(self.source.shape, self.dtype)}
        parts = part_layouts(self.scheme, self.source.shape, self.dtype)
        return {part_name(name, part): Layout(*parts[part]) for part in PARTS}

    @property
    def nbytes(self) -> int:
        """Size in bytes, after."""
        return sum(layout.nbytes for layout in self.layouts("").values())

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return prod(self.source.shape)


Plan = Mapping[str, PlannedWeight]


def plan_quantization(checkpoint: Checkpoint, recipe: Recipe, *, tied: bool) -> Plan:
    """What becomes of each weight.

    Args:
        tied: the output head shares the weight of the embeddings. It is quantized only if `mixed`
            names it, and then becomes a weight of its own.

    Raises:
        CheckpointError: a weight is quantized already.
        RequestError: a pattern matches no layer.
    """
    done = [name for name, info in checkpoint.tensors.items() if isinstance(info, QuantizedInfo)]
    if done:
        hint = "use the original model; --dequantize makes a plain one of this"
        raise CheckpointError(f"already quantized: {first_five(done)}", hint=hint)
    sources: dict[str, WeightInfo] = dict(checkpoint.tensors)
    # A head of its own that the file may have beside tied embeddings does not count.
    shared = {LM_HEAD: sources[EMBEDDINGS]} if tied and EMBEDDINGS in sources else {}
    layers = [layer for layer in map(_layer, sources | shared) if layer]
    for pattern in (*recipe.skip, *(pattern for pattern, _ in recipe.mixed)):
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            hint = f"layers are named as {first_five(layers[-2:])}"
            raise RequestError(f"no layer matches {printable(repr(pattern))}", hint=hint)
    if shared and _bits("lm_head", recipe.mixed) and not _is_skipped("lm_head", recipe):
        sources |= shared
        tied = False
    return {name: _planned(name, info, recipe, tied) for name, info in sources.items()}


def plan_dequantization(checkpoint: Checkpoint) -> Plan:
    """All weights plain again.

    Raises:
        CheckpointError: none is quantized.
    """
    infos = checkpoint.tensors
    if not any(isinstance(info, QuantizedInfo) for info in infos.values()):
        raise CheckpointError("no weight is quantized")
    return {name: PlannedWeight(info, None, _dtype(info)) for name, info in infos.items()}


def raised_to_int8(plan: Plan, names: Iterable[str]) -> Plan:
    """The same with these weights in int8."""
    reason = "raised to meet the target"
    raised = {
        name: replace(plan[name], scheme=Scheme(8, plan[name].source.shape[1]), reason=reason)
        for name in names
    }
    return {**plan, **raised}


def _layer(name: str) -> str:
    """The path of the linear layer whose weight this is, "" if it is no projection and no head."""
    layer, _, attribute = name.rpartition(".")
    is_linear = layer.endswith("_proj") or layer == "lm_head"
    return layer if is_linear and attribute == "weight" else ""


def _dtype(info: WeightInfo) -> torch.dtype:
    """Of the weight from now on: torchao's int4 computes in bfloat16."""
    return torch.bfloat16 if info.dtype.is_floating_point else info.dtype


def _is_skipped(layer: str, recipe: Recipe) -> bool:
    return any(fnmatchcase(layer, pattern) for pattern in recipe.skip)


def _bits(layer: str, mixed: tuple[tuple[str, int], ...]) -> int | None:
    matching = [bits for pattern, bits in mixed if fnmatchcase(layer, pattern)]
    return matching[-1] if matching else None


def _planned(name: str, info: WeightInfo, recipe: Recipe, tied: bool) -> PlannedWeight:
    layer = _layer(name)
    plain = PlannedWeight(info, None, _dtype(info))
    if not layer:
        return plain
    if _is_skipped(layer, recipe):
        return replace(plain, reason="skipped")
    if tied and name == LM_HEAD:
        return replace(plain, reason="tied to the embeddings")
    if len(info.shape) != 2 or not info.dtype.is_floating_point:
        return replace(plain, reason="not a matrix of floating-point numbers")
    width = info.shape[1]
    bits = _bits(layer, recipe.mixed) or (8 if name == LM_HEAD else recipe.bits)
    if bits == 8:
        return replace(plain, scheme=Scheme(8, width))
    fitting = [size for size in GROUP_SIZES if size <= recipe.group_size and width % size == 0]
    if not fitting:
        return replace(plain, reason=f"no group size divides its width of {width}")
    size = max(fitting)
    reason = "" if size == recipe.group_size else f"{recipe.group_size} does not divide {width}"
    return replace(plain, scheme=Scheme(4, size), reason=reason)


def blocks(planned: PlannedWeight, values: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows with about so many values each."""
    rows = planned.source.shape[0] if planned.source.shape else 1
    step = max(1, values * rows // planned.values)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))
