"""What is wrong with quantized weights is said in plain words, before memory is allocated."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from llamacli.checkpoint import open_checkpoint
from llamacli.config import LlamaConfig
from llamacli.errors import CheckpointError
from llamacli.model import LlamaForCausalLM
from llamacli.quantization import Scheme, quantize_int4
from llamacli.torchao_format import (
    check_quantization_config,
    metadata_for,
    part_layouts,
    part_name,
)
from tests import attacks
from tests.tiny import SIZES, reference
from tests.torchao_folders import (
    CONFIG,
    MODEL,
    Q_PROJ,
    WEIGHT,
    ours,
    set_config,
    write_int4,
    write_int8,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_int4(reference(), tmp_path, 16)
    return tmp_path


# ----------------------------------------------------------------------------------------------
# Faults of config.json


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "a\x1b[2Jb", ["x"]])
def test_fault_027_foreign_quantization_is_refused_by_name(method: object, folder: Path) -> None:
    set_config(folder, {"quant_method": method, "bits": 4})
    shown = str(method).replace("\x1b", r"\x1b")
    assert refusal(folder) == f"weights quantized by {shown} cannot be read"


def test_fault_027_no_quantization_is_fine_and_an_unnamed_one_is_not() -> None:
    check_quantization_config(None)
    with pytest.raises(CheckpointError, match="an unnamed method"):
        check_quantization_config({})


INT4 = {"_type": "Int4WeightOnlyConfig", "_version": 2, "_data": {}}
INT8 = {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}


def by_layer(**configs: object) -> dict[str, object]:
    return {"_type": "FqnToConfig", "_version": 1, "_data": {"fqn_to_config": configs}}


def check_torchao(quant_type: object) -> None:
    check_quantization_config({"quant_method": "torchao", "quant_type": quant_type})


@pytest.mark.parametrize(
    ("quant_type", "words"),
    [
        ({"default": {"_type": "Float8WeightOnlyConfig", "_version": 2}}, "Float8WeightOnlyConfig"),
        ({"default": {"_type": "Float8WeightOnlyConfig"}}, "Float8WeightOnlyConfig"),
        ({"default": {"_type": ["x"], "_version": 2}}, r"\['x'\] version 2"),
        ({"default": {"_type": "\x1b[2J", "_version": 2}}, r"\\x1b\[2J version 2"),
        ({"default": {"_type": "x" * 10_000, "_version": 2}}, "xxx… cannot be read"),
        ({"default": INT4 | {"_version": [2]}}, r"version \[2\]"),
        ({"default": {"_type": "Int4WeightOnlyConfig"}}, "version None"),
        ({"default": {}}, "None version None"),
        ({"default": None}, "an unnamed config"),
        ({"default": "Int4WeightOnlyConfig"}, "an unnamed config"),
        ("int4_weight_only", "an unnamed config"),
        (None, "an unnamed config"),
        ({"default": by_layer() | {"_data": None}}, "without fqn_to_config"),
        ({"default": by_layer() | {"_data": {"fqn_to_config": []}}}, "without fqn_to_config"),
        ({"default": by_layer(a=INT4, b=by_layer(c=INT4))}, "nested or malformed entry"),
        ({"default": by_layer(a=INT4, b="int4")}, "nested or malformed entry"),
        ({"default": by_layer(a=INT4, b={})}, "None version None"),
        ({"default": by_layer(a=None, b=INT8 | {"_version": 7})}, "Int8.* version 7"),
    ],
)
def test_fault_028_a_config_of_torchao_that_is_not_known_is_refused(
    quant_type: object, words: str
) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        check_torchao(quant_type)
    message = str(caught.value)
    assert "Int4WeightOnlyConfig version 2, Int8WeightOnlyConfig version 2" in message
    assert message.isprintable()
    assert len(message) < 400


def test_known_configs_of_torchao_pass() -> None:
    for known in (INT4, INT8, by_layer(_default=INT4, lm_head=None, a=INT8), by_layer()):
        check_torchao({"default": known})


@pytest.mark.parametrize("version", [1, 3])
def test_fault_118_older_and_newer_configs_of_torchao_are_named(version: int, folder: Path) -> None:
    default = INT4 | {"_version": version}
    set_config(folder, {"quant_method": "torchao", "quant_type": {"default": default}})
    assert f"torchao's Int4WeightOnlyConfig version {version} cannot be read" in refusal(folder)


# ----------------------------------------------------------------------------------------------
# Faults of the metadata

Metadata = dict[str, str]


def changed(**values: object) -> Callable[[Metadata], None]:
    """An attack that changes fields of one weight's metadata."""

    def attack(metadata: Metadata) -> None:
        metadata[WEIGHT] = json.dumps(json.loads(metadata[WEIGHT]) | values)

    return attack


def data(**values: object) -> Callable[[Metadata], None]:
    """An attack on its _data."""

    def attack(metadata: Metadata) -> None:
        good = json.loads(metadata[WEIGHT])["_data"]
        changed(_data=good | values)(metadata)

    return attack


def replaced(key: str, text: str) -> Callable[[Metadata], None]:
    return lambda metadata: metadata.update({key: text})


def int8(**values: object) -> Callable[[Metadata], None]:
    good = {"block_size": [1, 16], "act_quant_kwargs": None, "dtype": {"_data": "bfloat16"}}
    return changed(_type="Int8Tensor", _data=good | values)


NOT_WEIGHT_ONLY = "its description is not that of weight-only quantization"

# id → what is done to the metadata, and words of the error
FORGERIES: dict[str, tuple[Callable[[Metadata], object], str]] = {
    "fault-028-forged-type": (changed(_type="os.system"), "is torchao's os.system, which cannot"),
    "fault-028-type-a-list": (changed(_type=["Int4Tensor"]), r"torchao's \['Int4Tensor'\], which"),
    "fault-028-no-type": (changed(_type=None), "torchao's None, which cannot be read"),
    "fault-028-escape-in-type": (changed(_type="\x1b[2J"), r"torchao's \\x1b\[2J, which"),
    "fault-028-long-type": (changed(_type="x" * 100_000), "xxx…, which cannot be read"),
    "fault-028-names-not-json": (replaced("tensor_names", "[1"), "tensor_names is not JSON"),
    "fault-028-names-deep": (replaced("tensor_names", "[" * 100_000), "tensor_names is not JSON"),
    "fault-028-names-an-object": (replaced("tensor_names", "{}"), "must be a list of names"),
    "fault-028-names-numbers": (replaced("tensor_names", "[1]"), "must be a list of names"),
    "fault-028-name-unknown": (replaced("tensor_names", '["x"]'), "metadata lacks x"),
    "fault-028-escape-in-name": (replaced("tensor_names", '["\\u001b"]'), r"lacks \\x1b"),
    "fault-028-no-names": (
        lambda metadata: metadata.pop("tensor_names"),
        r"the weights lack model\.layers\.0\.self_attn\.q_proj\.weight",
    ),
    "fault-028-names-incomplete": (
        replaced("tensor_names", '["model.norm.weight"]'),
        r"the weights lack model\.layers\.0\.self_attn\.q_proj\.weight",
    ),
    "fault-028-weight-lost": (lambda m: m.pop(WEIGHT), r"metadata lacks model.*q_proj\.weight"),
    "fault-028-weight-a-list": (replaced(WEIGHT, "[]"), "must be an object with _type"),
    "fault-028-weight-no-json": (replaced(WEIGHT, "{"), r"q_proj\.weight is not JSON"),
    "fault-028-weight-plain": (replaced(WEIGHT, '{"_type": "Tensor"}'), "lack model.*q_proj"),
    "fault-028-part-missing": (
        changed(_tensor_data_names=["qdata", "scale"]),
        "its parts must be qdata, scale, zero_point",
    ),
    "fault-028-part-extra": (
        changed(_tensor_data_names=["qdata", "scale", "zero_point", "act_pre_scale"]),
        "its parts must be qdata, scale, zero_point",
    ),
    "fault-028-part-twice": (
        changed(_tensor_data_names=["qdata", "scale", "scale", "zero_point"]),
        "its parts must be qdata, scale, zero_point",
    ),
    "fault-028-parts-odd": (changed(_tensor_data_names=[1, [], None]), "its parts must be"),
    "fault-028-parts-no-list": (changed(_tensor_data_names="qdata"), NOT_WEIGHT_ONLY),
    "fault-028-no-data": (changed(_data=None), NOT_WEIGHT_ONLY),
    "fault-028-group-size-other": (data(block_size=[1, 32]), r"scale is \(2, 32\).*\(1, 32\)"),
    "fault-028-group-size-odd": (data(block_size=[1, 1]), "groups of 1, which must be even"),
    "fault-028-group-size-no-divisor": (data(block_size=[1, 24]), "24, which .* divide 32"),
    "fault-028-group-size-huge": (data(block_size=[1, 10**4000]), "000…, which .* divide 32"),
    "fault-028-group-size-endless": (
        lambda m: m.update({WEIGHT: m[WEIGHT].replace("16", "1" * 10_000)}),
        "is not JSON",
    ),
    "fault-028-group-size-0": (data(block_size=[1, 0]), "groups of 0, which must"),
    "fault-028-group-size-negative": (data(block_size=[1, -16]), "groups of -16, which must"),
    "fault-028-group-size-a-fraction": (data(block_size=[1, 16.0]), NOT_WEIGHT_ONLY),
    "fault-028-group-size-text": (data(block_size="16"), NOT_WEIGHT_ONLY),
    "fault-028-rows-in-a-block": (data(block_size=[2, 16]), NOT_WEIGHT_ONLY),
    "fault-028-float8-activations": (
        data(activation_dtype={"_type": "torch.dtype", "_data": "float8_e4m3fn"}),
        NOT_WEIGHT_ONLY,
    ),
    "fault-028-int8-in-int4s-place": (int8(), r"its scale is \(2, 32\).*expected \(32, 1\)"),
    "fault-028-int8-groups": (int8(block_size=[1, 8]), r"only whole rows \(16\) are read"),
    "fault-028-int8-dynamic": (int8(act_quant_kwargs={}), NOT_WEIGHT_ONLY),
    "fault-028-int8-dtype-forged": (int8(dtype={"_data": "load"}), NOT_WEIGHT_ONLY),
    "fault-028-int8-no-dtype": (int8(dtype=None), NOT_WEIGHT_ONLY),
    "fault-118-newer-class": (
        changed(_type="Int4TilePackedTo4dTensor"),
        "is torchao's Int4TilePackedTo4dTensor, which cannot be read",
    ),
}


def rewrite(folder: Path, forge: Callable[[Metadata], object] = lambda _: None, **parts: Any):
    """The same file with other metadata, and with parts changed or, where None, left out."""
    with safe_open(folder / MODEL, "pt") as file:
        metadata = file.metadata()
    forge(metadata)
    state = load_file(folder / MODEL) | {part_name(WEIGHT, name): t for name, t in parts.items()}
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    save_file(kept, folder / MODEL, metadata=metadata)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        ours(folder)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
    return message


@pytest.mark.parametrize(("forge", "words"), FORGERIES.values(), ids=FORGERIES)
def test_forged_metadata_is_refused_in_plain_words(
    forge: Callable[[Metadata], object], words: str, folder: Path
) -> None:
    rewrite(folder, forge)
    assert re.search(words, refusal(folder))


def test_fault_028_a_part_that_is_not_in_the_file_is_named(folder: Path) -> None:
    rewrite(folder, scale=None)
    assert refusal(folder) == f"{WEIGHT} is quantized, but its scale is not in the files"


@pytest.mark.parametrize(
    ("part", "tensor", "words"),
    [
        ("qdata", torch.zeros(32, 16), "its qdata is (32, 16) of torch.float32, expected (32, 16)"),
        ("qdata", torch.zeros(32, 16, dtype=torch.int32), "its qdata is (32, 16) of torch.int32"),
        ("qdata", torch.zeros(32, 16, dtype=torch.uint8), "its qdata is (32, 16) of torch.uint8"),
        ("qdata", torch.zeros(16, 32, dtype=torch.int8), "its scale is (2, 32)"),
        ("qdata", torch.zeros(512, dtype=torch.int8), "its qdata is (512,)"),
        ("qdata", torch.zeros(1, 32, 16, dtype=torch.int8), "its qdata is (1, 32, 16)"),
        ("qdata", torch.tensor(0, dtype=torch.int8), "its qdata is ()"),
        ("qdata", torch.zeros([1] * 500, dtype=torch.int8), "groups of 16"),
        ("scale", torch.zeros([1] * 500).bfloat16(), "its scale is (1, 1, 1"),
        ("scale", torch.zeros(32, 2).bfloat16(), "its scale is (32, 2)"),
        ("scale", torch.zeros(2, 32, dtype=torch.int8), "its scale is of torch.int8"),
        ("scale", torch.zeros(2, 32).half(), "its zero_point is (2, 32) of torch.bfloat16"),
        ("zero_point", torch.zeros(2, 31).bfloat16(), "its zero_point is (2, 31)"),
    ],
)
def test_fault_028_a_part_of_another_shape_or_dtype_is_refused(
    part: str, tensor: Tensor, words: str, folder: Path
) -> None:
    rewrite(folder, **{part: tensor})
    message = refusal(folder)
    assert message.startswith(f"{WEIGHT} is quantized, but ")
    assert words in message


def test_fault_028_int8_zero_points_are_0(tmp_path: Path) -> None:
    write_int8(reference(), tmp_path)
    rewrite(tmp_path, zero_point=torch.ones(32, 1, dtype=torch.int8))
    assert "zero points of int8 weights must be 0" in refusal(tmp_path)


def test_fault_028_scales_that_are_not_finite_are_found(folder: Path) -> None:
    open_checkpoint(folder).check_finite()
    rewrite(folder, scale=torch.full((2, 32), torch.inf).bfloat16())
    with pytest.raises(CheckpointError, match=rf"{WEIGHT} holds values that are not finite"):
        open_checkpoint(folder).check_finite()


def test_fault_028_an_embedding_is_not_quantized(folder: Path) -> None:
    name = "model.embed_tokens.weight"
    state = load_file(folder / MODEL)
    weight = quantize_int4(state.pop(name), 16)
    parts = {part_name(name, p): getattr(weight, p) for p in ("qdata", "scale", "zero_point")}
    with safe_open(folder / MODEL, "pt") as file:
        metadata = file.metadata()
    save_file(state | parts, folder / MODEL, metadata=metadata | {name: metadata[WEIGHT]})
    assert refusal(folder) == f"{name} is quantized, and is not the weight of a linear layer"


@pytest.mark.parametrize(
    ("stored", "shape", "words"),
    [
        (f"{Q_PROJ}._weight_scale", [1, 32], r"its scale is \(1, 32\)"),
        ("lm_head.weight", [97, 31], r"fit the config: lm_head.weight \(file has \(97, 31\)"),
    ],
)
def test_fault_028_nothing_is_allocated_for_what_does_not_fit(
    stored: str, shape: list[int], words: str, tmp_path: Path
) -> None:
    write_sparse(tmp_path, {stored: shape})
    assert (tmp_path / MODEL).stat().st_size > 70_000_000
    with attacks.memory_limit(15_000_000), pytest.raises(CheckpointError, match=words):
        ours(tmp_path)


def write_sparse(folder: Path, changed: dict[str, list[int]]) -> None:
    """A model whose int4 weights take no space on the disk, with some parts of other shapes."""
    config = LlamaConfig(**SIZES | {"num_hidden_layers": 1, "intermediate_size": 1 << 20})
    (folder / CONFIG).write_text(json.dumps(config.to_dict() | {"model_type": "llama"}))
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in LlamaForCausalLM(config).named_parameters()}
    stored = {
        name: (Scheme(4, 16) if "proj" in name else None, shape, torch.bfloat16)
        for name, shape in shapes.items()
    }
    layouts = {
        part_name(name, part) if scheme else name: layout
        for name, (scheme, *plain) in stored.items()
        for part, layout in (part_layouts(scheme, *plain) if scheme else {"": plain}).items()
    }
    header, end = {"__metadata__": metadata_for(stored)}, 0
    for name, (shape, dtype) in layouts.items():
        shape = changed.get(name, list(shape))
        start, end = end, end + math.prod(shape) * dtype.itemsize
        code = "I8" if dtype == torch.int8 else "BF16"
        header[name] = attacks.entry(dtype=code, shape=shape, data_offsets=[start, end])
    start_of_file = attacks.weights(header, b"")
    with (folder / MODEL).open("wb") as file:
        file.write(start_of_file)
        file.truncate(len(start_of_file) + end)
