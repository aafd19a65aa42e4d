"""A model that is partly on disk computes, bit for bit, what it computes in memory."""

from pathlib import Path

import pytest
import torch

from llamacli.kernels import native
from llamacli.kernels.offloaded_step import OffloadedStep
from llamacli.model import LlamaForCausalLM
from llamacli.torchao_config import TorchAoConfig
from tests.tiny import random_ids, write_model

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no C kernels here")


@pytest.mark.parametrize("length", [5, 24])  # by the native step, and by torch
@pytest.mark.parametrize("bits", [16, 4])
def test_ids_and_logits_are_those_of_the_model_in_memory(
    bits: int, length: int, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
    write_model(tmp_path / "m", **sizes, num_key_value_heads=2, attention_bias=True)
    options = {"dtype": "bfloat16", "device": "cpu"}
    recipe = TorchAoConfig("int4_weight_only", group_size=32) if bits == 4 else None
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "m", quantization_config=recipe, **options)
    device_map = {"model": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    split = LlamaForCausalLM.from_pretrained(
        tmp_path / "m",
        dtype="bfloat16",
        quantization_config=recipe,
        device_map=device_map | {"model.norm": "disk", "lm_head": "disk"},
        offload_folder=tmp_path,
    )
    assert isinstance(split.model.forward, OffloadedStep)
    ids = random_ids(1, length)
    found, expected = (m.generate(ids, max_new_tokens=20, do_sample=False) for m in (split, plain))
    assert torch.equal(found, expected)
    with torch.inference_mode():
        assert torch.equal(split(ids).logits, plain(ids).logits)
