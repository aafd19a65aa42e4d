"""Folder or hub name + options → a finished model. The only place where the parts meet."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self, TypeVar

import torch
from torch import nn

from llamacli import checkpoint, hub
from llamacli.atomic import atomic_write
from llamacli.config import DTYPES, LlamaConfig
from llamacli.errors import RequestError, ResourceError
from llamacli.generation_config import GenerationConfig
from llamacli.model_folder import read_config

DEVICE_TYPES = ("cuda", "xpu", "mps", "cpu")  # in the order that "auto" prefers

ModelName = str | os.PathLike[str]


class PreTrainedModel(nn.Module):
    """A module that is read from and written to a model folder.

    A subclass is built by `cls(config, attn_implementation=…)`, and names its tensors as Hugging
    Face does.
    """

    config: LlamaConfig
    generation_config: GenerationConfig = GenerationConfig()

    @classmethod
    def from_pretrained(
        cls,
        model: ModelName,
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        attn_implementation: str = "sdpa",
    ) -> Self:
        """Read a model from a folder or the hub.

        Args:
            model: a folder, or a hub name such as "meta-llama/Llama-3.2-1B".
            revision: branch, tag or commit of a hub model.
            dtype: of the weights in memory; "auto" keeps that of the files where the device is
                good at it (see `choose_dtype`).
            device: "auto" is the first of CUDA, XPU, MPS and CPU that this machine has.
            attn_implementation: "sdpa" or "eager".

        Raises:
            LlamacliError: see `hub.resolve`, `LlamaConfig`, `checkpoint.open_checkpoint`.
        """
        folder = hub.resolve(model, revision=revision).path
        return load_model(
            cls, folder, dtype=dtype, device=device, attn_implementation=attn_implementation
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and the weights as safetensors, in shards of 5 GB at most."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        state = self.state_dict()
        dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
        config = {"architectures": [type(self).__name__]} | self.config.to_dict()
        config["torch_dtype"] = dtype
        checkpoint.save_state_dict(target, state)
        with atomic_write(target / "config.json") as path:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


ModelT = TypeVar("ModelT", bound=PreTrainedModel)


def load_model(
    cls: type[ModelT],
    folder: Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attn_implementation: str = "sdpa",
) -> ModelT:
    """Read config.json and the weights of a folder; arguments as `from_pretrained`.

    Config and tensor headers are checked against each other before anything is allocated.
    """
    config = read_config(folder)
    checkpoint.refuse_foreign_quantization(config.quantization_config)
    target = choose_device(device)
    opened = checkpoint.open_checkpoint(folder)
    with torch.device("meta"):
        model = cls(config, attn_implementation=attn_implementation)
    stored = next(iter(opened.tensors.values())).dtype
    checkpoint.load_into(model, opened, dtype=choose_dtype(dtype, stored, target), device=target)
    model.generation_config = GenerationConfig.from_folder(folder)
    return model.eval()


def available_devices() -> list[str]:
    """Device types that this machine has, in the order that "auto" prefers."""
    present = {
        "cuda": torch.cuda.is_available(),
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    return [name for name in DEVICE_TYPES if present[name]]


def choose_device(device: str | torch.device) -> torch.device:
    """The device meant by "auto", "cpu", "cuda", "cuda:1", …

    Raises:
        RequestError: not the name of a device.
        ResourceError: this machine does not have it.
    """
    if device == "auto":
        return torch.device(available_devices()[0])
    known = ", ".join(DEVICE_TYPES)
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise RequestError(f"device must be auto, {known} (or cuda:1 …), got {device!r}") from None
    if chosen.type not in DEVICE_TYPES:
        raise RequestError(f"device must be auto, {known}, got {device!r}")
    count = torch.cuda.device_count() if chosen.type == "cuda" else 1
    if chosen.type not in available_devices() or (chosen.index or 0) >= count:
        here = ", ".join(available_devices())
        raise ResourceError(f"this machine has no device {chosen}", hint=f"it has: {here}")
    return chosen


def choose_dtype(
    dtype: str | torch.dtype, stored: torch.dtype, device: torch.device
) -> torch.dtype:
    """The dtype of the weights in memory.

    "auto" is the stored one, except on a CPU: half precision becomes bfloat16 where the CPU
    computes in it, else float32. (float16 is up to 100 times slower there.)

    Raises:
        RequestError: not the name of a dtype that a model runs in.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        if dtype not in DTYPES:
            raise RequestError(f"dtype must be auto, {', '.join(DTYPES)}, got {dtype!r}")
        return getattr(torch, dtype)  # type: ignore[no-any-return]
    if device.type != "cpu" or stored not in (torch.float16, torch.bfloat16):
        return stored
    return torch.bfloat16 if cpu_computes_bfloat16() else torch.float32


def cpu_computes_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware."""
    features: Mapping[str, bool] = torch.cpu.get_capabilities()
    return any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
