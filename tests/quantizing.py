"""`llamacli quantize` run here, and what it left behind."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM as Reference

from llamacli.checkpoint import open_checkpoint
from llamacli.torchao_format import QuantizedInfo
from tests.command_line import Done, here
from tests.test_torchao_format import plain
from tests.tiny import write_model

PROJECTIONS = 7 * 2  # of two layers


def write_wide(folder: Path) -> Path:
    """A random model with rows of 64 and, of the down projections, of 256 values."""
    write_model(folder, hidden_size=64, intermediate_size=256)
    return folder


def quantize(model: Path, out: Path, *args: object) -> Done:
    """Quantize here, and expect that it succeeds."""
    done = here("quantize", model, "-o", out, *args)
    assert (done.code, done.out.decode()) == (0, f"{out}\n"), done.err
    return done


def report_of(*args: object, at: Path) -> dict[str, Any]:
    done = here("quantize", *args, "--report", at)
    assert done.code == 0, done.err
    found = json.loads(at.read_text())
    assert isinstance(found, dict)
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tensor_bytes(folder: Path) -> int:
    """Size of the weights' file without its header."""
    data = (folder / "model.safetensors").read_bytes()
    return len(data) - 8 - int.from_bytes(data[:8], "little")


def layers(folder: Path) -> list[str]:
    return [name.removesuffix(".weight") for name in open_checkpoint(folder).tensors]


def stored_bits(folder: Path) -> dict[str, tuple[int, int]]:
    """Layer → bits and group size, of what is quantized."""
    return {
        name.removesuffix(".weight"): tuple(info.scheme)
        for name, info in open_checkpoint(folder).tensors.items()
        if isinstance(info, QuantizedInfo)
    }


def weights(folder: Path) -> dict[str, Tensor]:
    """Plain float32 weights, as llamacli reads them."""
    return {
        name: (w if isinstance(w, Tensor) else w.dequantize(torch.float32)).float()
        for name, w in open_checkpoint(folder)
    }


def assert_transformers_reads_the_same(folder: Path) -> Reference:
    theirs = Reference.from_pretrained(folder)
    state = theirs.state_dict()
    ours = weights(folder)
    if theirs.config.tie_word_embeddings:
        ours["lm_head.weight"] = ours["model.embed_tokens.weight"]
    assert state.keys() == ours.keys()
    for name, tensor in state.items():
        assert torch.equal(plain(tensor), ours[name]), name
    return theirs
