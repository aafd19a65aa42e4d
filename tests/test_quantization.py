"""Weights as small integers and back; torchao is the oracle."""

from functools import partial

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor
from torchao.quantization import Int8Tensor, MappingType, PerRow
from torchao.quantization.quant_primitives import (
    _choose_qparams_affine_tinygemm,
    _choose_qparams_and_quantize_affine_hqq,
    _dequantize_affine_tinygemm,
    _quantize_affine_tinygemm,
    optimize_weights_proximal_legacy,
)

from llamacli.quantization import (
    ALGORITHMS,
    Int4Weight,
    Int8Weight,
    QuantizedWeight,
    Scheme,
    pack_int4,
    quantize,
    quantize_int4,
    quantize_int8,
    unpack_int4,
)

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SCHEMES = [(Scheme(4, 8), algorithm) for algorithm in ALGORITHMS] + [(Scheme(8, 24), "rtn")]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def levels_of(weight: Int4Weight) -> Tensor:
    """(N, K) in 0 … 15."""
    return unpack_int4(weight.qdata) + 8


def squared_errors(weight: Tensor, found: Int4Weight) -> Tensor:
    """(N, K/g), in float64."""
    difference = found.dequantize(torch.float32).double() - weight.double()
    return torch.unflatten(difference.square(), 1, (-1, found.group_size)).sum(dim=-1)


def parts(weight: QuantizedWeight) -> list[Tensor]:
    """With the rows of the weight along the first dimension."""
    if isinstance(weight, Int8Weight):
        return [weight.qdata, weight.scale]
    return [weight.qdata, weight.scale.T, weight.zero_point.T]


# A weight (2, 16) of some dtype: ordinary, tiny, or with few different values.
numbers = st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 1.0, -1.0])
weights = st.builds(
    lambda values, exponent, dtype: (
        (torch.tensor(values, dtype=torch.float64) * 10.0**exponent).view(2, 16).to(dtype)
    ),
    st.lists(numbers, min_size=32, max_size=32),
    st.integers(-45, 0),
    st.sampled_from(FLOATS),
)


# ----------------------------------------------------------------------------------------------
# int4, round to nearest


def torchao_int4(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Levels, scale and zero point of each group, and the dequantized weight."""
    block = (1, group_size)
    scale, zero_point = _choose_qparams_affine_tinygemm(
        weight.float(),
        MappingType.ASYMMETRIC,
        block,
        torch.int32,
        quant_min=0,
        quant_max=15,
        eps=torch.finfo(weight.dtype).smallest_normal,
        scale_dtype=weight.dtype,
        zero_point_dtype=weight.dtype,
    )
    wide = scale.float(), zero_point.float()
    levels = _quantize_affine_tinygemm(weight.float(), block, *wide, torch.int32, 0, 15)
    dequantized = _dequantize_affine_tinygemm(
        levels, block, *wide, torch.int32, 0, 15, output_dtype=torch.float32
    )
    return levels, scale, zero_point, dequantized


def assert_torchaos(weight: Tensor, group_size: int) -> None:
    levels, scale, zero_point, dequantized = torchao_int4(weight, group_size)
    ours = quantize_int4(weight, group_size)
    assert (ours.shape, ours.group_size) == (weight.shape, group_size)
    assert ours.qdata.dtype == torch.int8
    assert ours.scale.dtype == ours.zero_point.dtype == weight.dtype
    assert torch.equal(levels_of(ours), levels)
    assert torch.equal(ours.scale.T, scale.reshape(len(weight), -1))
    assert torch.equal(ours.zero_point.T, zero_point.reshape(len(weight), -1))
    assert torch.equal(ours.dequantize(torch.float32), dequantized)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("group_size", [2, 32, 96])
def test_int4_is_that_of_torchao(group_size: int, dtype: torch.dtype) -> None:
    assert_torchaos(random(7, 96).to(dtype), group_size)


@given(weight=weights, group_size=st.sampled_from([2, 4, 16]))
def test_int4_is_that_of_torchao_for_odd_weights(weight: Tensor, group_size: int) -> None:
    assert_torchaos(weight, group_size)


def test_int4_can_be_checked_by_hand() -> None:
    weight = torch.tensor([[0.0, 15.0, 3.0, 7.4], [-1.0, 2.0, 5.0, 14.0]])
    found = quantize_int4(weight, 4)
    assert unpack_int4(found.qdata).tolist() == [[-8, 7, -5, -1], [-8, -5, -2, 7]]
    assert found.scale.tolist() == [[1.0, 1.0]]
    assert found.zero_point.tolist() == [[8.0, 7.0]]
    back = [[0.0, 15.0, 3.0, 7.0], [-1.0, 2.0, 5.0, 14.0]]
    assert found.dequantize(torch.float32).tolist() == back


def test_even_columns_are_in_the_low_four_bits() -> None:
    levels = torch.tensor([[8, 9, 15, 0, 7, 10]], dtype=torch.uint8)
    packed = pack_int4(levels)
    assert [byte & 0xFF for byte in packed[0].tolist()] == [0x10, 0x87, 0x2F]
    assert unpack_int4(packed).tolist() == [[0, 1, 7, -8, -1, 2]]


def test_every_pair_of_levels_is_packed_and_unpacked() -> None:
    levels = torch.cartesian_prod(*[torch.arange(16, dtype=torch.uint8)] * 2)
    assert torch.equal(unpack_int4(pack_int4(levels)) + 8, levels.to(torch.int8))


# ----------------------------------------------------------------------------------------------
# int4, half-quadratic

UNTIL_THE_END = {"lp_norm": 0.7, "beta": 10.0, "kappa": 1.01, "iters": 20, "early_stop": False}
torchao_hqq = partial(
    _choose_qparams_and_quantize_affine_hqq,
    compute_dtype=torch.float32,
    device="cpu",
    # Ours does not stop early: whether to stop depends on all rows.
    optimize_weights=partial(optimize_weights_proximal_legacy, opt_params=UNTIL_THE_END),
)


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "small", "shifted"])
@pytest.mark.parametrize("group_size", [16, 64])
def test_hqq_is_that_of_torchao(group_size: int, kind: str) -> None:
    weight = random(16, 128)
    weight = {
        "normal": weight,
        "heavy tails": weight**5,
        "small": weight * 1e-4,
        "shifted": weight + 5,
    }[kind]
    levels, scale, zero_point, _ = torchao_hqq(weight, group_size=group_size)
    scale, zero_point = scale.view(16, -1), zero_point.view(16, -1)
    ours = quantize_int4(weight, group_size, "hqq")
    assert torch.allclose(ours.scale.T, scale, rtol=1e-6, atol=0)
    assert ((ours.zero_point.T - zero_point) / scale).abs().max() < 1e-3
    step, middle = (p.repeat_interleave(group_size, dim=1) for p in (scale, zero_point))
    exact = ((weight - middle) / step + 8).clamp(0, 15)
    is_tie = (exact - exact.floor() - 0.5).abs() < 1e-3
    assert torch.equal(levels_of(ours)[~is_tie], levels[~is_tie].to(torch.int8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hqq_rounds_levels_by_the_numbers_that_are_stored(dtype: torch.dtype) -> None:
    weight = random(4, 64).to(dtype)
    found = quantize_int4(weight, 32, "hqq")
    exact = quantize_int4(weight.float(), 32, "hqq")
    assert torch.equal(found.scale, exact.scale.to(dtype))
    assert torch.equal(found.zero_point, exact.zero_point.to(dtype))
    scale, zero_point = (
        p.T.float().repeat_interleave(32, dim=1) for p in (found.scale, found.zero_point)
    )
    nearest = ((weight - (zero_point - 8 * scale)) / scale).round().clamp(0, 15)
    assert torch.equal(levels_of(found), nearest.to(torch.int8))


def test_hqq_is_nearer_than_rounding_in_its_own_norm() -> None:
    weight = random(64, 64) ** 3
    errors = {
        name: (quantize_int4(weight, 64, name).dequantize(torch.float32) - weight).abs().pow(0.7)
        for name in ("rtn", "hqq")
    }
    assert errors["hqq"].sum() < 0.95 * errors["rtn"].sum()


# ----------------------------------------------------------------------------------------------
# int4, least squares


@given(weight=weights, group_size=st.sampled_from([4, 16]))
def test_least_squares_are_never_above_those_of_rounding(weight: Tensor, group_size: int) -> None:
    mse, rtn = (
        squared_errors(weight, quantize_int4(weight, group_size, name)) for name in ("mse", "rtn")
    )
    assert (mse <= rtn * (1 + 1e-5)).all()


def test_least_squares_clip_outliers() -> None:
    # On the grid of −0.7 … 0.7, but for two outliers: clipped, they cost 0.3² each.
    grid = torch.linspace(-0.7, 0.7, 16)
    weight = torch.cat((torch.tensor([-1.0, 1.0]), grid.repeat(16)[2:])).view(1, 256)
    clipped = quantize_int4(weight, 256, "mse")
    assert squared_errors(weight, clipped).item() == pytest.approx(2 * 0.3**2)
    assert clipped.scale.item() == pytest.approx(1.4 / 15)
    assert squared_errors(weight, quantize_int4(weight, 256, "rtn")).item() > 1.8 * 2 * 0.3**2


# ----------------------------------------------------------------------------------------------
# int8


def test_int8_is_that_of_torchao() -> None:
    weight = random(7, 33)
    ours, theirs = quantize_int8(weight), Int8Tensor.from_hp(weight, PerRow())
    assert ours.shape == (7, 33)
    assert torch.equal(ours.qdata, theirs.qdata)
    assert torch.equal(ours.scale, theirs.scale)
    assert torch.equal(ours.dequantize(torch.float32), theirs.dequantize())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_int8_of_half_precision_is_that_of_the_same_numbers(dtype: torch.dtype) -> None:
    weight = random(7, 33).to(dtype)
    ours, theirs = quantize_int8(weight), Int8Tensor.from_hp(weight.float(), PerRow())
    assert torch.equal(ours.qdata, theirs.qdata)
    assert torch.equal(ours.scale, theirs.scale)
    assert torch.equal(ours.dequantize(dtype), theirs.dequantize(dtype))


def test_int8_can_be_checked_by_hand() -> None:
    weight = torch.tensor([[127.5, -127.5, 1.4, 2.5], [-255.0, 127.0, 2.9, 64.0]])
    found = quantize_int8(weight)
    assert found.scale.tolist() == [[1.0], [2.0]]
    assert found.qdata.tolist() == [[127, -128, 1, 2], [-128, 64, 1, 32]]


# ----------------------------------------------------------------------------------------------
# All


def test_a_scheme_says_what_a_weight_becomes() -> None:
    weight = random(3, 24)
    for algorithm in ALGORITHMS:
        found = quantize(weight, Scheme(4, 8), algorithm)
        assert isinstance(found, Int4Weight)
        expected = quantize_int4(weight, 8, algorithm)
        assert all(map(torch.equal, parts(found), parts(expected)))
    found = quantize(weight, Scheme(8, 24))
    assert isinstance(found, Int8Weight)
    assert all(map(torch.equal, parts(found), parts(quantize_int8(weight))))


@pytest.mark.parametrize(("scheme", "algorithm"), SCHEMES)
def test_rows_are_dequantized_as_in_the_whole(scheme: Scheme, algorithm: str) -> None:
    found = quantize(random(10, 24), scheme, algorithm)
    for dtype in FLOATS:
        whole = found.dequantize(dtype)
        assert (whole.shape, whole.dtype) == ((10, 24), dtype)
        for rows in (slice(0, 3), slice(3, 10), slice(9, 99)):
            assert torch.equal(found.dequantize(dtype, rows), whole[rows])


@pytest.mark.parametrize(("scheme", "algorithm"), SCHEMES)
@given(seed=st.integers(0, 999), rows=st.integers(2, 40), data=st.data())
def test_rows_quantized_in_blocks_are_those_of_the_whole(
    scheme: Scheme, algorithm: str, seed: int, rows: int, data: st.DataObject
) -> None:
    weight = random(rows, 24, seed=seed)
    sizes = data.draw(st.lists(st.integers(1, rows), min_size=1).filter(lambda s: sum(s) <= rows))
    sizes.append(rows - sum(sizes))
    blocks = [
        parts(quantize(block, scheme, algorithm)) for block in weight.split(sizes) if len(block)
    ]
    whole = parts(quantize(weight, scheme, algorithm))
    assert all(torch.equal(torch.cat(p), w) for *p, w in zip(*blocks, whole, strict=True))


@pytest.mark.parametrize(("scheme", "algorithm"), SCHEMES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_quantizing_is_deterministic_and_leaves_its_argument_alone(
    scheme: Scheme, algorithm: str, dtype: torch.dtype
) -> None:
    weight = random(5, 24).to(dtype)
    before = weight.clone()
    first, second = (quantize(weight, scheme, algorithm) for _ in range(2))
    assert all(map(torch.equal, parts(first), parts(second)))
    assert torch.equal(weight, before)
    kept = [part.clone() for part in parts(first)]
    first.dequantize(dtype).zero_()
    assert all(map(torch.equal, parts(first), kept))


@pytest.mark.parametrize(("scheme", "algorithm"), SCHEMES)
def test_a_transposed_weight_is_quantized_as_its_copy(scheme: Scheme, algorithm: str) -> None:
    weight = random(24, 6).T
    found, expected = (quantize(w, scheme, algorithm) for w in (weight, weight.contiguous()))
    assert all(map(torch.equal, parts(found), parts(expected)))


# ----------------------------------------------------------------------------------------------
# Odd groups


@pytest.mark.parametrize(("scheme", "algorithm"), SCHEMES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_fault_015_zeros_come_back_as_zeros(
    scheme: Scheme, algorithm: str, dtype: torch.dtype
) -> None:
    weight = random(3, 24).to(dtype)
    weight[1] = 0
    found = quantize(weight, scheme, algorithm)
    assert (found.scale > 0).all()
    back = found.dequantize(torch.float32)
    assert not back[1].any()
    assert back.isfinite().all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [3.0, -0.1, 1e-40, 65504.0])
def test_fault_015_a_group_of_equal_values_comes_back(
    value: float, dtype: torch.dtype, algorithm: str
) -> None:
    weight = torch.full((2, 8), value).to(dtype)
    weight[1, :4] = 1.0
    back = quantize_int4(weight, 4, algorithm).dequantize(torch.float32)
    if algorithm == "hqq":  # the zero point is stored in few bits, and the least step is 1/20000
        assert torch.allclose(back, weight.float(), rtol=torch.finfo(dtype).eps, atol=5e-5)
    else:
        assert torch.allclose(back, weight.float(), rtol=1e-6, atol=1e-6)
        assert torch.equal(back.to(dtype), weight) or value == 1e-40


@pytest.mark.parametrize(("scheme", "algorithm"), SCHEMES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_fault_015_denormals_become_no_nan(
    scheme: Scheme, algorithm: str, dtype: torch.dtype
) -> None:
    least = torch.finfo(dtype).smallest_normal / 4
    weight = (random(3, 24) * least).to(dtype)
    back = quantize(weight, scheme, algorithm).dequantize(torch.float32)
    assert back.isfinite().all()
    assert (back - weight.float()).abs().max() <= (1e-4 if algorithm == "hqq" else 4 * least)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(weight=weights)
def test_fault_015_no_int4_weight_becomes_nan(weight: Tensor, algorithm: str) -> None:
    found = quantize_int4(weight, 8, algorithm)
    assert found.scale.isfinite().all()
    assert found.zero_point.isfinite().all()
    assert (found.scale > 0).all()
    groups = torch.unflatten(weight.float(), 1, (-1, 8))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    error = torch.unflatten(found.dequantize(torch.float32), 1, (-1, 8)) - groups
    # At worst one value of a group stands for another; the zero point is stored in few bits.
    rounding = torch.finfo(weight.dtype).eps * 16 * groups.abs().amax(dim=-1, keepdim=True)
    assert (error.abs() <= high - low + found.scale.T[..., None] + rounding).all()


@given(weight=weights)
def test_fault_015_int8_is_at_most_half_a_step_away(weight: Tensor) -> None:
    found = quantize_int8(weight)
    error = (found.dequantize(torch.float32) - weight.float()).abs()
    assert (error <= found.scale * 0.5001).all()
