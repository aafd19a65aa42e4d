"""Folder or hub name + options → a finished model. The only place where the parts meet."""

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypedDict, TypeVar, Unpack

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.overrides import TorchFunctionMode

from llamacli import hub
from llamacli.atomic import atomic_write_all
from llamacli.background import Report, ignore
from llamacli.checkpoint import (
    MAX_SHARD_BYTES,
    Checkpoint,
    open_checkpoint,
    save_state_dict,
)
from llamacli.collectives import join_torchrun
from llamacli.config import DTYPES, LlamaConfig
from llamacli.dense_linear import cpu_computes_bfloat16
from llamacli.errors import RequestError, ResourceError, check_choice, printable
from llamacli.generation_config import GenerationConfig
from llamacli.kernels import native
from llamacli.kernels.decode_step import install
from llamacli.load_into import load_into
from llamacli.model_folder import read_config
from llamacli.parallel import fuse_layers, take_share
from llamacli.quantization import Scheme
from llamacli.quantization_plan import Recipe, plan_quantization
from llamacli.quantized_linear import is_quantized, round_activations
from llamacli.torchao_config import recipe_of
from llamacli.torchao_format import check_quantization_config

logger = logging.getLogger(__name__)

DEVICE_TYPES = ("cuda", "xpu", "mps", "cpu")  # in the order that "auto" prefers

ModelName = str | os.PathLike[str]


class Placing(TypedDict, total=False):
    """Of `from_pretrained`: tp_plan="auto" shares a model among the processes of torchrun.

    Each calls `from_pretrained`, and then the model with the same input.
    """

    tp_plan: str | None


class PreTrainedModel(nn.Module):
    """A module that is read from and written to a model folder.

    A subclass is built by `cls(config, attn_implementation=…)`, and names its tensors as Hugging
    Face does.

    Attributes:
        base_model_prefix: the attribute under which a model with a head keeps the one without.
        config: sizes and constants.
        tp_size: how many ranks share the weights.
        generation_config: the model's own defaults for `generate` and `run`.
    """

    base_model_prefix: ClassVar[str] = "model"
    config: LlamaConfig
    tp_size: int = 1
    generation_config: GenerationConfig = GenerationConfig()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the norms and the embeddings, which are never quantized."""
        return next(self.parameters()).dtype

    @classmethod
    def from_pretrained(
        cls,
        model: ModelName,
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | int = "auto",
        attn_implementation: str = "sdpa",
        quantization_config: object = None,
        activations: str = "auto",
        report: Report = ignore,
        **placing: Unpack[Placing],
    ) -> Self:
        """Read a model from a folder or the hub.

        Args:
            model: a folder, or a hub name such as "meta-llama/Llama-3.2-1B".
            revision: branch, tag or commit of a hub model.
            dtype: of the weights in memory; "auto" keeps that of the files where the device is
                good at it (see `choose_dtype`).
            device: "auto" is the first of CUDA, XPU, MPS and CPU that this machine has.
            attn_implementation: "sdpa" or "eager".
            quantization_config: a TorchAoConfig; the weights are quantized while they are read.
            activations: "int8" rounds the input of int4 layers (see `round_activations`); "auto"
                does not.
            report: is called with each step of a download.
            placing: `tp_plan`, as `Placing`.

        Raises:
            TypeError: an option that is not supported, by name.
            LlamacliError: see `hub.resolve`, `LlamaConfig`, `checkpoint.open_checkpoint`,
                `torchao_config.recipe_of`, `plan_quantization`, `round_activations`, `Share`.
        """
        folder = hub.resolve(model, revision=revision, report=report).path
        config = read_config(folder)
        loaded = load_model(
            cls,
            config,
            open_weights(folder, config),
            dtype=dtype,
            device=_located(device, placing),
            attn_implementation=attn_implementation,
            recipe=None if quantization_config is None else recipe_of(quantization_config),
            activations=activations,
        )
        loaded.generation_config = GenerationConfig.from_folder(folder)
        return loaded

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, max_shard_bytes: int = MAX_SHARD_BYTES
    ) -> None:
        """Write config.json, generation_config.json if there is one, and safetensors.

        Raises:
            RequestError: weights are quantized, or shared by several ranks.
            LocalIOError: the disk refused.
        """
        if self.tp_size > 1:
            raise RequestError(f"a model shared by {self.tp_size} ranks cannot be written")
        if any(map(is_quantized, self.modules())):
            hint = "`llamacli quantize` writes one from the original folder"
            raise RequestError("a quantized model cannot be written", hint=hint)
        target, state = Path(folder), self.state_dict()
        dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
        config = {"architectures": [type(self).__name__]} | self.config.to_dict()
        texts = {"config.json": config | {"torch_dtype": dtype}}
        if self.generation_config != GenerationConfig():
            texts["generation_config.json"] = self.generation_config.to_dict()
        save_state_dict(target, state, max_shard_bytes=max_shard_bytes)
        paths = [target / name for name in texts]
        with atomic_write_all(paths, removing=[target / "generation_config.json"]) as temporaries:
            for path, values in zip(temporaries, texts.values(), strict=True):
                path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _located(
    device: str | torch.device | int, placing: Placing
) -> str | torch.device | int | DeviceMesh:
    """The device of the whole model, or the ranks that share it."""
    if unknown := placing.keys() - Placing.__annotations__.keys():
        raise TypeError(f"from_pretrained does not support {', '.join(sorted(unknown))}")
    if (tp_plan := placing.get("tp_plan")) is None:
        return device
    check_choice("tp_plan", tp_plan, ("auto",))
    return join_torchrun(choose_device(device).type)


ModelT = TypeVar("ModelT", bound=PreTrainedModel)


def open_weights(folder: Path, config: LlamaConfig) -> Checkpoint:
    """The weights of a folder, not yet read.

    Raises:
        CheckpointError: they are quantized in a way that cannot be read.
        LlamacliError: as `open_checkpoint`.
    """
    check_quantization_config(config.quantization_config)
    return open_checkpoint(folder)


def load_model(
    cls: type[ModelT],
    config: LlamaConfig,
    opened: Checkpoint,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | int | DeviceMesh = "auto",
    attn_implementation: str = "sdpa",
    recipe: Recipe | None = None,
    activations: str = "auto",
    progress: Callable[[int, int], object] | None = None,
) -> ModelT:
    """Read the weights into a new model, in evaluation mode; options as `from_pretrained`.

    Config and tensor headers are checked against each other before anything is allocated.
    Weights become quantized as `recipe` says. On a mesh each rank reads its share. `progress` is
    called with the bytes read so far and in all, after each weight.
    """
    rounds = choose("activations", activations, {"auto": False, "int8": True})
    mesh = device if isinstance(device, DeviceMesh) and device.size() > 1 else None
    target = choose_device(device.device_type if isinstance(device, DeviceMesh) else device)
    model = meta_model(cls, config, attn_implementation)
    stored = next(iter(opened.tensors.values())).dtype
    schemes: dict[str, Scheme] = {}
    if recipe is not None:
        plan = plan_quantization(opened, recipe, tied=config.tie_word_embeddings)
        schemes = {name: planned.scheme for name, planned in plan.items() if planned.scheme}
        stored = next(iter(plan.values())).dtype
    chosen = choose_dtype(dtype, stored, target)
    names = _names_for(model, opened.tensors)
    opened = dataclasses.replace(opened, tensors={o: opened.tensors[t] for o, t in names.items()})
    schemes = {ours: schemes[theirs] for ours, theirs in names.items() if theirs in schemes}
    if mesh is not None:
        opened = take_share(model, opened, schemes, mesh)
    load_into(
        model,
        opened,
        dtype=chosen,
        device=target,
        schemes=schemes,
        algorithm=recipe.algorithm if recipe else "rtn",
        progress=progress,
    )
    if rounds:
        round_activations(model)
    (install if mesh is None else fuse_layers)(model)
    return model.eval()


def meta_model(cls: type[ModelT], config: LlamaConfig, attn_implementation: str = "sdpa") -> ModelT:
    """A model without weights, on the meta device."""
    with torch.device("meta"), _WithoutInit():
        return cls(config, attn_implementation=attn_implementation)


class _WithoutInit(TorchFunctionMode):
    """Modules are built without random weights.

    The meta device holds no values anyway, but torch imports its compiler (0.8 s) to draw them.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


def _names_for(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """Name of a weight in the model → in the checkpoint.

    These begin with the prefix of a model with a head, or do not. So a `LlamaModel` reads the
    checkpoint of a model with a head, whose own tensors it leaves aside, and a model with a head
    that of a `LlamaModel`.
    """
    prefix, names = f"{model.base_model_prefix}.", list(stored)
    has_head = hasattr(model, model.base_model_prefix)
    prefixed = [name for name in names if name.startswith(prefix)]
    if has_head and not prefixed:
        return {prefix + name: name for name in names}
    if prefixed and not has_head:
        return {name.removeprefix(prefix): name for name in prefixed}
    return {name: name for name in names}


# ----------------------------------------------------------------------------------------------
# Choices


OptionT = TypeVar("OptionT")


def choose(name: str, value: str, options: Mapping[str, OptionT]) -> OptionT:
    """The option of this name.

    Raises:
        RequestError: there is none.
    """
    check_choice(name, value, options)
    return options[value]


def available_devices() -> list[str]:
    """Device types that this machine has, in the order that "auto" prefers."""
    return [name for name in DEVICE_TYPES if torch.get_device_module(name).is_available()]


def choose_device(device: str | torch.device | int) -> torch.device:
    """The device meant by "auto", "cpu", "cuda", "cuda:1", …; 0, 1, … are GPUs, -1 is the CPU.

    Raises:
        RequestError: not the name of a device.
        ResourceError: this machine does not have it.
    """
    here = available_devices()
    if str(device) == "-1":
        device = "cpu"
    elif str(device).isdecimal():
        device = f"cuda:{device}"
    if device == "auto":
        return torch.device(here[0])
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in DEVICE_TYPES:
        known = ", ".join(("auto", *DEVICE_TYPES))
        shown = printable(repr(str(device)))
        raise RequestError(f"device must be one of {known} (or cuda:1 …), got {shown}")
    count = torch.get_device_module(chosen).device_count() if chosen.type in here else 0
    if (chosen.index or 0) >= count:
        message = f"this machine has no device {chosen}"
        raise ResourceError(message, hint=f"it has: {', '.join(here)}")
    return chosen


def choose_dtype(
    dtype: str | torch.dtype, stored: torch.dtype, device: torch.device
) -> torch.dtype:
    """The dtype of the weights in memory.

    "auto" is the stored one, except on a CPU: half precision becomes bfloat16 where the CPU
    computes in it, else float32. (float16 is up to 100 times slower there.) bfloat16 stays where
    the kernels read it.

    Raises:
        RequestError: not the name of a dtype that a model runs in.
    """
    name = str(dtype).removeprefix("torch.")
    known: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}
    chosen = choose("dtype", name, {"auto": stored, **known})
    if name != "auto" or device.type != "cpu" or stored not in (torch.float16, torch.bfloat16):
        return chosen
    if stored == torch.bfloat16 and native.reads_bfloat16():
        return torch.bfloat16
    if not cpu_computes_bfloat16():
        return torch.float32
    if stored == torch.float16:
        logger.warning(
            "the weights are rounded from float16 to bfloat16, in which this CPU computes;"
            " dtype float32 keeps every bit"
        )
    return torch.bfloat16
