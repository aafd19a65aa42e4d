"""A model folder becomes another: the whole weight, quantized at once, is the truth."""

import json
import math
import os
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchao.quantization import Int4Tensor, Int8Tensor
from transformers import LlamaForCausalLM as Reference

from llamacli import conversion
from llamacli.checkpoint import open_checkpoint
from llamacli.config import LlamaConfig
from llamacli.conversion import convert_folder
from llamacli.errors import CheckpointError
from llamacli.quantization import Scheme, quantize, unpack_int4
from llamacli.quantization_plan import (
    EMBEDDINGS,
    LM_HEAD,
    Plan,
    Recipe,
    plan_dequantization,
    plan_quantization,
)
from llamacli.torchao_format import PARTS, part_name
from tests import attacks
from tests.tiny import reference
from tests.torchao_folders import CONFIG, MODEL, ours

MEGABYTE = 1_000_000
SIZES = {"hidden_size": 64, "intermediate_size": 96}  # groups of 64, and of 32 where 64 do not fit
UP_PROJ = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"
RECIPES = {
    "default": Recipe(),
    "mse": Recipe(group_size=32, algorithm="mse"),
    "hqq-and-int4-head": Recipe(group_size=32, algorithm="hqq", mixed=(("lm_head", 4),)),
    "int8-but-the-head": Recipe(bits=8, skip=("lm_head",)),
    "mixed": Recipe(mixed=(("*.down_proj", 8), ("*.layers.1.*.v_proj", 8))),
}
each_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def write_source(
    folder: Path,
    kind: str = "plain",
    dtype: torch.dtype = torch.bfloat16,
    max_shard_size: int = 10**9,
) -> Path:
    reference(kind, **SIZES).to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


def make_plan(source: Path, recipe: Recipe) -> Plan:
    tied = LlamaConfig.from_file(source / CONFIG).tie_word_embeddings
    return plan_quantization(open_checkpoint(source), recipe, tied=tied)


def convert(
    source: Path, target: Path, recipe: Recipe | None = None, **options: Any
) -> dict[str, float]:
    """Quantize by a recipe, or without one dequantize."""
    target.mkdir()
    opened = open_checkpoint(source)
    plan = make_plan(source, recipe) if recipe else plan_dequantization(opened)
    algorithm = recipe.algorithm if recipe else "rtn"
    return convert_folder(source, opened, plan, target, algorithm=algorithm, **options)


def stored(folder: Path) -> dict[str, Tensor]:
    """As the safetensors library reads all shards."""
    return {
        k: t for path in sorted(folder.glob("*.safetensors")) for k, t in load_file(path).items()
    }


def expected_of(source: Path, recipe: Recipe) -> dict[str, Tensor]:
    """What should be stored: each weight quantized as a whole."""
    weights, expected = stored(source), {}
    for name, planned in make_plan(source, recipe).items():
        weight = weights[name if name in weights else EMBEDDINGS].bfloat16()
        if planned.scheme is None:
            expected[name] = weight
            continue
        found = quantize(weight, planned.scheme, recipe.algorithm)
        for part in PARTS:
            zeros = torch.zeros(len(weight), 1, dtype=torch.int8)
            expected[part_name(name, part)] = getattr(found, part, zeros)
    return expected


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ----------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("block_values", [150, 1000, 1 << 20])
@each_recipe
def test_weights_are_those_quantized_as_a_whole(
    recipe: Recipe,
    block_values: int,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conversion, "BLOCK_VALUES", block_values)
    convert(source, tmp_path / "new", recipe)
    assert_same(stored(tmp_path / "new"), expected_of(source, recipe))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes_are_bfloat16_first(dtype: torch.dtype, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "biases", dtype)
    convert(source, tmp_path / "new", Recipe())
    assert_same(stored(tmp_path / "new"), expected_of(source, Recipe()))


def test_integers_and_scalars_pass_unchanged(source: Path, tmp_path: Path) -> None:
    others = {
        "model.steps": torch.tensor(12345678901),
        "model.factor": torch.tensor(0.5).bfloat16(),
        "model.mask": torch.tensor([[True, False], [False, True]]),
    }
    convert(with_weights(source, tmp_path / "source", others), tmp_path / "new", Recipe())
    assert_same(stored(tmp_path / "new"), expected_of(source, Recipe()) | others)


def relative_error(weight: Tensor, parts: dict[str, Tensor]) -> float:
    """In float64, from the formulas: w' = q · scale + zero point, int8 without the latter."""
    scale, zero_point = (parts[part].double() for part in ("scale", "zero_point"))
    if len(scale) == len(weight) and scale.shape[1] == 1:
        back = parts["qdata"] * scale
    else:
        size = weight.shape[1] // len(scale)
        scale, zero_point = (p.T.repeat_interleave(size, dim=1) for p in (scale, zero_point))
        back = unpack_int4(parts["qdata"]) * scale + zero_point
    return float((back - weight.double()).norm() / weight.double().norm())


@each_recipe
def test_the_errors_are_those_of_what_was_written(
    recipe: Recipe, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "BLOCK_VALUES", 500)
    errors = convert(source, tmp_path / "new", recipe)
    weights, found = stored(source), stored(tmp_path / "new")
    plan = make_plan(source, recipe)
    assert [*errors] == [name for name, planned in plan.items() if planned.scheme]
    for name, error in errors.items():
        parts = {part: found[part_name(name, part)] for part in PARTS}
        assert error == pytest.approx(relative_error(weights[name], parts), rel=1e-5)


def test_a_weight_of_zeros_has_no_error(source: Path, tmp_path: Path) -> None:
    changed = with_weights(source, tmp_path / "zeros", {UP_PROJ: torch.zeros(96, 64).bfloat16()})
    assert convert(changed, tmp_path / "new", Recipe())[UP_PROJ] == 0


@each_recipe
def test_dequantized_weights_are_the_quantized_ones_in_bfloat16(
    recipe: Recipe, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "BLOCK_VALUES", 500)
    convert(source, tmp_path / "small", recipe)
    assert convert(tmp_path / "small", tmp_path / "plain") == {}
    expected = {
        name: weight if isinstance(weight, Tensor) else weight.dequantize(torch.float32).bfloat16()
        for name, weight in open_checkpoint(tmp_path / "small")
    }
    assert_same(stored(tmp_path / "plain"), expected)
    before, after = (
        json.loads((folder / CONFIG).read_text()) for folder in (source, tmp_path / "plain")
    )
    assert after == before
    theirs = Reference.from_pretrained(tmp_path / "plain").state_dict()
    assert_same(theirs, expected)


def test_shards_go_in_and_other_shards_come_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_source(tmp_path / "source", max_shard_size=20_000)
    convert(source, tmp_path / "new", Recipe(), max_shard_bytes=8000)
    expected = expected_of(source, Recipe())
    assert_same(stored(tmp_path / "new"), expected)
    shards = sorted(path.name for path in (tmp_path / "new").glob("*.safetensors"))
    assert 1 < len(shards) < len([*source.glob("*.safetensors")])
    index = json.loads((tmp_path / "new" / f"{MODEL}.index.json").read_text())
    assert index["weight_map"].keys() == expected.keys()
    assert sorted(set(index["weight_map"].values())) == shards
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())
    caplog.clear()
    assert open_checkpoint(tmp_path / "new").tensors.keys() == stored(source).keys()
    assert caplog.messages == []


# ----------------------------------------------------------------------------------------------
# Other files


def test_config_json_keeps_what_it_says(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "new", Recipe(group_size=32))
    before, after = (json.loads((f / CONFIG).read_text()) for f in (source, tmp_path / "new"))
    quantization = after.pop("quantization_config")
    assert after == before
    assert quantization["quant_method"] == "torchao"
    assert quantization["quant_type"]["default"]["_type"] == "Int4WeightOnlyConfig"
    assert quantization["quant_type"]["default"]["_data"]["group_size"] == 32


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"torch_dtype": "float16"}, {"torch_dtype": "bfloat16"}),
        (
            {"dtype": "float32", "torch_dtype": "float32"},
            {"dtype": "bfloat16", "torch_dtype": "bfloat16"},
        ),
        ({}, {"torch_dtype": "bfloat16"}),
        (
            {
                "quantization_config": {"quant_method": "of another time"},
                "new_key": [1, {"a": "é"}],
            },
            {"torch_dtype": "bfloat16", "new_key": [1, {"a": "é"}]},
        ),
    ],
)
def test_config_json_says_what_has_changed(
    before: dict[str, Any], after: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    folder = with_weights(source, tmp_path / "source", {})
    config = json.loads((source / CONFIG).read_text())
    del config["dtype"]
    (folder / CONFIG).write_text(json.dumps(config | before))
    convert(folder, tmp_path / "new", Recipe(bits=8))
    written = json.loads((tmp_path / "new" / CONFIG).read_text())
    by = written.pop("quantization_config")["quant_type"]["default"]["_type"]
    assert (written, by) == (config | after, "Int8WeightOnlyConfig")


def test_what_a_model_needs_is_carried_and_nothing_else(source: Path, tmp_path: Path) -> None:
    folder = with_weights(source, tmp_path / "source", {})
    carried = """generation_config.json tokenizer.json tokenizer.model tokenizer_config.json NOTICE
    special_tokens_map.json added_tokens.json chat_template.jinja LICENSE LICENSE.txt USE_POLICY.md
    """
    left = """README.md pytorch_model.bin original.pth .gitattributes adapter.safetensors
    model-00001-of-00002.safetensors config.json.bak params.json model.py"""
    for name in (carried + left).split():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(f"{name}\r\n\xff".encode("latin-1"))
    (folder / "NOTICE").unlink()  # as in a hub's snapshot
    (folder / "NOTICE").symlink_to(source / CONFIG)
    (folder / "tokenizer.d").mkdir()
    convert(folder, tmp_path / "new", Recipe())
    found = contents(tmp_path / "new")
    assert found.keys() == {*carried.split(), CONFIG, MODEL}
    assert {name: found[name] for name in carried.split()} == {
        name: (folder / name).read_bytes() for name in carried.split()
    }
    assert not (tmp_path / "new" / "NOTICE").is_symlink()


# ----------------------------------------------------------------------------------------------
# Tied embeddings


def test_a_head_of_its_own_is_written_and_config_json_says_so(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "tied")
    assert LM_HEAD not in stored(source)
    recipe = Recipe(mixed=(("lm_head", 8),))
    errors = convert(source, tmp_path / "new", recipe)
    assert_same(stored(tmp_path / "new"), expected_of(source, recipe))
    assert 0 < errors[LM_HEAD] < 0.01
    assert json.loads((tmp_path / "new" / CONFIG).read_text())["tie_word_embeddings"] is False
    head = stored(tmp_path / "new")["lm_head._weight_qdata"]
    embeddings = stored(source)[EMBEDDINGS]
    assert torch.equal(head, quantize(embeddings, Scheme(8, 64)).qdata)


def test_a_head_beside_tied_embeddings_does_not_count(tmp_path: Path) -> None:
    source = write_source(tmp_path / "tied", "tied")
    beside = with_weights(source, tmp_path / "beside", {LM_HEAD: torch.ones(97, 64).bfloat16()})
    recipe = Recipe(mixed=(("lm_head", 4),))
    for name, folder in {"a": source, "b": beside}.items():
        convert(folder, tmp_path / name, recipe)
    found, expected = (stored(tmp_path / name) for name in "ba")
    assert_same(found, expected)
    assert contents(tmp_path / "a")[CONFIG] == contents(tmp_path / "b")[CONFIG]


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(mixed=(("lm_head", 8),))])
def test_tied_embeddings_stored_as_the_head_stay_tied(recipe: Recipe, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "tied")
    tensors = stored(source)
    tensors[LM_HEAD] = tensors.pop(EMBEDDINGS)
    save_file(tensors, source / MODEL, metadata={"format": "pt"})
    convert(source, tmp_path / "new", recipe)
    assert torch.equal(stored(tmp_path / "new")[LM_HEAD], tensors[LM_HEAD])
    assert json.loads((tmp_path / "new" / CONFIG).read_text())["tie_word_embeddings"] is True
    model = ours(tmp_path / "new", "bfloat16")
    assert torch.equal(model.model.embed_tokens.weight, tensors[LM_HEAD])


# ----------------------------------------------------------------------------------------------
# transformers


@pytest.mark.parametrize(
    ("kind", "recipe", "max_shard_bytes"),
    [
        ("plain", Recipe(), 10**9),
        ("plain", Recipe(bits=8), 10**9),
        ("biases", Recipe(group_size=32, mixed=(("*.down_proj", 8), ("lm_head", 4))), 10**9),
        ("gqa", Recipe(mixed=(("*.layers.0.*", 8),), skip=("*.q_proj",)), 8000),
        ("tied", Recipe(), 10**9),
        ("tied", Recipe(mixed=(("lm_head", 8),)), 8000),
    ],
)
def test_transformers_reads_every_weight(
    kind: str, recipe: Recipe, max_shard_bytes: int, tmp_path: Path
) -> None:
    source = write_source(tmp_path / "source", kind)
    convert(source, tmp_path / "new", recipe, max_shard_bytes=max_shard_bytes)
    theirs = Reference.from_pretrained(tmp_path / "new")
    found, classes = {}, Counter()
    for name, tensor in theirs.state_dict().items():
        classes[type(tensor)] += 1
        if type(tensor) not in (Int4Tensor, Int8Tensor):
            found[name] = tensor
            continue
        found |= {part_name(name, part): getattr(tensor, part) for part in PARTS}
        assert tensor.shape == theirs.get_parameter(name).shape
    expected = expected_of(source, recipe)
    if LM_HEAD not in make_plan(source, recipe) and kind == "tied":
        assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
        expected[LM_HEAD] = expected[EMBEDDINGS]
    assert_same(found, expected)
    planned = Counter(to.scheme.bits for to in make_plan(source, recipe).values() if to.scheme)
    assert (classes[Int4Tensor], classes[Int8Tensor]) == (planned[4], planned[8])


# ----------------------------------------------------------------------------------------------
# Threads


def test_the_bytes_are_the_same_whatever_the_threads(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "BLOCK_VALUES", 300)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            errors = convert(
                source, tmp_path / str(threads), RECIPES["mixed"], max_shard_bytes=9000
            )
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
        found.append((contents(tmp_path / str(threads)), errors))
    assert found[0] == found[1]


def test_progress_adds_up_to_the_bytes_that_are_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "BLOCK_VALUES", 300)
    convert(source, tmp_path / "small", Recipe(), progress=(seen := Progress()))
    assert seen.bytes == {name: tensor.nbytes for name, tensor in stored(source).items()}
    assert seen.names == [*open_checkpoint(source).tensors]
    convert(tmp_path / "small", tmp_path / "plain", progress=(seen := Progress()))
    opened = open_checkpoint(tmp_path / "small")
    assert seen.bytes == {name: info.nbytes for name, info in opened.tensors.items()}
    assert seen.bytes.total() == opened.total_bytes


class Progress:
    """Adds up what is reported."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()

    def __call__(self, name: str, nbytes: int) -> None:
        self.bytes[name] += nbytes

    @property
    def names(self) -> list[str]:
        return [*self.bytes]


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt])
def test_an_exception_midway_cancels_what_has_not_begun(
    problem: type[BaseException], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "BLOCK_VALUES", 1)  # a block for each row
    begun: list[int] = []
    leaving = threading.Event()
    really = conversion._convert

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *args: bool, **options: bool) -> None:
            leaving.set()  # only now may the threads go on
            super().shutdown(*args, **options)

    def slow(*arguments: Any) -> object:
        begun.append(len(begun))
        assert len(begun) == 1 or leaving.wait(60)
        return really(*arguments)

    def fail(name: str, nbytes: int) -> None:
        raise problem

    monkeypatch.setattr(conversion, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(conversion, "_convert", slow)
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(problem):
        convert(source, tmp_path / "new", Recipe(), progress=fail)
    assert len(begun) <= 2
    assert len(os.listdir("/dev/fd")) == before
    assert torch.get_num_threads() == 1


# ----------------------------------------------------------------------------------------------
# Faults


def with_weights(source: Path, folder: Path, weights: dict[str, Tensor]) -> Path:
    """A copy of a folder, with some weights changed or added."""
    shutil.copytree(source, folder)
    save_file(stored(source) | weights, folder / MODEL, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        (UP_PROJ, "rtn"),
        (UP_PROJ, "mse"),
        (UP_PROJ, "hqq"),
        (LM_HEAD, "rtn"),
        (EMBEDDINGS, "rtn"),
        (NORM, "rtn"),
    ],
)
def test_fault_014_a_weight_that_is_not_finite_is_named(
    name: str,
    value: float,
    algorithm: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conversion, "BLOCK_VALUES", 500)
    weight = stored(source)[name]
    weight.view(-1)[-1] = value
    changed = with_weights(source, tmp_path / "source", {name: weight})
    with pytest.raises(CheckpointError) as caught:
        convert(changed, tmp_path / "new", Recipe(algorithm=algorithm))
    assert str(caught.value) == f"{name} holds values that are not finite"
    assert torch.get_num_threads() == 1


def test_fault_014_nor_is_a_group_of_nothing_else(source: Path, tmp_path: Path) -> None:
    weight = torch.full((96, 64), torch.inf).bfloat16()
    changed = with_weights(source, tmp_path / "source", {UP_PROJ: weight})
    with pytest.raises(CheckpointError, match=rf"^{UP_PROJ} holds values that are not finite"):
        convert(changed, tmp_path / "new", Recipe())


@pytest.mark.parametrize("name", [UP_PROJ, NORM])
def test_fault_014_nor_is_a_value_too_large_for_bfloat16(name: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", dtype=torch.float32)
    weight = stored(source)[name]
    weight.view(-1)[3] = 3.4e38
    changed = with_weights(source, tmp_path / "changed", {name: weight})
    with pytest.raises(CheckpointError, match=rf"^{name} holds values that are not finite"):
        convert(changed, tmp_path / "new", Recipe())


@pytest.mark.parametrize("part", ["scale", "zero_point"])
def test_fault_014_nor_is_a_scale_that_becomes_a_weight(
    part: str, source: Path, tmp_path: Path
) -> None:
    convert(source, tmp_path / "small", Recipe())
    tensors, metadata = stored(tmp_path / "small"), metadata_of(tmp_path / "small")
    tensors[part_name(UP_PROJ, part)][0, -1] = math.nan
    save_file(tensors, tmp_path / "small" / MODEL, metadata=metadata)
    with pytest.raises(CheckpointError, match=rf"^{UP_PROJ} holds values that are not finite"):
        convert(tmp_path / "small", tmp_path / "plain")


def metadata_of(folder: Path) -> dict[str, str]:
    with safe_open(folder / MODEL, "pt") as file:
        return file.metadata()


def test_fault_028_a_weight_stored_plainly_and_quantized_is_refused(
    source: Path, tmp_path: Path
) -> None:
    convert(source, tmp_path / "new", Recipe())
    both = stored(tmp_path / "new") | {UP_PROJ: stored(source)[UP_PROJ]}
    save_file(both, tmp_path / "new" / MODEL, metadata=metadata_of(tmp_path / "new"))
    with pytest.raises(CheckpointError, match=rf"^stored both plainly and quantized: {UP_PROJ}$"):
        open_checkpoint(tmp_path / "new")


def test_fault_028_where_the_metadata_was_lost_the_hint_says_so(
    source: Path, tmp_path: Path
) -> None:
    convert(source, tmp_path / "new", Recipe())
    save_file(stored(tmp_path / "new"), tmp_path / "new" / MODEL)
    with pytest.raises(CheckpointError, match="the weights lack") as caught:
        ours(tmp_path / "new")
    assert "metadata that describes quantized weights was lost" in str(caught.value.hint)


def test_a_full_disk_is_an_os_error(source: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    with attacks.full_disk(20_000), pytest.raises(OSError, match="File too large"):
        convert(source, tmp_path / "new", Recipe())
    assert len(os.listdir("/dev/fd")) == before


# ----------------------------------------------------------------------------------------------
# Memory


def test_a_model_of_any_size_needs_the_memory_of_a_few_blocks(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    shape = [50_000, 4096]
    write_sparse(source, UP_PROJ, shape)
    assert (source / MODEL).stat().st_size > 400 * MEGABYTE
    with attacks.memory_limit(100 * MEGABYTE):
        errors = convert(source, target, Recipe(group_size=256))
    assert errors == {UP_PROJ: 0.0}
    written = open_checkpoint(target).tensors[UP_PROJ]
    assert (written.shape, written.nbytes) == (tuple(shape), math.prod(shape) * (4 + 32 / 256) / 8)
    (target / MODEL).unlink()  # 100 MB


def write_sparse(folder: Path, name: str, shape: list[int]) -> None:
    """A folder with a bfloat16 weight of zeros that takes no space on the disk."""
    folder.mkdir()
    (folder / CONFIG).write_text('{"model_type": "llama"}')
    size = 2 * math.prod(shape)
    start = attacks.weights(
        {name: attacks.entry(dtype="BF16", shape=shape, data_offsets=[0, size])}, b""
    )
    with (folder / MODEL).open("wb") as file:
        file.write(start)
        file.truncate(len(start) + size)
