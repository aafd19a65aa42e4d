"""Weights as small integers and back: int4 in groups of a row, int8 in whole rows.

The numbers and the layout are torchao's (`Int4Tensor`, `Int8Tensor`), so its files are read and
written without it. Everything is deterministic, and a row does not depend on the others: a weight
may be quantized in blocks of rows.

Shapes: N out_features · K in_features · g group size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

GROUP_SIZES = (32, 64, 128, 256)

_HALF_RANGE = 127.5  # of int8: torchao spreads a row over −127.5 … 127.5


class Scheme(NamedTuple):
    """How a weight is stored: bits of a value, and how many values of a row share a scale."""

    bits: int
    group_size: int


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """w = q · scale + zero_point, with q in −8 … 7.

    Attributes:
        qdata: (N, K/2) int8, even k in the low four bits, odd k in the high.
        scale, zero_point: (K/g, N), of a floating-point dtype.
    """

    qdata: Tensor
    scale: Tensor
    zero_point: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.qdata.shape[0], 2 * self.qdata.shape[1]

    @property
    def group_size(self) -> int:
        """Values of a row that share a scale."""
        return self.shape[1] // self.scale.shape[0]

    def to(self, device: torch.device | str) -> "Int4Weight":
        """The same on a device."""
        parts = (self.qdata, self.scale, self.zero_point)
        return Int4Weight(*(part.to(device) for part in parts))

    def dequantize(self, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
        """These rows, (N, K) of `dtype`."""
        values = unpack_int4(self.qdata[rows]).to(dtype)
        groups = torch.unflatten(values, 1, (-1, self.group_size))  # (N, K/g, g)
        scale, zero_point = (
            p[:, rows].T[..., None].to(dtype) for p in (self.scale, self.zero_point)
        )
        return groups.mul_(scale).add_(zero_point).flatten(1)


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """w = q · scale.

    Attributes:
        qdata: (N, K) int8.
        scale: (N, 1) float32.
    """

    qdata: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.qdata.shape[0], self.qdata.shape[1]

    def to(self, device: torch.device | str) -> "Int8Weight":
        """The same on a device."""
        return Int8Weight(self.qdata.to(device), self.scale.to(device))

    def dequantize(self, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
        """These rows, (N, K) of `dtype`."""
        return (self.qdata[rows] * self.scale[rows]).to(dtype)


QuantizedWeight = Int4Weight | Int8Weight


def quantize(weight: Tensor, scheme: Scheme, algorithm: str = "rtn") -> QuantizedWeight:
    """A weight (N, K) by a scheme; `algorithm` is one of ALGORITHMS, and counts for int4 alone."""
    if scheme.bits == 8:
        return quantize_int8(weight)
    return quantize_int4(weight, scheme.group_size, algorithm)


def quantize_int8(weight: Tensor) -> Int8Weight:
    """Round each row of (N, K) to multiples of its scale."""
    wide = weight.float()
    tiniest = torch.finfo(torch.float32).smallest_normal  # no division by zero where all are 0
    scale = (wide.abs().amax(dim=1, keepdim=True) / _HALF_RANGE).clamp(min=tiniest)
    return Int8Weight((wide * (1 / scale)).round_().clamp_(-128, 127).to(torch.int8), scale)


def quantize_int4(weight: Tensor, group_size: int, algorithm: str = "rtn") -> Int4Weight:
    """Round each group of a row to 16 evenly spaced values.

    Args:
        weight: (N, K), finite, of a floating-point dtype, which scale and zero point will have.
        group_size: even, and a divisor of K.
        algorithm: which values, one of ALGORITHMS.
    """
    groups = torch.unflatten(weight.float().contiguous(), 1, (-1, group_size))  # (N, K/g, g)
    scale, zero_point = ALGORITHMS[algorithm](groups, weight.dtype)  # (N, K/g)
    levels = _nearest_levels(groups, scale, zero_point).to(torch.uint8).flatten(1)
    return Int4Weight(pack_int4(levels), scale.T.contiguous(), zero_point.T.contiguous())


def pack_int4(levels: Tensor) -> Tensor:
    """Levels (N, K), uint8 in 0 … 15 → level − 8 as `Int4Weight.qdata`."""
    pairs = levels.view(torch.int16)  # even | odd << 8 on a little-endian machine
    return ((pairs >> 4) | pairs).to(torch.uint8).bitwise_xor_(0x88).view(torch.int8)


def unpack_int4(qdata: Tensor) -> Tensor:
    """(N, K/2) int8 → (N, K) int8 in −8 … 7."""
    pairs = qdata.view(torch.uint8).to(torch.int16)  # of a byte both halves in one word
    halves = ((pairs << 4) | pairs).bitwise_and_(0x0F0F).view(torch.int8)
    return halves.bitwise_xor_(8).sub_(8)  # two's complement of four bits → of eight


# ----------------------------------------------------------------------------------------------
# Algorithms: groups (N, K/g, g) float32 → scale and zero point (N, K/g) in the stored dtype


def _range(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest value of each group; `aminmax` takes five times as long on a CPU."""
    return groups.amin(dim=-1), groups.amax(dim=-1)


def _evenly_spaced(low: Tensor, high: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Level 0 at `low`, level 15 at `high`; as torchao's `choose_qparams_affine_tinygemm`."""
    scale = ((high - low) / 15).clamp(min=torch.finfo(dtype).smallest_normal)
    return scale.to(dtype), (low + scale * 8).to(dtype)


def _nearest_levels(groups: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Levels 0 … 15 as float32, by the scale and zero point as they are stored, in rounded form."""
    step, middle = scale.float()[..., None], zero_point.float()[..., None]
    return (groups - (middle - step * 8)).div_(step).round_().clamp_(0, 15)


def _squared_error(groups: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """(N, K/g)."""
    levels = _nearest_levels(groups, scale, zero_point)
    step, middle = scale.float()[..., None], zero_point.float()[..., None]
    return levels.sub_(8).mul_(step).add_(middle).sub_(groups).square_().sum(dim=-1)


def _round_to_nearest(groups: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """From the least value of a group to its greatest."""
    return _evenly_spaced(*_range(groups), dtype)


def _clip_for_least_squares(groups: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The range, shrunk by up to 30 %, whose squared error is least: the outermost are clipped."""
    low, high = _range(groups)
    best = _evenly_spaced(low, high, dtype)
    least = _squared_error(groups, *best)
    for percent in range(97, 69, -3):
        shrunk = _evenly_spaced(low * (percent / 100), high * (percent / 100), dtype)
        error = _squared_error(groups, *shrunk)
        better = error < least
        least = torch.where(better, error, least)
        scale, zero_point = (torch.where(better, *pair) for pair in zip(shrunk, best, strict=True))
        best = scale, zero_point
    return best


def _half_quadratic(groups: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Half-quadratic quantization: the zero point that is least wrong in the 0.7-norm.

    Outliers weigh less than in least squares. Badri and Shaji, "Half-Quadratic Quantization of
    Large Machine Learning Models", 2023; constants as in torchao.
    """
    norm, beta, growth, iterations = 0.7, 10.0, 1.01, 20
    low, high = (bound[..., None] for bound in _range(groups))
    inverse = (15 / (high - low)).clamp(max=2e4)  # levels per unit
    zero = (-low * inverse).round()  # the level of 0
    for _ in range(iterations):
        levels = (groups * inverse).add_(zero).round_().clamp_(0, 15)
        error = groups - (levels - zero) / inverse
        size = error.abs()
        error = error.sign().mul_((size - size.pow(norm - 1).div_(beta)).relu_())
        zero = levels.sub_((groups - error).mul_(inverse)).mean(dim=-1, keepdim=True)
        beta *= growth
    scale = 1 / inverse
    return scale[..., 0].to(dtype), ((8 - zero) * scale)[..., 0].to(dtype)


ALGORITHMS: Mapping[str, Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor]]] = {
    "rtn": _round_to_nearest,
    "mse": _clip_for_least_squares,
    "hqq": _half_quadratic,
}
