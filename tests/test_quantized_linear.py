"""Layers that compute with small integers by torch: the dequantized matmul is the oracle."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamacli import quantized_linear as layers
from llamacli.kernels import native
from llamacli.quantization import QuantizedWeight, quantize_int4, quantize_int8
from llamacli.quantized_linear import (
    BLOCK_ROWS,
    FEW_ROWS,
    Int4Linear,
    Int8Linear,
    PackedInt4Linear,
    quantized_linear,
)

ROWS = [1, 3, FEW_ROWS, FEW_ROWS + 1, 130]
DTYPES = [torch.bfloat16, torch.float32]


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers that torch computes."""
    monkeypatch.setattr(native, "fits", lambda weight: False)


@pytest.fixture
def operator() -> None:
    """Skips a test of what this CPU lacks."""
    if not layers._packed_width():
        pytest.skip("no int4 operator, or one whose layout is unknown")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def int4(n: int, k: int, group_size: int) -> QuantizedWeight:
    return quantize_int4(random(n, k).bfloat16(), group_size)


def int8(n: int, k: int) -> QuantizedWeight:
    return quantize_int8(random(n, k))


def bias_of(n: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(random(n, seed=7).to(dtype))


@torch.no_grad()
def assert_multiplies(
    layer: nn.Module, weight: QuantizedWeight, rows: int, dtype: torch.dtype, *, exact: bool
) -> None:
    """Close to the dequantized matmul in float32, as bfloat16 allows where that is computed in."""
    x = random(rows, weight.shape[1], seed=rows).to(dtype)[None]
    bias = None if layer.bias is None else layer.bias.float()
    expected, found = F.linear(x.float(), weight.dequantize(torch.float32), bias), layer(x)
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    error = (found.float() - expected).abs().max() / expected.abs().max()
    assert error <= (1e-5 if exact and dtype == torch.float32 else 0.01)


# The last in blocks of rows, the last of them shorter.
SHAPES = [(64, 64, 32), (192, 128, 64), (BLOCK_ROWS + 64, 256, 256)]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (5, 12, 4), (1, 2, 2)])
def test_int4_is_the_dequantized_matmul(
    shape: tuple[int, int, int], dtype: torch.dtype, rows: int
) -> None:
    weight = int4(*shape)
    layer = Int4Linear(weight, bias_of(shape[0], dtype))
    assert_multiplies(layer, weight, rows, dtype, exact=True)


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_int4_is_the_dequantized_matmul(
    shape: tuple[int, int, int], dtype: torch.dtype, rows: int
) -> None:
    weight = int4(*shape)
    layer = quantized_linear(weight, bias_of(shape[0], dtype))
    assert isinstance(layer, PackedInt4Linear)
    assert_multiplies(layer, weight, rows, dtype, exact=rows > FEW_ROWS)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
# The operator takes rows of 32·i alone.
@pytest.mark.parametrize("shape", [(64, 64), (7, 32), (1033, 96), (5, 33), (97, 8), (1, 1)])
def test_int8_is_the_dequantized_matmul(
    shape: tuple[int, int], dtype: torch.dtype, rows: int
) -> None:
    weight = int8(*shape)
    layer = quantized_linear(weight, bias_of(shape[0], dtype))
    assert isinstance(layer, Int8Linear)
    few = rows <= FEW_ROWS and shape[1] % 32 == 0
    assert_multiplies(layer, weight, rows, dtype, exact=not few)


@pytest.mark.parametrize("rows", [3, FEW_ROWS + 1])
@pytest.mark.parametrize("weight", [int4(64, 64, 32), int4(6, 8, 2), int8(64, 64), int8(3, 5)])
def test_layers_need_no_bias(weight: QuantizedWeight, rows: int) -> None:
    layer = quantized_linear(weight, None)
    assert_multiplies(layer, weight, rows, torch.float32, exact=False)


@pytest.mark.parametrize("weight", [int4(64, 64, 32), int4(6, 8, 2), int8(64, 64), int8(3, 5)])
def test_leading_dimensions_are_kept(weight: QuantizedWeight) -> None:
    layer, k = quantized_linear(weight, None), weight.shape[1]
    x = random(2, 3, 4, k)
    found = layer(x)
    assert found.shape == (2, 3, 4, weight.shape[0])
    assert torch.equal(found.view(24, -1), layer(x.view(24, k)))
    turned = x.transpose(0, 2)
    assert torch.allclose(layer(turned), layer(turned.contiguous()), atol=1e-5)


def test_int8_scales_are_not_rounded_to_bfloat16() -> None:
    weight = quantize_int8(torch.eye(32) * torch.linspace(1, 1.1, 32))
    found = quantized_linear(weight, None)(torch.eye(32))
    assert torch.allclose(found, weight.dequantize(torch.float32).T, rtol=1e-6, atol=0)


# ----------------------------------------------------------------------------------------------
# Which layer


@pytest.mark.parametrize("shape", [(48, 64, 32), (64, 48, 16), (33, 10, 2), (64, 512, 512)])
def test_what_the_operator_cannot_take_is_computed_without_it(shape: tuple[int, int, int]) -> None:
    weight = int4(*shape)
    layer = quantized_linear(weight, None)
    assert isinstance(layer, Int4Linear)
    assert_multiplies(layer, weight, 3, torch.bfloat16, exact=True)


def test_without_the_operator_int4_is_computed_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layers, "_packed_width", lambda: 0)
    assert isinstance(quantized_linear(int4(64, 64, 32), None), Int4Linear)


def test_on_other_devices_than_a_cpu_nothing_is_packed() -> None:
    assert isinstance(quantized_linear(int4(64, 64, 32).to("meta"), None), Int4Linear)


@pytest.mark.usefixtures("operator")
def test_packing_keeps_no_second_copy() -> None:
    weight = int4(64, 256, 32)
    packed = quantized_linear(weight, None)
    assert isinstance(packed, PackedInt4Linear)
    size = sum(tensor.nbytes for tensor in packed.state_dict().values())
    assert size == 64 * (128 + 8 * 2 * 2)  # four bits a value, a scale and a zero point a group
    kept = {tensor.data_ptr() for tensor in packed.state_dict().values()}
    assert weight.qdata.data_ptr() not in kept
    held = [value for value in vars(packed).values() if isinstance(value, Tensor)]
    assert held == []


# ----------------------------------------------------------------------------------------------
# The CPU's packing


@pytest.mark.parametrize("width", [32, 64])
def test_packed_weights_are_unpacked_by_hand(width: int) -> None:
    values = torch.randint(-8, 8, (128, 6), generator=torch.Generator().manual_seed(0))
    packed = [
        (values[tile + row, k] + 8) | (values[tile + row + width // 2, k] + 8) << 4
        for tile in range(0, 128, width)
        for k in range(6)
        for row in range(width // 2)
    ]
    stored = torch.tensor(packed, dtype=torch.uint8).view(128, 3)
    assert torch.equal(layers._unpack(stored, width, torch.int64).T, values)


def test_a_layout_that_is_unknown_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    find = layers._packed_width.__wrapped__  # without the cache
    assert find() == layers._packed_width()
    monkeypatch.setattr(layers, "_pack", lambda values: torch.zeros(64, 16, dtype=torch.uint8))
    assert find() == 0
