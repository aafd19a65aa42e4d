"""`from_pretrained(..., quantization_config=TorchAoConfig(...))` and `run --quantize`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int4WeightOnlyConfig,
    Int8WeightOnlyConfig,
    PerTensor,
)
from torchao.quantization.quantize_.workflows import Int4PackingFormat
from transformers import TorchAoConfig as ReferenceConfig

from llamacli import TorchAoConfig
from llamacli.checkpoint import open_checkpoint
from llamacli.conversion import convert_folder
from llamacli.errors import RequestError
from llamacli.loading import load_model
from llamacli.model import LlamaForCausalLM, LlamaModel
from llamacli.model_folder import read_config
from llamacli.quantization_plan import Recipe, plan_quantization
from llamacli.quantized_linear import is_quantized
from llamacli.torchao_config import recipe_of
from tests.command_line import greedy, run
from tests.tiny import random_ids, write_model

WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}  # the CPU's operator fits
IDS = random_ids(1, 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", **WIDE)
    return tmp_path / "model"


def write_quantized(folder: Path, recipe: Recipe) -> Path:
    """The folder that `llamacli quantize` writes."""
    target = folder.with_name("quantized")
    target.mkdir()
    checkpoint = open_checkpoint(folder)
    plan = plan_quantization(checkpoint, recipe, tied=False)
    convert_folder(folder, checkpoint, plan, target, algorithm=recipe.algorithm)
    return target


@pytest.mark.parametrize(
    ("config", "recipe"),
    [
        (TorchAoConfig("int4_weight_only", group_size=64), Recipe(group_size=64)),
        (TorchAoConfig("int4_weight_only"), Recipe()),
        (TorchAoConfig("int8_weight_only"), Recipe(bits=8)),
        (TorchAoConfig(Int4WeightOnlyConfig(group_size=32)), Recipe(group_size=32)),
        (TorchAoConfig(Int8WeightOnlyConfig()), Recipe(bits=8)),
        (ReferenceConfig(Int4WeightOnlyConfig(group_size=256)), Recipe(group_size=256)),
        (
            ReferenceConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["lm_head"]),
            Recipe(bits=8, skip=("*lm_head",)),
        ),
        (
            TorchAoConfig("int4_weight_only", ["mlp", "q_proj"]),
            Recipe(skip=("*mlp.*", "*q_proj")),
        ),
    ],
)
def test_every_form_says_what_the_recipe_says(config: object, recipe: Recipe) -> None:
    assert recipe_of(config) == recipe


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("int4",), "quant_type must be one of int4_weight_only"),
        ((Float8WeightOnlyConfig(),), "got Float8WeightOnlyConfig"),
        ((None,), "got NoneType"),
        ((Int8WeightOnlyConfig(granularity=PerTensor()),), "granularity must be PerRow"),
        (
            (Int4WeightOnlyConfig(int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D),),
            "int4_packing_format must be plain",
        ),
    ],
)
def test_other_types_are_refused_by_name(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        TorchAoConfig(*arguments)


def test_a_group_size_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(RequestError, match="int8 has one scale for each row"):
        TorchAoConfig("int8_weight_only", group_size=64)
    with pytest.raises(RequestError, match="stands in torchao's config already"):
        TorchAoConfig(Int4WeightOnlyConfig(), group_size=64)
    with pytest.raises(RequestError, match="must be one of 32, 64, 128, 256, got 48"):
        recipe_of(TorchAoConfig("int4_weight_only", group_size=48))
    with pytest.raises(RequestError, match="must be a TorchAoConfig, got str"):
        recipe_of("int4_weight_only")


def test_a_model_quantized_while_loading_is_the_one_that_quantize_writes(folder: Path) -> None:
    config = TorchAoConfig("int4_weight_only", group_size=32)
    options: dict[str, Any] = {"device": "cpu", "dtype": "bfloat16"}
    loaded = LlamaForCausalLM.from_pretrained(folder, quantization_config=config, **options)
    written = write_quantized(folder, Recipe(group_size=32))
    expected = LlamaForCausalLM.from_pretrained(written, **options)
    assert is_quantized(loaded.lm_head)
    assert not is_quantized(loaded.model.embed_tokens)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, expected(IDS).logits)


@pytest.mark.parametrize("algorithm", ["mse", "hqq"])
def test_the_algorithm_of_a_recipe_counts_while_loading(folder: Path, algorithm: str) -> None:
    recipe = Recipe(group_size=32, algorithm=algorithm)
    checkpoint, config = open_checkpoint(folder), read_config(folder)
    options: dict[str, Any] = {"device": "cpu", "dtype": "bfloat16"}
    found = load_model(LlamaForCausalLM, config, checkpoint, recipe=recipe, **options)
    written = LlamaForCausalLM.from_pretrained(write_quantized(folder, recipe), **options)
    rounded = load_model(
        LlamaForCausalLM, config, checkpoint, recipe=Recipe(group_size=32), **options
    )
    with torch.no_grad():
        assert torch.equal(found(IDS).logits, written(IDS).logits)
        assert not torch.equal(found(IDS).logits, rounded(IDS).logits)


def test_named_modules_and_the_base_model(folder: Path) -> None:
    config = TorchAoConfig("int8_weight_only", ["mlp", "layers.0.self_attn.q_proj", "lm_head"])
    base = LlamaModel.from_pretrained(folder, quantization_config=config, device="cpu")
    quantized = {name for name, module in base.named_modules() if is_quantized(module)}
    assert "layers.0.self_attn.k_proj" in quantized
    assert "layers.1.self_attn.q_proj" in quantized
    assert "layers.0.self_attn.q_proj" not in quantized
    assert not any("mlp" in name for name in quantized)


def test_the_head_alone_may_be_quantized(folder: Path) -> None:
    config = TorchAoConfig("int8_weight_only", ["self_attn", "mlp"])
    model = LlamaForCausalLM.from_pretrained(folder, quantization_config=config, device="cpu")
    assert [name for name, module in model.named_modules() if is_quantized(module)] == ["lm_head"]


def test_a_module_that_is_not_there_is_refused(folder: Path) -> None:
    config = TorchAoConfig("int8_weight_only", ["experts"])
    with pytest.raises(RequestError, match=r"no layer matches '\*experts\.\*'"):
        LlamaForCausalLM.from_pretrained(folder, quantization_config=config, device="cpu")


@pytest.mark.parametrize("bits", [4, 8])
def test_run_quantizes_while_loading(folder: Path, bits: int) -> None:
    written = write_quantized(folder, Recipe(bits=bits))
    text = greedy(folder, "--quantize", f"int{bits}", "The sun")
    assert text == greedy(written, "The sun")
    done = run(written, "--quantize", f"int{bits}", "The sun")
    assert done.code == 3
    assert "already quantized" in done.err
