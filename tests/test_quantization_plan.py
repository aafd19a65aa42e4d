"""What becomes of each weight, from the headers alone."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from llamacli.checkpoint import Checkpoint
from llamacli.checkpoint_writer import Layout
from llamacli.config import LlamaConfig
from llamacli.errors import CheckpointError, RequestError
from llamacli.model import LlamaForCausalLM
from llamacli.quantization import ALGORITHMS, GROUP_SIZES, Scheme
from llamacli.quantization_plan import (
    EMBEDDINGS,
    LM_HEAD,
    Plan,
    PlannedWeight,
    Recipe,
    blocks,
    plan_dequantization,
    plan_quantization,
    raised_to_int8,
)
from llamacli.torchao_format import QuantizedInfo, WeightInfo, part_layouts
from llamacli.weight_file import TensorInfo
from tests.tiny import KINDS, SIZES

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
FITTING = {"hidden_size": 128, "intermediate_size": 256}
PROJECTIONS = [f"self_attn.{name}_proj" for name in "qkvo"]
PROJECTIONS += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
UP_PROJ = "model.layers.0.mlp.up_proj.weight"
DOWN_PROJ = "model.layers.1.mlp.down_proj.weight"


def plain(*shape: int, dtype: torch.dtype = torch.float32) -> TensorInfo:
    return TensorInfo(shape, dtype, "model.safetensors", 0)


def quantized(scheme: Scheme, *shape: int, dtype: torch.dtype = torch.bfloat16) -> QuantizedInfo:
    layouts = part_layouts(scheme, shape, dtype)
    parts = {name: plain(*size, dtype=kind) for name, (size, kind) in layouts.items()}
    return QuantizedInfo(scheme, shape, dtype, parts)


def model(kind: str = "plain", dtype: torch.dtype = torch.float32, **sizes: Any) -> Checkpoint:
    """The headers of a model."""
    config = LlamaConfig(**SIZES | FITTING | KINDS[kind] | sizes)
    with torch.device("meta"):
        parameters = LlamaForCausalLM(config).named_parameters()
    return Checkpoint({name: plain(*p.shape, dtype=dtype) for name, p in parameters}, {})


def changed(checkpoint: Checkpoint, weights: Mapping[str, WeightInfo]) -> Checkpoint:
    return Checkpoint({**checkpoint.tensors, **weights}, {})


def plan(checkpoint: Checkpoint, tied: bool = False, **recipe: Any) -> Plan:
    return plan_quantization(checkpoint, Recipe(**recipe), tied=tied)


def schemes(planned: Plan) -> dict[str, Scheme | None]:
    return {name: weight.scheme for name, weight in planned.items()}


def reasons(planned: Plan) -> dict[str, str]:
    return {name: weight.reason for name, weight in planned.items() if weight.reason}


# ----------------------------------------------------------------------------------------------
# Recipes


def test_by_default_projections_are_int4_the_head_int8_and_the_rest_is_kept() -> None:
    found = plan(model())
    layers = [f"model.layers.{n}.{name}" for n in (0, 1) for name in PROJECTIONS]
    expected: dict[str, Scheme | None] = dict.fromkeys(model().tensors)
    expected |= {f"{layer}.weight": Scheme(4, 128) for layer in layers}
    expected |= {LM_HEAD: Scheme(8, 128)}
    assert schemes(found) == expected
    assert [*found] == [*model().tensors]
    assert reasons(found) == {}


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_floating_point_weight_becomes_bfloat16(dtype: torch.dtype) -> None:
    steps = {"model.steps": plain(dtype=torch.int64), "model.mask": plain(2, dtype=torch.bool)}
    found = plan(changed(model(dtype=dtype), steps))
    dtypes = {name: weight.dtype for name, weight in found.items()}
    assert dtypes.pop("model.steps") == torch.int64
    assert dtypes.pop("model.mask") == torch.bool
    assert set(dtypes.values()) == {torch.bfloat16}
    assert schemes(found) == schemes(plan(model())) | dict.fromkeys(steps)


def test_with_8_bits_all_layers_are_int8() -> None:
    found = schemes(plan(model(), bits=8, group_size=32))
    assert found[UP_PROJ] == found[LM_HEAD] == Scheme(8, 128)
    assert found[DOWN_PROJ] == Scheme(8, 256)
    assert found[EMBEDDINGS] is None


@pytest.mark.parametrize("value", [{"group_size": size} for size in GROUP_SIZES])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_group_size_and_algorithm_is_a_recipe(value: dict[str, int], algorithm: str) -> None:
    Recipe(**value, algorithm=algorithm, bits=8)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bits": 3}, "bits must be 4 or 8, got 3"),
        ({"bits": 16}, "bits must be 4 or 8, got 16"),
        ({"bits": 0}, "bits must be 4 or 8, got 0"),
        ({"mixed": (("lm_head", 8), ("*.up_proj", 5))}, "bits must be 4 or 8, got 5"),
        ({"group_size": 48}, "group_size must be one of 32, 64, 128, 256, got 48"),
        ({"group_size": 512}, "group_size must be one of 32, 64, 128, 256, got 512"),
        ({"group_size": 0}, "group_size must be one of 32, 64, 128, 256, got 0"),
        ({"group_size": -32}, "group_size must be one of 32, 64, 128, 256, got -32"),
        ({"algorithm": "gptq"}, "algorithm must be one of rtn, mse, hqq, got 'gptq'"),
        ({"algorithm": "\x1b[2J"}, r"algorithm must be one of rtn, mse, hqq, got '\x1b[2J'"),
        ({"bits": 8, "algorithm": ""}, "algorithm must be one of rtn, mse, hqq, got ''"),
    ],
)
def test_unknown_values_are_refused_with_those_that_are_known(
    values: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError) as caught:
        Recipe(**values)
    assert str(caught.value) == words


# ----------------------------------------------------------------------------------------------
# Patterns


def test_skipped_layers_are_kept_and_nothing_else_changes() -> None:
    found = plan(model(), skip=("*.layers.0.*", "lm_head"))
    kept = {f"model.layers.0.{name}.weight" for name in PROJECTIONS} | {LM_HEAD}
    assert reasons(found) == dict.fromkeys(kept, "skipped")
    assert schemes(found) == schemes(plan(model())) | dict.fromkeys(kept)


def test_skip_wins_over_mixed() -> None:
    found = plan(model(), skip=("*.down_proj",), mixed=(("*.down_proj", 8),))
    assert (found[DOWN_PROJ].scheme, found[DOWN_PROJ].reason) == (None, "skipped")


def test_of_several_patterns_the_last_that_matches_counts() -> None:
    mixed = (("*.up_proj", 4), ("*.layers.0.mlp.*", 8), ("*.gate_proj", 4), ("lm_head", 4))
    found = schemes(plan(model(), mixed=mixed))
    assert found[UP_PROJ] == Scheme(8, 128)
    assert found["model.layers.0.mlp.gate_proj.weight"] == Scheme(4, 128)
    assert found["model.layers.1.mlp.up_proj.weight"] == Scheme(4, 128)
    assert found[LM_HEAD] == Scheme(4, 128)


def test_mixed_lowers_bits_as_it_raises_them() -> None:
    found = schemes(plan(model(), bits=8, group_size=64, mixed=(("*.mlp.*", 4),)))
    assert found[DOWN_PROJ] == Scheme(4, 64)
    assert found["model.layers.0.self_attn.q_proj.weight"] == Scheme(8, 128)


@pytest.mark.parametrize("how", ["skip", "mixed"])
@pytest.mark.parametrize(
    "pattern",
    ["up_proj", "*.up_proj.weight", "*.UP_PROJ", "model.embed_tokens", "*norm*", "", "\x1b[2J"],
)
def test_a_pattern_that_matches_no_layer_is_named(pattern: str, how: str) -> None:
    recipe = {"skip": ("lm_head", pattern)} if how == "skip" else {"mixed": ((pattern, 8),)}
    message = re.escape(f"no layer matches {pattern!r}")  # its repr escapes control characters
    with pytest.raises(RequestError, match=f"^{message}$") as caught:
        plan(model(), **recipe)
    hint = "layers are named as model.layers.1.mlp.down_proj, lm_head"
    assert caught.value.hint == hint


# ----------------------------------------------------------------------------------------------
# Widths


@pytest.mark.parametrize(
    ("asked", "width", "size"),
    [(128, 64, 64), (128, 96, 32), (256, 384, 128), (64, 96, 32), (128, 320, 64)],
)
def test_the_largest_group_size_that_fits_is_taken(asked: int, width: int, size: int) -> None:
    found = plan(changed(model(), {UP_PROJ: plain(256, width)}), group_size=asked)
    assert found[UP_PROJ].scheme == Scheme(4, size)
    assert found[UP_PROJ].reason == f"{asked} does not divide {width}"


@pytest.mark.parametrize("asked", GROUP_SIZES)
def test_the_group_size_that_was_asked_for_needs_no_reason(asked: int) -> None:
    found = plan(changed(model(), {UP_PROJ: plain(256, 512)}), group_size=asked)
    assert (found[UP_PROJ].scheme, found[UP_PROJ].reason) == (Scheme(4, asked), "")


@pytest.mark.parametrize("width", [48, 31, 1])
def test_a_width_that_no_group_size_divides_is_kept(width: int) -> None:
    odd = {UP_PROJ: plain(256, width)}
    found = plan(changed(model(), odd))
    assert found[UP_PROJ] == PlannedWeight(
        odd[UP_PROJ], None, torch.bfloat16, f"no group size divides its width of {width}"
    )
    assert plan(changed(model(), odd), bits=8)[UP_PROJ].scheme == Scheme(8, width)


@pytest.mark.parametrize(
    "odd", [plain(256), plain(2, 4, 128), plain(), plain(256, 128, dtype=torch.int8)]
)
def test_what_is_no_matrix_of_floating_point_numbers_is_kept(odd: TensorInfo) -> None:
    found = plan(changed(model(), {UP_PROJ: odd}), mixed=(("*.up_proj", 8),))
    assert found[UP_PROJ].scheme is None
    assert reasons(found) == {UP_PROJ: "not a matrix of floating-point numbers"}


# ----------------------------------------------------------------------------------------------
# Names


def test_biases_are_kept_without_a_reason() -> None:
    found = plan(model("biases"))
    biases = [name for name in found if name.endswith("bias")]
    assert len(biases) == 14
    assert not any(found[name].scheme for name in biases)
    assert {name: found[name].scheme for name in found.keys() - {*biases}} == schemes(plan(model()))
    assert reasons(found) == {}


def test_a_model_without_its_head_is_quantized_as_with_it() -> None:
    prefix = "model."
    tensors = model().tensors
    base = {n.removeprefix(prefix): info for n, info in tensors.items() if n.startswith(prefix)}
    found = plan(Checkpoint(base, {}), skip=("layers.1.*",))
    expected = schemes(plan(model(), skip=("model.layers.1.*",)))
    assert {prefix + name: scheme for name, scheme in schemes(found).items()} | {
        LM_HEAD: Scheme(8, 128)
    } == expected


@pytest.mark.parametrize("head", ["score", "classifier", "qa_outputs"])
def test_heads_of_other_models_are_kept(head: str) -> None:
    found = plan(changed(model(), {f"{head}.weight": plain(3, 128)}), bits=8)
    assert found[f"{head}.weight"].scheme is None
    assert reasons(found) == {}


# ----------------------------------------------------------------------------------------------
# Tied embeddings


def test_tied_embeddings_are_kept() -> None:
    found = plan(model("tied"), tied=True)
    assert found[EMBEDDINGS].scheme is None
    assert LM_HEAD not in found
    assert reasons(found) == {}


def test_a_head_stored_beside_tied_embeddings_is_kept_with_the_reason() -> None:
    found = plan(changed(model("tied"), {LM_HEAD: plain(97, 128)}), tied=True)
    assert found[LM_HEAD].scheme is None
    assert reasons(found) == {LM_HEAD: "tied to the embeddings"}


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_head_that_mixed_names_gets_a_copy_of_the_embeddings(bits: int, stored: bool) -> None:
    beside = {LM_HEAD: plain(97, 128)} if stored else {}
    checkpoint = changed(model("tied"), beside)
    found = plan(checkpoint, tied=True, mixed=(("lm_head", bits),))
    assert found[LM_HEAD].scheme == Scheme(bits, 128)
    assert found[LM_HEAD].source is checkpoint.tensors[EMBEDDINGS]
    assert found[EMBEDDINGS].source is checkpoint.tensors[EMBEDDINGS]
    assert found[EMBEDDINGS].scheme is None
    assert reasons(found) == {}


def test_a_tied_head_may_be_skipped_and_stays_tied() -> None:
    found = plan(model("tied"), tied=True, skip=("lm_head",), mixed=(("lm_head", 8),))
    assert LM_HEAD not in found
    assert schemes(found) == schemes(plan(model("tied"), tied=True))


def test_embeddings_stored_as_the_head_are_kept() -> None:
    tensors = dict(model().tensors)
    del tensors[EMBEDDINGS]
    found = plan(Checkpoint(tensors, {}), tied=True, mixed=(("lm_head", 8),))
    assert found[LM_HEAD].scheme is None
    assert reasons(found) == {LM_HEAD: "tied to the embeddings"}


# ----------------------------------------------------------------------------------------------
# From one plan to another


def test_what_is_quantized_already_is_refused() -> None:
    done = {UP_PROJ: quantized(Scheme(4, 128), 256, 128)}
    with pytest.raises(CheckpointError, match=rf"^already quantized: {UP_PROJ}$") as caught:
        plan(changed(model(), done))
    assert "--dequantize" in str(caught.value.hint)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_dequantization_makes_everything_plain(dtype: torch.dtype) -> None:
    done = {
        UP_PROJ: quantized(Scheme(4, 16), 256, 128, dtype=dtype),
        LM_HEAD: quantized(Scheme(8, 128), 97, 128, dtype=dtype),
        "model.steps": plain(dtype=torch.int64),
    }
    checkpoint = changed(model(), done)
    found = plan_dequantization(checkpoint)
    assert [*found] == [*checkpoint.tensors]
    assert not any(schemes(found).values())
    assert found[UP_PROJ].layouts(UP_PROJ) == {UP_PROJ: Layout((256, 128), torch.bfloat16)}
    assert found["model.steps"].dtype == torch.int64
    assert all(found[name].source is info for name, info in checkpoint.tensors.items())


def test_a_plain_model_is_not_dequantized() -> None:
    with pytest.raises(CheckpointError, match=r"^no weight is quantized$"):
        plan_dequantization(model())


def test_weights_are_raised_to_int8_with_the_reason() -> None:
    before = plan(changed(model(), {UP_PROJ: plain(256, 96)}))
    kept = dict(before)
    found = raised_to_int8(before, [UP_PROJ, DOWN_PROJ])
    assert before == kept
    assert [*found] == [*before]
    assert schemes(found) == schemes(before) | {
        UP_PROJ: Scheme(8, 96),
        DOWN_PROJ: Scheme(8, 256),
    }
    assert reasons(found) == dict.fromkeys((UP_PROJ, DOWN_PROJ), "raised to meet the target")
    assert raised_to_int8(before, []) == before


# ----------------------------------------------------------------------------------------------
# A weight


def test_a_weight_becomes_the_parts_of_its_scheme() -> None:
    layer = "model.layers.0.mlp.up_proj"
    int4 = PlannedWeight(plain(10, 64), Scheme(4, 32), torch.bfloat16)
    assert int4.layouts(f"{layer}.weight") == {
        f"{layer}._weight_qdata": Layout((10, 32), torch.int8),
        f"{layer}._weight_scale": Layout((2, 10), torch.bfloat16),
        f"{layer}._weight_zero_point": Layout((2, 10), torch.bfloat16),
    }
    assert (int4.values, int4.nbytes) == (640, 320 + 40 + 40)
    int8 = PlannedWeight(plain(10, 64), Scheme(8, 64), torch.bfloat16)
    assert int8.layouts("lm_head.weight") == {
        "lm_head._weight_qdata": Layout((10, 64), torch.int8),
        "lm_head._weight_scale": Layout((10, 1), torch.float32),
        "lm_head._weight_zero_point": Layout((10, 1), torch.int8),
    }
    assert int8.nbytes == 640 + 40 + 10
    kept = PlannedWeight(plain(10, 64), None, torch.bfloat16)
    assert kept.layouts("a.weight") == {"a.weight": Layout((10, 64), torch.bfloat16)}
    assert (kept.nbytes, kept.source.nbytes) == (1280, 2560)


@given(
    shape=st.lists(st.integers(1, 50), max_size=3),
    values=st.integers(1, 5000),
)
def test_blocks_cover_every_row_once_and_are_of_the_size_asked_for(
    shape: list[int], values: int
) -> None:
    weight = PlannedWeight(plain(*shape), None, torch.bfloat16)
    found = list(blocks(weight, values))
    rows = shape[0] if shape else 1
    assert [row for start, stop in found for row in range(start, stop)] == [*range(rows)]
    row = weight.values // rows
    assert all(stop - start == 1 or (stop - start) * row <= values for start, stop in found)
    assert all((stop - start) * row > values / 2 for start, stop in found[:-1])
