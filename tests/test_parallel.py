"""Several ranks are one model: the same logits, and each reads its slices alone."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from llamacli.config import LlamaConfig
from llamacli.errors import RequestError
from llamacli.model import LlamaForCausalLM
from llamacli.parallel import TP_PLAN, Share, column_groups, style_of
from llamacli.quantization import Scheme
from tests.command_line import here
from tests.probe import environment
from tests.tiny import KINDS, SIZES

WIDE = {"hidden_size": 64, "intermediate_size": 160, "head_dim": 32}  # whole groups of 32
MODELS: dict[str, dict[str, Any]] = {
    "gqa": KINDS["gqa"],
    "one-key-head": KINDS["mqa-head-dim"],
    "tied": KINDS["tied"],
    "biases": KINDS["biases"],
    "wide": WIDE,
}
# model, ranks, dtype, what carries their sums
# 97 ids, 2 key/value heads and 5 groups are no multiples of 4
CASES = [
    ("gqa", 4, "float32", "wires"),
    ("one-key-head", 2, "float32", "gloo"),
    ("tied", 2, "float32", "gloo"),
    ("biases", 4, "float32", "wires"),
    ("biases", 2, "bfloat16", "wires"),
    ("wide", 2, "bfloat16", "wires"),
    ("int4", 2, "bfloat16", "gloo"),
    ("int4", 4, "bfloat16", "wires"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("ranks")
    for name, sizes in MODELS.items():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**{**SIZES, **sizes}))
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        model.save_pretrained(root / name)
    done = here("quantize", root / "wide", "-o", root / "int4", "--group-size", 32, "-q")
    assert done.code == 0, done.err
    return {name: root / name for name in (*MODELS, "int4")}


@pytest.fixture(scope="module")
def reports(folders: Mapping[str, Path]) -> Mapping[tuple[str, int], dict[str, Any]]:
    """By model and ranks."""
    cases = json.dumps([(str(folders[name]), *case) for name, *case in CASES])
    done = subprocess.run(
        [sys.executable, "-m", "tests.rank_probe", cases],
        cwd=Path(__file__).parents[1],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return {(name, ranks): line for (name, ranks, *_), line in zip(CASES, lines, strict=True)}


@pytest.mark.parametrize(("name", "ranks", "dtype"), [case[:3] for case in CASES])
def test_all_ranks_get_the_logits_of_one_process(
    name: str, ranks: int, dtype: str, reports: Mapping[tuple[str, int], dict[str, Any]]
) -> None:
    report = reports[name, ranks]
    if dtype == "float32":
        assert report["difference"] < 1e-5
    else:  # each rounds sums in an order of its own, so their errors are as large, not the same
        assert report["error"] < 2 * report["error_alone"]


def test_a_rank_reads_its_slices_alone(
    folders: Mapping[str, Path], reports: Mapping[tuple[str, int], dict[str, Any]]
) -> None:
    """The norms, and rounding, are all that there is beyond an even share."""
    for name, ranks in (("wide", 2), ("int4", 2), ("gqa", 4)):
        whole = (folders[name] / "model.safetensors").stat().st_size
        for count in reports[name, ranks]["bytes"]:
            assert count < 1.15 * whole / ranks + 4 * 5 * SIZES["hidden_size"] * 2, name


# --------------------------------------------------------------------------------------- the plan


def config(**sizes: Any) -> LlamaConfig:
    return LlamaConfig(**{**SIZES, **sizes})


def test_the_table_is_that_of_the_documentation_page() -> None:
    from transformers import LlamaConfig as Reference, LlamaForCausalLM as ReferenceModel

    theirs = Reference.base_model_tp_plan | ReferenceModel._tp_plan
    assert {name: TP_PLAN[name] for name in theirs} == theirs
    assert style_of("model.layers.11.mlp.down_proj") == "rowwise"
    assert style_of("transformer.layers.0.self_attn.k_proj") == "colwise"
    assert style_of("model.norm") is style_of("score") is None


def test_slices_of_all_ranks_are_the_whole_layer() -> None:
    groups = {"layers.0.mlp.down_proj.weight": 16}
    for path in ("q_proj", "o_proj", "gate_proj", "down_proj", "embed_tokens", "lm_head"):
        spans = [Share(config(), rank, 2, groups).span(path) for rank in range(2)]
        assert spans[0][0] == 0
        assert spans[0][1] == spans[1][0]
    assert [Share(config(), rank, 2, groups).span("up_proj") for rank in (0, 1)] == [
        (0, 16),  # 48 columns are three groups
        (16, 48),
    ]
    assert Share(config(), 3, 4).span("lm_head") == (75, 97)


def test_key_value_heads_are_held_by_several_ranks_where_there_are_fewer() -> None:
    spans = [Share(config(num_key_value_heads=2), rank, 4).span("k_proj") for rank in range(4)]
    assert spans == [(0, 8), (0, 8), (8, 16), (8, 16)]


@pytest.mark.parametrize(
    ("sizes", "ranks", "groups", "message"),
    [
        ({}, 3, {}, "4 query heads and 4 key/value heads cannot be shared by 3 ranks"),
        (
            {"num_attention_heads": 12, "num_key_value_heads": 3, "head_dim": 8},
            2,
            {},
            "12 query heads and 3 key/value heads cannot be shared by 2 ranks",
        ),
        ({}, 4, {"a.down_proj.weight": 16}, "an MLP of 3 groups of 16 columns"),
        ({}, 4, {"a.o_proj.weight": 16}, "groups of 16 columns, 4 ranks would have 8 each"),
        ({"vocab_size": 2}, 4, {}, "2 ids cannot be shared by 4 ranks"),
    ],
)
def test_what_cannot_be_shared_is_refused_with_both_numbers(
    sizes: dict[str, Any], ranks: int, groups: dict[str, int], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        Share(config(**sizes), 0, ranks, groups)


def test_rows_are_not_quantized_to_int8_in_parts() -> None:
    with pytest.raises(RequestError, match="int8"):
        column_groups({}, {"model.layers.0.self_attn.o_proj.weight": Scheme(8, 32)})


def test_python_needs_torchrun_for_a_plan(folders: Mapping[str, Path]) -> None:
    with pytest.raises(RequestError, match="torchrun"):
        LlamaForCausalLM.from_pretrained(folders["gqa"], tp_plan="auto")
    with pytest.raises(RequestError, match="tp_plan must be"):
        LlamaForCausalLM.from_pretrained(folders["gqa"], tp_plan="ring")
    with pytest.raises(RequestError, match="tp_plan and device_map contradict each other"):
        LlamaForCausalLM.from_pretrained(folders["gqa"], tp_plan="auto", device_map="auto")
    with pytest.raises(TypeError, match="tp_plans"):
        LlamaForCausalLM.from_pretrained(folders["gqa"], tp_plans="auto")  # type: ignore[call-arg]
