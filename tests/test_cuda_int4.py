"""From the plain layout to tinygemm's and back, by the formula; and its product on a GPU."""

import pytest
import torch
from torch import Tensor

from llamacli.kernels import cuda_int4
from llamacli.kernels.cuda_int4 import (
    TinygemmLinear,
    dequantize,
    scale_and_zero_point,
    tile_order,
    tinygemm_bytes,
    unpack,
)
from llamacli.quantization import Int4Weight, quantize_int4, unpack_int4
from llamacli.quantized_linear import quantized_linear

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="no CUDA device that computes in bfloat16 here",
)


def weight(n: int = 16, k: int = 256, group_size: int = 32) -> Int4Weight:
    generator = torch.Generator().manual_seed(0)
    return quantize_int4(torch.randn(n, k, generator=generator).bfloat16(), group_size)


def levels_of(pairs: Tensor) -> Tensor:
    """u as tinygemm reads them: even k in the high four bits."""
    return torch.stack((pairs >> 4, pairs & 15), dim=-1).flatten(1)


def test_levels_are_ours_plus_8() -> None:
    stored = weight()
    found = levels_of(tinygemm_bytes(stored.qdata))
    assert torch.equal(found.int(), unpack_int4(stored.qdata).int() + 8)
    assert set(found.unique().tolist()) == set(range(16))


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_tinygemm_s_formula_gives_our_weight(group_size: int) -> None:
    """w = (u - 8) * scale + zero, written out for every value."""
    stored = weight(group_size=group_size)
    levels, pair = levels_of(tinygemm_bytes(stored.qdata)), scale_and_zero_point(stored)
    expected = stored.dequantize(torch.float32)
    for n, k in ((0, 0), (3, 1), (7, 100), (15, 255)):
        scale, zero = pair[k // group_size, n].float()
        assert (levels[n, k].float() - 8) * scale + zero == pytest.approx(expected[n, k].item())
    assert torch.equal(dequantize(levels, pair), stored.dequantize(torch.bfloat16))


def shuffled(pairs: Tensor) -> Tensor:
    """Some packing into tiles (N/8, K/128, 32, 4): the values of each in another order."""
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(1))
    n, k = pairs.shape[0], 2 * pairs.shape[1]
    tiles = levels_of(pairs).view(n // 8, 8, k // 128, 128).transpose(1, 2).flatten(2)[..., order]
    data = tiles[..., ::2] | (tiles[..., 1::2] << 4)
    return data.contiguous().view(torch.int32).unflatten(-1, (32, 4))


def test_tiles_are_unpacked_whatever_their_order() -> None:
    stored = weight(n=24, k=384)
    pairs = tinygemm_bytes(stored.qdata)
    assert torch.equal(unpack(shuffled(pairs), tile_order(shuffled)), levels_of(pairs))


def test_only_cuda_weights_of_whole_tiles_fit() -> None:
    assert not cuda_int4.fits(weight())
    assert not isinstance(quantized_linear(weight(), None), TinygemmLinear)


@pytest.mark.parametrize("operator", ["_convert_weight_to_int4pack", "_weight_int4pack_mm"])
def test_torch_has_the_operators(operator: str) -> None:
    assert hasattr(torch.ops.aten, operator)


def test_torch_packs_into_tiles_of_these_shapes() -> None:
    pairs = torch.empty((16, 128), dtype=torch.uint8, device="meta")
    assert torch.ops.aten._convert_weight_to_int4pack(pairs, 8).shape == (2, 2, 32, 4)


@needs_cuda
@pytest.mark.parametrize("rows", [1, 7, 64, 65, 200])
@pytest.mark.parametrize("group_size", [32, 128])
def test_products_on_cuda_are_those_of_the_dequantized_weight(rows: int, group_size: int) -> None:
    stored = weight(n=1032, k=512, group_size=group_size)
    layer = quantized_linear(stored.to("cuda"), None)
    assert isinstance(layer, TinygemmLinear)
    x = torch.randn(rows, 512, device="cuda", dtype=torch.bfloat16)
    expected = x.float() @ stored.dequantize(torch.float32).cuda().T
    torch.testing.assert_close(layer(x).float(), expected, rtol=0.02, atol=0.5)


@needs_cuda
def test_packing_on_cuda_is_undone_exactly() -> None:
    stored = weight(n=32, k=256).to("cuda")
    layer = TinygemmLinear(stored, None)
    order = cuda_int4._tile_order(layer.packed.device)
    assert torch.equal(unpack(layer.packed, order).int(), unpack_int4(stored.qdata).int() + 8)
