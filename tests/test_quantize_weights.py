"""`llamacli quantize`: which weights it writes, and that transformers reads the same."""

import shutil
from pathlib import Path

import pytest
import torch
from torchao.quantization import Int4Tensor, Int8Tensor
from transformers import LlamaForCausalLM as Reference

from tests.command_line import here, refused
from tests.quantizing import (
    PROJECTIONS,
    assert_transformers_reads_the_same,
    layers,
    quantize,
    report_of,
    stored_bits,
    weights,
    write_wide,
)
from tests.tiny import write_model


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide(tmp_path_factory.mktemp("models") / "wide")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


# ---------------------------------------------------------------------------------- the weights


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], {"k_proj": (4, 64), "down_proj": (4, 128), "lm_head": (8, 64)}),
        (["--group-size", 256], {"k_proj": (4, 64), "down_proj": (4, 256), "lm_head": (8, 64)}),
        (["--bits", 8], {"k_proj": (8, 64), "down_proj": (8, 256), "lm_head": (8, 64)}),
        (["--mixed", "*.down_proj=8"], {"k_proj": (4, 64), "down_proj": (8, 256)}),
        (["--mixed", "*=8", "--mixed", "*.k_proj=4"], {"k_proj": (4, 64), "down_proj": (8, 256)}),
        (["--mixed", "lm_head=4"], {"down_proj": (4, 128), "lm_head": (4, 64)}),
        (["--skip", "*.layers.1.*"], {"1.mlp.down_proj": None, "0.mlp.down_proj": (4, 128)}),
        (["--skip", "lm_head"], {"lm_head": None, "down_proj": (4, 128)}),
        (["--bits", 8, "--mixed", "*.k_proj=4", "--group-size", 32], {"k_proj": (4, 32)}),
    ],
)
def test_bits_and_groups_are_as_asked(
    wide: Path, out: Path, args: list[object], expected: dict[str, object]
) -> None:
    quantize(wide, out, *args)
    found = stored_bits(out)
    for ending, scheme in expected.items():
        schemes = {found.get(name) for name in layers(wide) if name.endswith(ending)}
        assert schemes == {scheme}, ending


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--skip", "down_proj"], ["no layer matches 'down_proj'", "layers are named as model."]),
        (["--mixed", "*.norm=8"], ["no layer matches '*.norm'", "layers are named"]),
        (["--mixed", "lm_head"], ["--mixed must be PATTERN=4 or PATTERN=8, got 'lm_head'"]),
        (["--mixed", "lm_head=3"], ["got 'lm_head=3'"]),
        (["--mixed", "=8"], ["--mixed must be PATTERN=4"]),
        (["--mixed", "a\x1b[2J"], ["got 'a\\x1b[2J'"]),
    ],
)
def test_a_pattern_that_means_nothing_is_refused(
    wide: Path, out: Path, args: list[str], words: list[str]
) -> None:
    refused(here("quantize", wide, "-o", out, *args), *words)
    refused(here("quantize", wide, "--dry-run", *args), *words)
    assert not out.exists()


def test_the_algorithms_differ_and_the_search_is_never_worse(wide: Path, tmp_path: Path) -> None:
    errors = {}
    for name in ("rtn", "mse", "hqq"):
        at = tmp_path / f"{name}.json"
        found = report_of(wide, "-o", tmp_path / name, "--algorithm", name, at=at)
        errors[name] = {w["name"]: w["relative_error"] for w in found["weights"] if w["bits"] == 4}
    assert len(errors["rtn"]) == PROJECTIONS
    for layer, error in errors["rtn"].items():
        assert errors["mse"][layer] < error
        assert errors["hqq"][layer] != error


def test_fault_015_zeros_and_denormals_give_finite_weights(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", hidden_size=64, intermediate_size=256)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.zero_()
        model.model.layers[0].mlp.gate_proj.weight.fill_(1e-42)
        model.lm_head.weight[5] = 0
    model.save_pretrained(tmp_path / "model")
    for number, args in enumerate([(), ("--bits", 8), ("--algorithm", "hqq")]):
        done = quantize(tmp_path / "model", tmp_path / f"out{number}", *args)
        assert "nan" not in done.err
        found = weights(tmp_path / f"out{number}")
        assert all(tensor.isfinite().all() for tensor in found.values())
        assert not found["model.layers.0.mlp.up_proj.weight"].any()
        assert not found["lm_head.weight"][5].any()


def test_dequantized_weights_are_those_that_were_quantized(wide: Path, tmp_path: Path) -> None:
    quantize(wide, tmp_path / "int4", "--mixed", "*.down_proj=8")
    done = quantize(tmp_path / "int4", tmp_path / "plain", "--dequantize")
    assert done.err.startswith("llamacli: dequantizing 21 tensors")
    assert "16.00 bits per weight\n" in done.err
    assert stored_bits(tmp_path / "plain") == {}
    before, after = weights(tmp_path / "int4"), weights(tmp_path / "plain")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor.bfloat16().float())
    theirs = Reference.from_pretrained(tmp_path / "plain")
    assert theirs.dtype is torch.bfloat16
    assert all(torch.equal(tensor.float(), after[n]) for n, tensor in theirs.state_dict().items())
    refused(
        here("quantize", tmp_path / "plain", "-o", tmp_path / "x", "--dequantize"),
        "no weight is quantized",
        code=3,
    )


def test_what_a_model_needs_travels_along(wide: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(wide, tmp_path / "source"))
    carried = ["LICENSE.txt", "USE_POLICY.md", "chat_template.jinja", "generation_config.json"]
    for name in [*carried, "pytorch_model.bin", "notes.txt"]:
        (source / name).write_text("{}")
    quantize(source, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {*carried, "config.json", "tokenizer.model", "model.safetensors"}
    assert not names & {"pytorch_model.bin", "notes.txt"}
    assert all((tmp_path / "out" / name).read_text() == "{}" for name in carried)


# ------------------------------------------------------------------------------- transformers

RECIPES: dict[str, list[object]] = {
    "defaults": [],
    "int8": ["--bits", 8],
    "mixed": ["--mixed", "*.down_proj=8", "--mixed", "lm_head=4"],
    "skip": ["--skip", "*.layers.0.*", "--skip", "lm_head"],
    "groups-of-32": ["--group-size", 32, "--algorithm", "mse"],
    "target": ["--target-kl", 0.3],
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=[*RECIPES])
def test_transformers_reads_the_same_weights(recipe: list[object], wide: Path, out: Path) -> None:
    quantize(wide, out, *recipe)
    theirs = assert_transformers_reads_the_same(out)
    quantized = {
        name.removesuffix(".weight")
        for name, tensor in theirs.state_dict().items()
        if isinstance(tensor, Int4Tensor | Int8Tensor)
    }
    assert quantized == stored_bits(out).keys()


@pytest.mark.parametrize("args", [(), ("--mixed", "lm_head=8")], ids=["kept", "of-its-own"])
def test_transformers_reads_the_demo_whose_head_is_tied(out: Path, args: tuple[str, ...]) -> None:
    assert here("quantize", "-o", out, *args).code == 0
    theirs = assert_transformers_reads_the_same(out)
    assert theirs.config.tie_word_embeddings == (not args)
    assert isinstance(theirs.lm_head.weight, Int8Tensor) == bool(args)
