"""int4 products on CUDA: torch's tinygemm, packed from the plain layout when a model is loaded.

tinygemm computes w = (u − 8) · scale + zero with u in 0 … 15: our q + 8, scale and zero point. It
reads W in tiles of 8 rows and 128 columns, whose order is that of the GPU's tensor cores. (torch:
aten/src/ATen/native/cuda/int4mm.cu.)

Shapes: N out_features · K in_features · g group size · M rows of activations.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from llamacli.dense_linear import BLOCK_ROWS, multiply_blocks
from llamacli.quantization import Int4Weight

TILE_ROWS, TILE_COLUMNS = 8, 128
_INNER_K_TILES = TILE_COLUMNS // 16
_GROUP_SIZES = (32, 64, 128, 256)
# Of activations: tinygemm unpacks W for every 16 rows anew, a dense product once.
_FEW_ROWS = 64


def fits(weight: Int4Weight) -> bool:
    """Whether tinygemm can compute with it, on the device where it is."""
    device, (n, k) = weight.qdata.device, weight.shape
    return (
        device.type == "cuda"
        and n % TILE_ROWS == 0
        and k % TILE_COLUMNS == 0
        and weight.group_size in _GROUP_SIZES
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


class TinygemmLinear(nn.Module):
    """x · Wᵀ + bias; no second copy of W is kept."""

    packed: Tensor  # (N/8, K/128, 32, 4) int32
    scale_and_zero_point: Tensor  # (K/g, N, 2) bfloat16

    def __init__(self, weight: Int4Weight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.group_size = weight.group_size
        self.register_buffer("packed", _pack(tinygemm_bytes(weight.qdata)))
        self.register_buffer("scale_and_zero_point", scale_and_zero_point(weight))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) → (…, N)."""
        rows = x.reshape(-1, x.shape[-1])  # (M, K)
        multiply = self._tinygemm if len(rows) <= _FEW_ROWS else self._dense
        out = torch.unflatten(multiply(rows), 0, x.shape[:-1])
        return out if self.bias is None else out + self.bias

    def _tinygemm(self, rows: Tensor) -> Tensor:
        out: Tensor = torch.ops.aten._weight_int4pack_mm(
            rows.bfloat16(), self.packed, self.group_size, self.scale_and_zero_point
        )
        return out.to(rows.dtype)

    def _dense(self, rows: Tensor) -> Tensor:
        order = _tile_order(self.packed.device)
        blocks = zip(
            torch.split(self.packed, BLOCK_ROWS // TILE_ROWS),
            torch.split(self.scale_and_zero_point, BLOCK_ROWS, dim=1),
            strict=True,
        )
        unpacked = ((unpack(packed, order), pair) for packed, pair in blocks)
        return multiply_blocks(rows, (dequantize(levels, pair) for levels, pair in unpacked))


def tinygemm_bytes(qdata: Tensor) -> Tensor:
    """`Int4Weight.qdata` → (N, K/2) uint8 of u, even k in the high four bits, odd k in the low."""
    pairs = qdata.view(torch.uint8)
    return ((pairs << 4) | (pairs >> 4)).bitwise_xor_(0x88)  # two's complement q → q + 8


def scale_and_zero_point(weight: Int4Weight) -> Tensor:
    """(K/g, N, 2) bfloat16."""
    return torch.stack((weight.scale, weight.zero_point), dim=-1).bfloat16()


def dequantize(levels: Tensor, pair: Tensor) -> Tensor:
    """u (N, K) and scale and zero point (K/g, N, 2) → W (N, K), bfloat16."""
    groups = torch.unflatten(levels.to(pair.dtype).sub_(8), 1, (len(pair), -1))  # (N, K/g, g)
    scale, zero_point = (part.T[..., None] for part in pair.unbind(dim=-1))  # (N, K/g, 1)
    return groups.mul_(scale).add_(zero_point).flatten(1)


def _pack(pairs: Tensor) -> Tensor:
    """Bytes of `tinygemm_bytes` → tiles."""
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack(pairs, _INNER_K_TILES)
    return packed


# ----------------------------------------------------------------------------------------------
# The way back. Packing moves the values of each tile about, always in the same way


@cache
def _tile_order(device: torch.device) -> Tensor:
    return tile_order(lambda pairs: _pack(pairs.to(device)))


def tile_order(pack: Callable[[Tensor], Tensor]) -> Tensor:
    """Where in a packed tile its values are, row after row: (1024,) int64, found by trial.

    Args:
        pack: bytes of a whole tile → its 128 int32, in any shape.
    """
    number = torch.arange(TILE_ROWS * TILE_COLUMNS).view(TILE_ROWS, TILE_COLUMNS)
    digits = []
    for shift in (0, 4, 8):
        levels = ((number >> shift) & 15).to(torch.uint8)
        packed = pack((levels[:, ::2] << 4) | levels[:, 1::2])
        digits.append(_halves(packed).flatten().long() << shift)
    return torch.stack(digits).sum(dim=0).argsort()


def unpack(packed: Tensor, order: Tensor) -> Tensor:
    """Tiles (N/8, K/128, 32, 4) → u (N, K) uint8."""
    tiles = _halves(packed)[..., order]  # (N/8, K/128, 1024)
    rows = torch.unflatten(tiles, -1, (TILE_ROWS, TILE_COLUMNS)).transpose(1, 2)
    return rows.flatten(2).flatten(0, 1)


def _halves(packed: Tensor) -> Tensor:
    """int32 (…, 32, 4) → the four-bit values of each tile, (…, 1024) uint8."""
    data = packed.contiguous().view(torch.uint8).flatten(-2)
    return torch.stack((data & 15, data >> 4), dim=-1).flatten(-2)
