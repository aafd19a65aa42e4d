"""Folders with torchao's int4 and int8 weights, as transformers writes them."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchao.quantization import (
    Int4Tensor,
    Int4WeightOnlyConfig,
    Int8WeightOnlyConfig,
)
from transformers import LlamaForCausalLM as Reference, TorchAoConfig
from transformers.quantizers.auto import AutoHfQuantizer

from llamacli.model import LlamaForCausalLM
from llamacli.quantization import quantize_int4

MODEL = "model.safetensors"
CONFIG = "config.json"
Q_PROJ = "model.layers.0.self_attn.q_proj"
WEIGHT = f"{Q_PROJ}.weight"


def write_int4(model: Reference, folder: Path, group_size: int = 16, **options: Any) -> None:
    """As transformers would: torchao's own `from_hp` needs a GPU, its tensor class does not."""
    for name, linear in model.bfloat16().named_modules():
        if isinstance(linear, nn.Linear) and name != "lm_head":
            weight = quantize_int4(linear.weight.data, group_size)
            theirs = Int4Tensor(
                weight.qdata,
                weight.scale,
                weight.zero_point,
                block_size=[1, group_size],
                shape=linear.weight.shape,
            )
            linear.weight = nn.Parameter(theirs, requires_grad=False)
    config = TorchAoConfig(Int4WeightOnlyConfig(group_size=group_size))
    model.config.quantization_config = config
    model.hf_quantizer = AutoHfQuantizer.from_config(config)
    model.save_pretrained(folder, **options)


def write_int8(model: Reference, folder: Path, config: object = None, **options: Any) -> None:
    model.save_pretrained(folder / "plain")
    config = TorchAoConfig(config or Int8WeightOnlyConfig())
    quantized = Reference.from_pretrained(folder / "plain", quantization_config=config)
    quantized.save_pretrained(folder, **options)


def ours(folder: Path, dtype: str | torch.dtype = "float32") -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=dtype, device="cpu")


def set_config(folder: Path, config: object) -> None:
    text = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(text | {"quantization_config": config}))
