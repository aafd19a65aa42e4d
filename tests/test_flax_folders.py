"""What a Flax twin reads and writes is what the torch class writes and reads."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("flax")

import jax.numpy as jnp

from llamacli.errors import CheckpointError, RequestError
from llamacli.flax_model import FlaxLlamaForCausalLM
from llamacli.model import LlamaForCausalLM
from tests.flax_twins import logits, pair
from tests.quantizing import quantize, weights, write_wide
from tests.tiny import random_ids

IDS = random_ids(1, 12)


@pytest.mark.parametrize("kind", ["biases", "tied", "yarn"])
def test_the_torch_class_reads_what_a_twin_writes(kind: str, tmp_path: Path) -> None:
    ours, flax = pair(kind)
    flax.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert again.config == replace(ours.config, dtype="float32")
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


def test_bfloat16_is_kept_if_asked_for(tmp_path: Path) -> None:
    _, flax = pair("gqa")
    flax.save_pretrained(tmp_path / "wide")
    narrow = FlaxLlamaForCausalLM.from_pretrained(tmp_path / "wide", dtype=jnp.bfloat16)
    assert narrow.dtype == jnp.bfloat16
    assert narrow(IDS.numpy()).logits.dtype == jnp.bfloat16
    narrow.save_pretrained(tmp_path / "narrow")
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "narrow", dtype="float32")
    wide = FlaxLlamaForCausalLM.from_pretrained(tmp_path / "narrow")
    assert wide.dtype == jnp.float32  # on a CPU
    np.testing.assert_allclose(wide(IDS.numpy()).logits, logits(theirs, IDS), atol=1e-4)
    config = json.loads((tmp_path / "narrow" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert config["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_become_plain(bits: int, tmp_path: Path) -> None:
    write_wide(tmp_path / "plain")
    quantize(tmp_path / "plain", tmp_path / "small", "--bits", bits)
    flax = FlaxLlamaForCausalLM.from_pretrained(tmp_path / "small")
    flax.save_pretrained(tmp_path / "out")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.quantization_config is None
    for name, expected in weights(tmp_path / "small").items():
        torch.testing.assert_close(again.state_dict()[name], expected.float(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(flax(IDS.numpy()).logits, logits(again, IDS), atol=1e-4)


def test_sampling_defaults_of_the_folder_go_along(tmp_path: Path) -> None:
    _, flax = pair("gqa")
    flax.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "eos_token_id": 5}')
    again = FlaxLlamaForCausalLM.from_pretrained(tmp_path)
    assert again.generation_config.eos_token_ids == {5}
    again.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "generation_config.json").exists()


def test_a_folder_that_does_not_fit_is_refused_as_by_torch(tmp_path: Path) -> None:
    _, flax = pair("gqa")
    flax.save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="dtype must be one of auto, float32, bfloat16, float16"):
        FlaxLlamaForCausalLM.from_pretrained(tmp_path, dtype=np.float64)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(CheckpointError, match="the weights do not fit the config"):
        FlaxLlamaForCausalLM.from_pretrained(tmp_path)
