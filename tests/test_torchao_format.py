"""torchao's int4 and int8 weights on disk: transformers is the oracle."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchao.quantization import (
    FqnToConfig,
    Int4Tensor,
    Int4WeightOnlyConfig,
    Int8Tensor,
    Int8WeightOnlyConfig,
)
from transformers import LlamaForCausalLM as Reference, TorchAoConfig

from llamacli.checkpoint import open_checkpoint
from llamacli.errors import RequestError
from llamacli.load_into import load_into
from llamacli.loading import PreTrainedModel
from llamacli.model import LlamaForCausalLM, LlamaModel
from llamacli.quantization import Int4Weight, Scheme
from llamacli.quantized_linear import Int4Linear, is_quantized
from llamacli.torchao_format import (
    QuantizedInfo,
    check_quantization_config,
    metadata_for,
    part_layouts,
    part_name,
    quantization_config,
)
from tests.tiny import random_ids, reference, twin, write_model
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

IDS = random_ids(2, 12)
WIDE = {"hidden_size": 64, "intermediate_size": 128}  # widths that the CPU's operator takes


def dequantized(folder: Path) -> Reference:
    """What transformers reads from a folder, as a model of plain float32 weights."""
    theirs = Reference.from_pretrained(folder)
    state = {name: plain(tensor) for name, tensor in theirs.state_dict().items()}
    del theirs.config.quantization_config
    theirs.config.dtype = torch.float32
    model = Reference(theirs.config).eval()
    model.load_state_dict(state)
    return model


def plain(tensor: Tensor) -> Tensor:
    if isinstance(tensor, Int4Tensor):  # which has no dequantize of its own
        parts = tensor.qdata, tensor.scale, tensor.zero_point
        return Int4Weight(*parts).dequantize(torch.float32)
    return tensor.dequantize(torch.float32) if isinstance(tensor, Int8Tensor) else tensor.float()


@torch.no_grad()
def assert_same_logits(folder: Path, dtype: str) -> None:
    """As near to the dequantized model in float32 as that is itself in bfloat16, about."""
    model = dequantized(folder)
    expected = model(IDS).logits
    allowed = (model.bfloat16()(IDS).logits - expected).norm()
    assert allowed <= 0.05 * expected.norm()
    assert (ours(folder, dtype)(IDS).logits - expected).norm() <= 1.5 * allowed


@pytest.fixture(scope="session")
def int4_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Groups of 16, which the portable path computes."""
    folder = tmp_path_factory.mktemp("int4")
    write_int4(reference(), folder)
    return folder


# ----------------------------------------------------------------------------------------------
# What transformers wrote


@pytest.mark.parametrize("kind", ["gqa", "tied", "biases"])
@torch.no_grad()
def test_int4_of_transformers_runs(kind: str, tmp_path: Path) -> None:
    write_int4(reference(kind), tmp_path)
    assert_same_logits(tmp_path, "bfloat16")
    expected = dequantized(tmp_path)(IDS).logits  # nothing is rounded in groups of 16
    assert (ours(tmp_path)(IDS).logits - expected).norm() <= 1e-5 * expected.norm()


def test_int4_runs_on_the_operator_of_the_cpu(tmp_path: Path) -> None:
    write_int4(reference(**WIDE), tmp_path, 32)
    for dtype in ("bfloat16", "float32"):
        assert_same_logits(tmp_path, dtype)


@pytest.mark.parametrize("kind", ["gqa", "tied", "biases"])
def test_int8_of_transformers_runs(kind: str, tmp_path: Path) -> None:
    write_int8(reference(kind).bfloat16(), tmp_path)
    for dtype in ("bfloat16", "float32"):
        assert_same_logits(tmp_path, dtype)
    assert is_quantized(ours(tmp_path).model.layers[0].mlp.up_proj)


def test_the_parts_are_those_that_transformers_reads(int4_folder: Path) -> None:
    theirs = Reference.from_pretrained(int4_folder).get_submodule(Q_PROJ).weight
    layer = ours(int4_folder).get_submodule(Q_PROJ)
    assert isinstance(theirs, Int4Tensor)
    assert isinstance(layer, Int4Linear)
    for part in ("qdata", "scale", "zero_point"):
        expected = getattr(theirs, part)
        assert getattr(layer, part).dtype == expected.dtype
        assert torch.equal(getattr(layer, part), expected)


def test_greedy_ids_are_those_of_the_dequantized_model(int4_folder: Path) -> None:
    model = dequantized(int4_folder)
    expected = model.generate(IDS, do_sample=False, max_new_tokens=12, pad_token_id=0)
    assert torch.equal(ours(int4_folder).generate(IDS, max_new_tokens=12), expected)


@pytest.mark.parametrize("write", [write_int4, write_int8])
def test_shards_and_a_model_without_its_head_are_read(
    write: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(reference(), tmp_path / "whole")
    write(reference(), tmp_path, max_shard_size=8000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    caplog.clear()
    whole, base = ours(tmp_path), LlamaModel.from_pretrained(tmp_path, dtype="float32")
    assert not [record for record in caplog.records if record.name.startswith("llamacli")]
    assert torch.equal(whole(IDS).logits, ours(tmp_path / "whole")(IDS).logits)
    assert torch.equal(base(IDS).last_hidden_state, whole.model(IDS).last_hidden_state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_that_before_quantizing(dtype: torch.dtype, tmp_path: Path) -> None:
    write_int8(reference().to(dtype), tmp_path)  # half precision: float32 scales stand first
    tensors = open_checkpoint(tmp_path).tensors
    assert isinstance(tensors[f"{Q_PROJ}.weight"], QuantizedInfo)
    assert {info.dtype for info in tensors.values()} == {dtype}
    model, expected = ours(tmp_path, "auto"), ours(tmp_path / "plain", "auto")
    assert model.lm_head.weight.dtype == expected.lm_head.weight.dtype


def test_sizes_count_every_part(int4_folder: Path) -> None:
    stored = open_checkpoint(int4_folder)
    info = stored.tensors[f"{Q_PROJ}.weight"]
    assert isinstance(info, QuantizedInfo)
    assert (info.scheme, info.shape) == (Scheme(4, 16), (32, 32))
    assert info.nbytes == 32 * 32 // 2 + 2 * 2 * (32 * 32 // 16)
    state = load_file(int4_folder / MODEL)
    assert stored.total_bytes == sum(tensor.nbytes for tensor in state.values())


def test_each_layer_may_be_quantized_in_its_own_way(tmp_path: Path) -> None:
    by_layer = {"re:.*mlp.*": Int8WeightOnlyConfig(), "re:.*self_attn.*": None}
    write_int8(reference().bfloat16(), tmp_path, FqnToConfig(by_layer))
    written = json.loads((tmp_path / CONFIG).read_text())
    assert written["quantization_config"]["quant_type"]["default"]["_type"] == "FqnToConfig"
    layer = ours(tmp_path).model.layers[0]
    assert is_quantized(layer.mlp.up_proj)
    assert isinstance(layer.self_attn.q_proj, nn.Linear)
    assert_same_logits(tmp_path, "float32")


def test_run_needs_no_torchao(tmp_path: Path) -> None:
    write_model(tmp_path, **WIDE)
    write_int4(Reference.from_pretrained(tmp_path), tmp_path, 32)
    code = (
        "import sys\n"
        "sys.modules['torchao'] = sys.modules['transformers'] = None  # importing them fails\n"
        "from llamacli.cli.app import main\n"
        "main()\n"
    )
    options = ["run", "-m", tmp_path, "--greedy", "--max-new-tokens", "5", "The sun"]
    command = [sys.executable, "-c", code, *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


# ----------------------------------------------------------------------------------------------
# What config.json says, and what the files are


def test_the_files_count_where_config_json_says_nothing(tmp_path: Path) -> None:
    write_int4(reference(), tmp_path)
    expected = ours(tmp_path)(IDS).logits
    set_config(tmp_path, None)
    assert torch.equal(ours(tmp_path)(IDS).logits, expected)


def test_plain_files_are_plain_whatever_config_json_says(tmp_path: Path) -> None:
    write_int8(reference(), tmp_path)
    expected = ours(tmp_path / "plain")(IDS).logits
    set_config(
        tmp_path / "plain", json.loads((tmp_path / CONFIG).read_text())["quantization_config"]
    )
    assert torch.equal(ours(tmp_path / "plain")(IDS).logits, expected)


# ----------------------------------------------------------------------------------------------
# save_pretrained


@pytest.mark.parametrize("scheme", [Scheme(4, 16), Scheme(4, 32), Scheme(8, 64)])
def test_a_model_quantized_while_it_was_loaded_is_not_written_as_a_plain_one(
    scheme: Scheme, tmp_path: Path
) -> None:
    twin(reference(**WIDE)).save_pretrained(tmp_path)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaForCausalLM.from_pretrained(tmp_path).config)
    load_into(model, open_checkpoint(tmp_path), schemes={f"{Q_PROJ}.weight": scheme})
    assert_not_written(model, tmp_path)


def test_a_model_with_quantized_weights_is_not_written_as_a_plain_one(
    int4_folder: Path, tmp_path: Path
) -> None:
    assert_not_written(ours(int4_folder), tmp_path)


def assert_not_written(model: PreTrainedModel, folder: Path) -> None:
    assert any(map(is_quantized, model.modules()))
    with pytest.raises(RequestError, match="quantized model cannot be written") as caught:
        model.save_pretrained(folder / "copy")
    assert caught.value.hint
    assert not (folder / "copy").exists()


# ----------------------------------------------------------------------------------------------
# Names and metadata that we write


def test_parts_are_named_as_torchao_names_them(int4_folder: Path) -> None:
    stored = load_file(int4_folder / MODEL)
    layouts = part_layouts(Scheme(4, 16), (32, 32), torch.bfloat16)
    for part, (shape, dtype) in layouts.items():
        tensor = stored[part_name(WEIGHT, part)]
        assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype)
    assert part_name("weight", "scale") == "_weight_scale"


@pytest.mark.parametrize("write", [write_int4, write_int8])
def test_the_metadata_is_what_torchao_writes(write: Callable[..., None], tmp_path: Path) -> None:
    write(reference().bfloat16(), tmp_path)
    with safe_open(tmp_path / MODEL, "pt") as file:
        theirs = file.metadata()
    tensors = open_checkpoint(tmp_path).tensors
    stored = {
        name: (info.scheme if isinstance(info, QuantizedInfo) else None, info.shape, info.dtype)
        for name, info in tensors.items()
    }
    ours = metadata_for(stored)
    assert ours.keys() == theirs.keys()
    assert ours.pop("format") == theirs.pop("format")
    assert canonical(ours) == canonical(theirs)


def canonical(metadata: dict[str, str]) -> dict[str, object]:
    """Without the order of names, which means nothing."""
    found = {key: json.loads(text) for key, text in metadata.items()}
    for value in found.values():
        if "_tensor_data_names" in value:
            value["_tensor_data_names"].sort()
    return found | {"tensor_names": sorted(found["tensor_names"])}


@pytest.mark.parametrize(
    ("schemes", "theirs"),
    [
        ([Scheme(4, 32)] * 2 + [Scheme(8, 64)], Int4WeightOnlyConfig(group_size=32)),
        ([Scheme(8, 32), Scheme(8, 64), Scheme(4, 32)], Int8WeightOnlyConfig()),
    ],
)
def test_the_config_is_what_transformers_writes(schemes: list[Scheme], theirs: object) -> None:
    config = quantization_config(schemes)
    assert config == TorchAoConfig(theirs).to_dict()
    check_quantization_config(config)
