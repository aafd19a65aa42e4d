"""The C kernels: the dequantized matmul is the oracle, for every set that this CPU can run."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import llamacli.kernels
from llamacli.errors import RequestError
from llamacli.kernels import native
from llamacli.quantization import (
    Int4Weight,
    Int8Weight,
    QuantizedWeight,
    quantize_int4,
    quantize_int8,
)
from llamacli.quantized_linear import (
    Int4Linear,
    TiledLinear,
    quantized_linear,
    round_activations,
)

COUNTS = [1, 15, 16, 17, 100]  # rows of a weight: tiles have 16
ROWS = [*range(1, 17), 28, 29, 40]  # of activations: 14 are computed together
GROUPS = [32, 64, 128, 256]

TINIEST = torch.finfo(torch.float32).smallest_normal  # smaller numbers may become zero


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives back the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Weight:
    """A weight as the kernels read it, and what it means in float64."""

    def __init__(self, stored: QuantizedWeight | Tensor, bias: Tensor | None = None) -> None:
        if isinstance(stored, Tensor):
            self.data, self.values, bits, size = stored, stored.double(), 16, stored.shape[1]
        else:
            self.data, self.values = native.pack(stored), stored.dequantize(torch.float64)
            is_int4 = isinstance(stored, Int4Weight)
            bits, size = (4, stored.group_size) if is_int4 else (8, stored.shape[1])
        self.bias = bias
        pointer = None if bias is None else bias.data_ptr()
        shape = self.values.shape
        self.matrix = native.Matrix(self.data.data_ptr(), pointer, *shape, bits, size, 16)

    def multiply(self, x: Tensor) -> Tensor:
        return native.multiply(self.matrix, x)

    def expected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x · Wᵀ + bias, and what rounding may change: in float32, and x in the groups of int4."""
        exact = x.double() @ self.values.T + (0 if self.bias is None else self.bias)
        lost = 1e-6 * x.double().abs()
        if self.matrix.bits == 4 and self.matrix.activation_bits == 16:
            groups = x.double().abs().unflatten(1, (-1, self.matrix.group_size))
            is_small = groups < groups.amax(dim=-1, keepdim=True) / 128
            step = groups.amax(dim=-1, keepdim=True) / 2**14 * max(1, groups.shape[-1] / 4096)
            lost += (is_small * step / 2).flatten(1)
        return exact, lost @ self.values.abs().T

    def assert_multiplies(self, x: Tensor) -> None:
        """As float32 would, the result rounded to bfloat16."""
        exact, rounding = self.expected(x)
        found = self.multiply(x)
        assert (found.shape, found.dtype) == (exact.shape, torch.bfloat16)
        error, lost = (found.double() - exact).abs(), len(x.T) * TINIEST
        assert (error <= 2**-8 * (exact.abs() + rounding) + rounding + lost).all()
        assert error.norm() <= 4e-3 * exact.norm() + (rounding + lost).norm()


class Rounding(Weight):
    """The same, for activations that are rounded to 255 steps in each group."""

    def __init__(self, stored: Int4Weight) -> None:
        super().__init__(stored)
        self.matrix.activation_bits = 8

    def expected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        groups = x.double().unflatten(1, (-1, self.matrix.group_size))
        step = groups.abs().amax(dim=-1, keepdim=True) / 127
        wanted = (groups / step).nan_to_num()
        exact, rounding = super().expected((wanted.round() * step).flatten(1))
        between = (wanted - wanted.floor() - 0.5).abs() < 1e-4  # may go either way
        return exact, rounding + (between * step).flatten(1) @ self.values.abs().T


def int4(n: int, k: int, group_size: int = 32, seed: int = 0) -> Weight:
    return Weight(quantize_int4(random(n, k, seed=seed).bfloat16(), group_size))


def int8(n: int, k: int, seed: int = 0) -> Weight:
    return Weight(quantize_int8(random(n, k, seed=seed)))


def dense(n: int, k: int, seed: int = 0) -> Weight:
    return Weight(random(n, k, seed=seed).bfloat16())


KINDS: list[Callable[..., Weight]] = [int4, int8, dense]


# ----------------------------------------------------------------------------------------------
# Products


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("group_size", GROUPS)
def test_int4_is_the_dequantized_matmul(group_size: int) -> None:
    for n in COUNTS:
        for k in (group_size, 3 * group_size):
            weight = int4(n, k, group_size, seed=n)
            for rows in ROWS:
                weight.assert_multiplies(random(rows, k, seed=rows).bfloat16())


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("group_size", [4096, 4128, 11008])
def test_sums_of_large_groups_do_not_overflow(group_size: int) -> None:
    stored = quantize_int4(random(16, group_size).bfloat16(), group_size)
    stored.qdata.fill_(0x77)  # 15 above the least
    for sign in (1, -1):
        x = torch.full((4, group_size), sign * 255 / 128).bfloat16()
        Weight(stored).assert_multiplies(x)
        Rounding(stored).assert_multiplies(x)


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("group_size", [*GROUPS, 96])
def test_rounded_activations_are_multiplied_exactly(group_size: int) -> None:
    for n in COUNTS:
        for k in (group_size, 3 * group_size):
            weight = Rounding(quantize_int4(random(n, k, seed=n).bfloat16(), group_size))
            for rows in (*ROWS, 64, 65, 100):
                weight.assert_multiplies(random(rows, k, seed=rows).bfloat16())


@pytest.mark.usefixtures("kernel_set")
def test_rounded_activations_are_near_the_exact_ones() -> None:
    stored = quantize_int4(random(50, 512).bfloat16(), 128)
    x = random(20, 512, seed=1).bfloat16()
    exact, _ = Weight(stored).expected(x)
    found = Rounding(stored).multiply(x)
    assert 1e-3 < (found - exact).norm() / exact.norm() < 1e-2


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("factor", [0.0, 1e-40, 1e-30, 1e30, 1e34])
def test_activations_of_any_size_are_rounded(factor: float) -> None:
    weight = Rounding(quantize_int4(random(20, 64).bfloat16(), 32))
    weight.assert_multiplies(random(3, 64).bfloat16() * factor)


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rounding_hides_nothing_that_is_not_finite(value: float) -> None:
    weight = Rounding(quantize_int4(random(20, 96).bfloat16(), 32))
    for rows in (1, 3, 14, 20):
        x = random(rows, 96, seed=1).bfloat16()
        before = weight.multiply(x)
        x[-1, 50] = value
        found = weight.multiply(x)
        assert found[-1].isnan().all()
        assert torch.equal(found[:-1], before[:-1])


@pytest.mark.usefixtures("kernel_set")
def test_int4_layers_of_a_model_round_what_they_multiply() -> None:
    stored = [quantize_int4(random(20, 64), 32), quantize_int8(random(20, 64))]
    model = nn.Sequential(*(quantized_linear(weight, None) for weight in stored))
    round_activations(model)
    x = random(3, 64).bfloat16()
    assert torch.equal(model[0](x), Rounding(stored[0]).multiply(x))
    assert torch.equal(model[1](x), Weight(stored[1]).multiply(x))


def test_without_int4_weights_nothing_can_be_rounded() -> None:
    for model in (nn.Linear(64, 64), quantized_linear(quantize_int8(random(20, 64)), None)):
        with pytest.raises(RequestError, match="int4 weights"):
            round_activations(model)


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("k", [8, 16, 24, 40, 104, 256])
def test_int8_is_the_dequantized_matmul(k: int) -> None:
    for n in COUNTS:
        weight = int8(n, k, seed=n)
        for rows in ROWS:
            weight.assert_multiplies(random(rows, k, seed=rows).bfloat16())


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("n", COUNTS)
def test_bfloat16_is_the_matmul(n: int) -> None:
    for k in (*range(1, 70, 3), 32, 64, 127, 128, 129, 160, 250):
        weight = dense(n, k, seed=n)
        for rows in (1, 2, 4, 5, 7, 14, 15, 40):
            weight.assert_multiplies(random(rows, k, seed=rows).bfloat16())


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("kind", KINDS)
def test_a_bias_is_added_before_the_result_is_rounded(kind: Callable[..., Weight]) -> None:
    weight = kind(17, 64)
    weight.bias = random(17, seed=5)
    weight.matrix.bias = weight.bias.data_ptr()
    for rows in (1, 3, 20):
        weight.assert_multiplies(random(rows, 64, seed=rows).bfloat16())


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_stand_anywhere_in_memory(kind: Callable[..., Weight]) -> None:
    weight, x = kind(20, 32), random(5, 33).bfloat16()
    weight.assert_multiplies(x[:, 1:])
    weight.assert_multiplies(x.flatten()[3 : 3 + 4 * 32].view(4, 32))  # no multiple of 4 bytes
    weight.assert_multiplies(random(32, 6).bfloat16().T)


@pytest.mark.parametrize("x", [torch.zeros(2, 31).bfloat16(), torch.zeros(2, 32),
                               torch.zeros(2, 32, device="meta").bfloat16()])  # fmt: skip
@pytest.mark.usefixtures("kernel_set")
def test_other_rows_are_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match="32 columns"):
        int4(16, 32).multiply(x)


# ----------------------------------------------------------------------------------------------
# Extreme numbers


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0.0, 1e-40, 1e-38, 1e-30, 1e30, 1e34])
def test_tiny_and_large_numbers(kind: Callable[..., Weight], factor: float) -> None:
    kind(20, 64).assert_multiplies(random(3, 64).bfloat16() * factor)


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_too_large_becomes_infinite(sign: int) -> None:
    x = torch.full((2, 64), 3e38).bfloat16()
    found = Weight(sign * torch.ones(20, 64).bfloat16()).multiply(x)
    assert (found == sign * torch.inf).all()


@pytest.mark.usefixtures("kernel_set")
def test_results_round_to_infinity_where_bfloat16_ends() -> None:
    x = torch.full((1, 2), 3.38e38).bfloat16()
    assert Weight(torch.tensor([[1.0, 0.007]]).bfloat16()).multiply(x).item() == torch.inf


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_no_finite_result_comes_of_what_is_not_finite(
    kind: Callable[..., Weight], value: float
) -> None:
    weight = kind(20, 96)
    for rows in (1, 3, 14):
        x = random(rows, 96, seed=1).bfloat16()
        before = weight.multiply(x)
        for column in (0, 1, 31, 50, 95):
            bad = x.clone()
            bad[-1, column] = value
            found = weight.multiply(bad)
            assert not found[-1].isfinite().any()
            assert not torch.isnan(value * torch.ones(1)).any() or found[-1].isnan().all()
            assert torch.equal(found[:-1], before[:-1])


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("kind", KINDS)
def test_infinity_has_its_sign(kind: Callable[..., Weight]) -> None:
    values = random(20, 96).abs() + 0.5  # no weight is zero
    stored = {int4: quantize_int4(values.bfloat16(), 32), int8: quantize_int8(values)}
    weight = Weight(stored.get(kind, values.bfloat16()))
    x = torch.ones(1, 96).bfloat16()
    if kind is dense:
        x[0, 7] = -torch.inf
        assert (weight.multiply(x) == -torch.inf).all()
    weight.matrix.bias = (bias := torch.full((20,), torch.inf)).data_ptr()
    assert (weight.multiply(torch.ones(1, 96).bfloat16()) == bias).all()


@pytest.mark.usefixtures("kernel_set")
def test_scales_and_zero_points_of_every_size() -> None:
    qdata = quantize_int4(random(20, 160), 32).qdata
    scale = torch.tensor([0.0, 1e-30, 1e-3, 1e3, 1e30]).bfloat16()[:, None].expand(5, 20)
    for zero_point in (scale * 0, -scale, scale.flip(0), scale * 100):
        weight = Weight(Int4Weight(qdata, scale, zero_point))
        for rows in (1, 5):
            weight.assert_multiplies(random(rows, 160, seed=rows).bfloat16())


@pytest.mark.usefixtures("kernel_set")
def test_int8_scales_of_every_size() -> None:
    scale = torch.tensor([0.0, TINIEST, 1e-30, 1.2345678, 1e30])[:, None]
    weight = Weight(Int8Weight(torch.randint(-128, 128, (5, 64)).to(torch.int8), scale))
    weight.assert_multiplies(random(3, 64).bfloat16())


# ----------------------------------------------------------------------------------------------
# Tiles


@pytest.mark.usefixtures("kernel_set")
def test_an_int4_tile_is_written_by_hand() -> None:
    # 2 rows of 32 values: 0 … 15 twice, and 8 (which is 0) everywhere
    levels = torch.stack((torch.arange(16).repeat(2), torch.full((32,), 8))).to(torch.uint8)
    qdata = ((levels[:, 0::2] | levels[:, 1::2] << 4) ^ 0x88).view(torch.int8)
    weight = Int4Weight(qdata, torch.tensor([[1.0, 2.0]]), torch.tensor([[-1.0, 0.5]]))
    chunks = ["20643175 88888888", "a8ecb9fd 88888888"] * 2  # even columns, then odd ones
    parts = ["803f 0040", "80bf 003f"]  # bfloat16
    expected = b"".join(bytes.fromhex(part).ljust(32, b"\0") for part in parts)
    expected += b"".join(bytes.fromhex(chunk).ljust(64, b"\0") for chunk in chunks)
    assert bytes(native.pack(weight).tolist()) == expected


@pytest.mark.usefixtures("kernel_set")
def test_an_int8_tile_is_written_by_hand() -> None:
    qdata = torch.tensor([[0, 1, -1, 127, -128, 16, -16, 5]], dtype=torch.int8)
    parts = ["0000803f", "7870f889", "f000f150"]  # the scale 1.0, upper halves + 8, lower halves
    expected = b"".join(bytes.fromhex(part).ljust(64, b"\0") for part in parts)
    assert bytes(native.pack(Int8Weight(qdata, torch.ones(1, 1))).tolist()) == expected


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("n", COUNTS)
def test_tiles_are_unpacked_to_what_they_mean(n: int) -> None:
    for kind, k in ((int4, 96), (int8, 40)):
        weight = kind(n, k)
        expected = weight.values.float().bfloat16()
        assert torch.equal(native.unpack(weight.matrix, 0, 1000), expected)
        for first, last in ((0, 1), (1, 3), (6, 7)):
            if 16 * first < n:
                found = native.unpack(weight.matrix, first, last)
                assert torch.equal(found, expected[16 * first : 16 * last])


def test_what_fits_is_tiled(kernel_set: str) -> None:
    assert isinstance(quantized_linear(quantize_int4(random(3, 64), 32), None), TiledLinear)
    assert isinstance(quantized_linear(quantize_int4(random(3, 64), 16), None), Int4Linear)
    assert not native.fits(quantize_int8(random(3, 12)))
    assert not native.fits(quantize_int8(random(3, 16)).to("meta"))


# ----------------------------------------------------------------------------------------------
# Threads and processes


@pytest.mark.usefixtures("kernel_set", "threads")
@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_nothing(kind: Callable[..., Weight]) -> None:
    x = random(20, 64).bfloat16()
    found = []
    for count in (1, 2, 3, 1):
        torch.set_num_threads(count)
        weight = kind(100, 64)  # packed by so many threads
        found.append((weight.data, weight.multiply(x), weight.multiply(x[:1])))
        if kind is not dense:
            assert torch.equal(native.unpack(weight.matrix, 0, 7), weight.values.bfloat16())
    for one in found[1:]:
        assert all(map(torch.equal, one, found[0]))


@pytest.mark.usefixtures("kernel_set", "threads")
def test_several_python_threads_call_at_once() -> None:
    torch.set_num_threads(2)
    weights = [kind(50, 64) for kind in KINDS]
    rows = [random(count, 64, seed=count).bfloat16() for count in (1, 3, 20)]
    expected = [[weight.multiply(x) for x in rows] for weight in weights]

    def call(at: int) -> bool:
        pairs = zip(rows, expected[at % 3], strict=True)
        return all(torch.equal(weights[at % 3].multiply(x), y) for x, y in pairs)

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(call, range(300)))


def libraries() -> str:
    maps = Path("/proc/self/maps")
    return maps.read_text() if maps.exists() else ""


@pytest.mark.usefixtures("kernel_set", "threads")
@pytest.mark.skipif("libgomp" not in libraries(), reason="torch has another OpenMP here")
def test_the_threads_are_those_of_torch() -> None:
    torch.set_num_threads(3)
    random(512, 512) @ random(512, 512)
    random(10**6).exp()
    before = len(os.listdir("/proc/self/task"))
    int4(100, 64).multiply(random(20, 64).bfloat16())
    assert before >= 3
    assert len(os.listdir("/proc/self/task")) == before


@pytest.mark.usefixtures("kernel_set", "threads")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes() -> None:
    torch.set_num_threads(3)
    weight, x = int4(100, 64), random(3, 64).bfloat16()
    expected = weight.multiply(x)
    time.sleep(0.02)  # the workers fall asleep
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # it would wait for ever
        results = [torch.equal(weight.multiply(x), expected) or time.sleep(0.001)
                   for _ in range(30)]  # fmt: skip
        os._exit(0 if all(results) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(weight.multiply(x), expected)


# ----------------------------------------------------------------------------------------------
# Which set


def test_a_variable_chooses_the_set(kernel_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.VARIABLE, kernel_set)
    assert native.kernels.__wrapped__().llamacli_name() == kernel_set.encode()
    monkeypatch.setenv(native.VARIABLE, "torch")
    assert native.kernels.__wrapped__() is None
    monkeypatch.setenv(native.VARIABLE, "mmx")
    with pytest.raises(RequestError, match=r"portable, avx2, avx512, amx .* got mmx"):
        native.kernels.__wrapped__()


def test_without_the_library_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacli.kernels, "__path__", [])
    assert native.kernels.__wrapped__() is None
    monkeypatch.setattr(native, "kernels", native.kernels.__wrapped__)
    assert not isinstance(quantized_linear(quantize_int4(random(64, 64), 32), None), TiledLinear)
