"""Linear layers whose weight is small integers.

They compute on any device, unpacking the weight a block of rows at a time. On a CPU torch has
operators that multiply without unpacking. These round the activations to bfloat16 (in other dtypes
they are 10–100 times slower), and each row of activations costs them the same, so from some count
on unpacking and a dense product are faster.

Shapes: N out_features · K in_features · g group size · M rows of activations.
"""

import sys
from functools import cache

import torch
from torch import Tensor, nn

from llamacli.dense_linear import BLOCK_ROWS, multiply_blocks
from llamacli.errors import RequestError
from llamacli.kernels import cuda_int4, native
from llamacli.quantization import Int4Weight, Int8Weight, QuantizedWeight, unpack_int4

# Of activations: up to here the operators are faster. 5632×2048 in groups of 128, one thread with
# AVX-512: int4 operator 8, 16, 33, 130 ms for 32, 64, 128, 512 rows, unpacked 17, 18, 20, 30 ms.
FEW_ROWS = 64

_TILE_ROWS = 64
_OPERATOR_GROUPS = (32, 64, 128, 256)


def quantized_linear(weight: QuantizedWeight, bias: nn.Parameter | None) -> nn.Module:
    """The layer that is fastest with such a weight on the device where it is."""
    if native.fits(weight):
        return TiledLinear(weight, bias)
    if isinstance(weight, Int8Weight):
        return Int8Linear(weight, bias)
    if cuda_int4.fits(weight):
        return cuda_int4.TinygemmLinear(weight, bias)
    fits = weight.shape[0] % _TILE_ROWS == 0 and weight.group_size in _OPERATOR_GROUPS
    if fits and weight.qdata.device.type == "cpu" and _packed_width():
        return PackedInt4Linear(weight, bias)
    return Int4Linear(weight, bias)


def is_quantized(module: nn.Module) -> bool:
    """Whether it is one of these layers."""
    layers = TiledLinear | Int8Linear | Int4Linear | PackedInt4Linear | cuda_int4.TinygemmLinear
    return isinstance(module, layers)


def _add(out: Tensor, bias: Tensor | None) -> Tensor:
    return out if bias is None else out + bias


def round_activations(model: nn.Module) -> None:
    """Have the int4 layers of a model round their input to int8 in the groups of their weight.

    It is faster where integers are multiplied faster than bfloat16, and less exact: each group has
    255 even steps between the least and the greatest number.

    Raises:
        RequestError: there is no layer that can.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, TiledLinear)]
    layers = [layer for layer in layers if layer.is_int4]
    if not layers:
        hint = "quantize int4, for the CPU, with groups of a multiple of 32"
        raise RequestError("int8 activations need int4 weights and the C kernels", hint=hint)
    for layer in layers:
        layer.activation_bits = 8


class TiledLinear(nn.Module):
    """x · Wᵀ + bias by the C kernels, which read W as tiles; it lives on the CPU.

    Attributes:
        activation_bits: 8 where x is rounded to integers, else 16.
    """

    tiles: Tensor  # bytes
    activation_bits = 16

    def __init__(self, weight: QuantizedWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_buffer("tiles", native.pack(weight))
        self.bias = bias
        self._sizes = native.sizes(weight)

    @property
    def is_int4(self) -> bool:
        """Whether W has 4 bits, else 8."""
        return self._sizes[2] == 4

    @property
    def matrix(self) -> native.Matrix:
        """The weight where it is now: copies and `share_memory` move the tiles."""
        return native.Matrix(self.tiles.data_ptr(), None, *self._sizes, self.activation_bits)

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) → (…, N)."""
        rows = x.reshape(-1, x.shape[-1])  # (M, K)
        few = native.dense_rows() if self.activation_bits == 16 else sys.maxsize
        is_dense = len(rows) > few or rows.requires_grad
        multiply = self._dense if is_dense else self._tiled
        return _add(torch.unflatten(multiply(rows), 0, x.shape[:-1]), self.bias)

    def _tiled(self, rows: Tensor) -> Tensor:
        return native.multiply(self.matrix, rows.bfloat16()).to(rows.dtype)

    def _dense(self, rows: Tensor) -> Tensor:
        step = BLOCK_ROWS // native.TILE
        starts = range(0, -(-self.matrix.n // native.TILE), step)
        return multiply_blocks(rows, (native.unpack(self.matrix, at, at + step) for at in starts))


class Int8Linear(nn.Module):
    """x · Wᵀ + bias, with W as `quantize_int8` gives it."""

    qdata: Tensor  # (N, K)
    scale: Tensor  # (N, 1)

    def __init__(self, weight: Int8Weight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_buffer("qdata", weight.qdata)
        self.register_buffer("scale", weight.scale)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) → (…, N)."""
        rows = x.reshape(-1, x.shape[-1])  # (M, K)
        # The operator crashes where rows of W are no multiple of its step.
        few = len(rows) <= FEW_ROWS and x.device.type == "cpu" and x.shape[-1] % 32 == 0
        multiply = self._operator if few else self._dense
        return _add(torch.unflatten(multiply(rows), 0, x.shape[:-1]), self.bias)

    def _operator(self, rows: Tensor) -> Tensor:
        ones = torch.ones(len(self.qdata), dtype=torch.bfloat16)  # its scales would be rounded
        out: Tensor = torch.ops.aten._weight_int8pack_mm(rows.bfloat16(), self.qdata, ones)
        return (out * self.scale[:, 0]).to(rows.dtype)

    def _dense(self, rows: Tensor) -> Tensor:
        return _multiply(rows, Int8Weight(self.qdata, self.scale))


class Int4Linear(nn.Module):
    """x · Wᵀ + bias, with W as `quantize_int4` gives it."""

    qdata: Tensor  # (N, K/2)
    scale: Tensor  # (K/g, N)
    zero_point: Tensor  # (K/g, N)

    def __init__(self, weight: Int4Weight, bias: nn.Parameter | None) -> None:
        super().__init__()
        for name in ("qdata", "scale", "zero_point"):
            self.register_buffer(name, getattr(weight, name))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) → (…, N)."""
        weight = Int4Weight(self.qdata, self.scale, self.zero_point)
        return _add(_multiply(x, weight), self.bias)


def _multiply(x: Tensor, weight: QuantizedWeight) -> Tensor:
    """x · Wᵀ, (…, K) → (…, N), with a block of W unpacked at a time."""
    starts = range(0, weight.shape[0], BLOCK_ROWS)
    slices = (slice(at, at + BLOCK_ROWS) for at in starts)
    return multiply_blocks(x, (weight.dequantize(x.dtype, rows) for rows in slices))


# ----------------------------------------------------------------------------------------------
# The CPU's packing: rows are interleaved in tiles, k after k, so that the operator reads forward


class PackedInt4Linear(nn.Module):
    """An Int4Linear in the layout of torch's CPU operator; no second copy of the weight is kept."""

    packed: Tensor  # (N, K/2) bytes in the operator's order
    scale_and_zero_point: Tensor  # (K/g, N, 2) bfloat16

    def __init__(self, weight: Int4Weight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.group_size = weight.group_size
        blocks = [_pack(unpack_int4(block)) for block in torch.split(weight.qdata, BLOCK_ROWS)]
        pair = torch.stack((weight.scale, weight.zero_point), dim=-1).bfloat16()
        self.register_buffer("packed", torch.cat(blocks))
        self.register_buffer("scale_and_zero_point", pair)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) → (…, N)."""
        rows = x.reshape(-1, x.shape[-1])  # (M, K)
        multiply = self._operator if len(rows) <= FEW_ROWS else self._dense
        return _add(torch.unflatten(multiply(rows), 0, x.shape[:-1]), self.bias)

    def _operator(self, rows: Tensor) -> Tensor:
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows.bfloat16(), self.packed, self.group_size, self.scale_and_zero_point
        )
        return out.to(rows.dtype)

    def _dense(self, rows: Tensor) -> Tensor:
        blocks = zip(
            torch.split(self.packed, BLOCK_ROWS),
            torch.split(self.scale_and_zero_point, BLOCK_ROWS, dim=1),
            strict=True,
        )
        return torch.cat([rows @ self._columns(*block, rows.dtype) for block in blocks], dim=-1)

    def _columns(self, packed: Tensor, pair: Tensor, dtype: torch.dtype) -> Tensor:
        """A block of W, transposed: (K, rows of the block)."""
        groups = torch.unflatten(_unpack(packed, _packed_width(), dtype), 0, (-1, self.group_size))
        scale, zero_point = (part[:, None].to(dtype).contiguous() for part in pair.unbind(dim=-1))
        return groups.mul_(scale).add_(zero_point).flatten(0, 1)


def _pack(values: Tensor) -> Tensor:
    """(N, K) in −8 … 7 → (N, K/2) bytes."""
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values.int() + 8, 1)
    return packed


def _unpack(packed: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The inverse of `_pack`, transposed: (K, N).

    The rows of W are in tiles of `width`. For each k a tile has width/2 bytes: its first rows in
    the low four bits, the rest in the high.
    """
    half = width // 2
    pairs = packed.view(-1, 2 * packed.shape[1], half).transpose(0, 1)  # (K, tiles, width/2)
    values = torch.empty(*pairs.shape[:2], width, dtype=dtype)
    values[..., :half] = pairs & 15
    values[..., half:] = pairs >> 4
    return values.flatten(1).sub_(8)


@cache
def _packed_width() -> int:
    """Rows of a tile as this CPU packs them, found by trial; 0 where the layout is unknown."""
    if not hasattr(torch.ops.aten, "_convert_weight_to_int4pack_for_cpu"):
        return 0
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-8, 8, (_TILE_ROWS, 32), generator=generator)
    for width in (64, 32):
        if torch.equal(_unpack(_pack(values), width, torch.int64).T, values):
            return width
    return 0
