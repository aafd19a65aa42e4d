"""Folder or hub name + options → a finished model. The only place where the parts meet."""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, Self, TypeVar, Unpack

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from llamacli import hub
from llamacli.atomic import atomic_write_all
from llamacli.background import Report, ignore
from llamacli.checkpoint import (
    MAX_SHARD_BYTES,
    Checkpoint,
    open_checkpoint,
    save_state_dict,
)
from llamacli.collectives import Group, join_torchrun
from llamacli.config import LlamaConfig
from llamacli.devices import choose_device, choose_dtype, main_device
from llamacli.empty_model import prepare
from llamacli.errors import RequestError, check_choice
from llamacli.generation_config import GenerationConfig
from llamacli.kernels import cuda_step
from llamacli.kernels.decode_step import install
from llamacli.kernels.offloaded_step import dispatch_with_kernels
from llamacli.kernels.shared_step import SharedStep
from llamacli.load_into import load_into, loaded_bytes
from llamacli.memory_estimate import estimate_memory
from llamacli.model_folder import read_config
from llamacli.offload import Offload
from llamacli.parallel import take_share
from llamacli.placement import Placement, PlacementRequest, Placing, place, placement_request
from llamacli.quantization_plan import Recipe
from llamacli.quantized_linear import is_quantized, round_activations
from llamacli.torchao_config import recipe_of
from llamacli.torchao_format import check_quantization_config

ModelName = str | os.PathLike[str]
Device = str | torch.device | int


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
        """Where ids belong: with the weights, or where most of these are used."""
        return main_device(self)

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
            attn_implementation: "sdpa", "eager" or "flash_attention_2" (see `flash_attention`).
            quantization_config: a TorchAoConfig; the weights are quantized while they are read.
            activations: "int8" rounds the input of int4 layers (see `round_activations`); "auto"
                does not.
            report: is called with each step of a download.
            placing: `device_map`, `max_memory`, `offload_folder` and `tp_plan`, as `Placing`.

        Raises:
            TypeError: an option that is not supported, by name.
            LlamacliError: see `hub.resolve`, `LlamaConfig`, `open_checkpoint`, `recipe_of`,
                `plan_quantization`, `round_activations`, `place`, `parallel.Share`.
        """
        request = _asked(device, placing)
        recipe = None if quantization_config is None else recipe_of(quantization_config)
        folder = hub.resolve(model, revision=revision, report=report).path
        config = read_config(folder)
        opened = open_weights(folder, config)
        loaded = load_model(
            cls,
            config,
            opened,
            dtype=dtype,
            device=_located(cls, config, opened, request, dtype, recipe),
            attn_implementation=attn_implementation,
            recipe=recipe,
            activations=activations,
        )
        loaded.generation_config = GenerationConfig.from_folder(folder)
        return loaded

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, max_shard_bytes: int = MAX_SHARD_BYTES
    ) -> None:
        """Write config.json, generation_config.json if there is one, and safetensors.

        Raises:
            RequestError: weights are quantized, not in memory, or shared by several ranks.
            LocalIOError: the disk refused.
        """
        if self.tp_size > 1:
            raise RequestError(f"a model shared by {self.tp_size} ranks cannot be written")
        if any(map(is_quantized, self.modules())):
            hint = "`llamacli quantize` writes one from the original folder"
            raise RequestError("a quantized model cannot be written", hint=hint)
        target, state = Path(folder), self.state_dict()
        if any(tensor.is_meta for tensor in state.values()):
            raise RequestError("a model that is partly on disk cannot be written")
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


def _asked(device: Device, placing: Placing) -> Device | PlacementRequest | DeviceMesh:
    """The device of the whole model, how it is to be split, or the ranks that share it."""
    tp_plan = placing.pop("tp_plan", None)
    where = placement_request(device, placing)
    if tp_plan is None:
        return where
    check_choice("tp_plan", tp_plan, ("auto",))
    if isinstance(where, PlacementRequest):
        raise RequestError("tp_plan and device_map contradict each other")
    return join_torchrun(choose_device(where).type)


ModelT = TypeVar("ModelT", bound=PreTrainedModel)


def _located(
    cls: type[ModelT],
    config: LlamaConfig,
    opened: Checkpoint,
    where: Device | PlacementRequest | DeviceMesh,
    dtype: str | torch.dtype,
    recipe: Recipe | None,
) -> Device | Placement | DeviceMesh:
    if not isinstance(where, PlacementRequest):
        return where
    return plan_placement(cls, config, opened, where, dtype=dtype, recipe=recipe)


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
    device: Device | Placement | DeviceMesh = "auto",
    attn_implementation: str = "sdpa",
    recipe: Recipe | None = None,
    activations: str = "auto",
    progress: Callable[[int, int], object] | None = None,
) -> ModelT:
    """Read the weights into a new model, in evaluation mode; options as `from_pretrained`.

    Config and tensor headers are checked against each other, and their sum against the memory that
    is free, before anything is allocated. Weights become quantized as `recipe` says. On a mesh each
    rank reads its share. `progress` is called with the bytes read so far and in all, after each
    weight.
    """
    rounds = choose("activations", activations, {"auto": False, "int8": True})
    mesh = device if isinstance(device, DeviceMesh) and device.size() > 1 else None
    target = choose_device(_main(device))
    ready = prepare(cls, config, opened, recipe, attn_implementation)
    where = device if isinstance(device, Placement) else target
    needed = partial(estimate_memory, config, opened, dtype=dtype, device=where, recipe=recipe)
    needed(rows=1, tokens=1, ranks=mesh.size() if mesh else 1).require()
    model, weights = ready.model, ready.weights
    chosen = choose_dtype(dtype, ready.stored, target)
    schemes = {name: planned.scheme for name, planned in ready.plan.items() if planned.scheme}
    if mesh is not None:
        weights = take_share(model, weights, schemes, mesh)
    offload = None
    if isinstance(device, Placement) and device.is_split:
        offload = Offload(device, weights, chosen, schemes)
    load_into(
        model,
        weights,
        dtype=chosen,
        device=offload.place if offload else target,
        schemes=schemes,
        algorithm=recipe.algorithm if recipe else "rtn",
        progress=progress,
    )
    if rounds:
        round_activations(model)
    _speed_up(model, offload, mesh)
    return model.eval()


def _speed_up(model: nn.Module, offload: Offload | None, mesh: DeviceMesh | None) -> None:
    if mesh is not None:
        install(model, partial(SharedStep, group=Group(mesh)))
    elif offload is not None:
        dispatch_with_kernels(model, partial(offload.dispatch, model))
    elif not cuda_step.install(model):
        install(model)


def plan_placement(
    cls: type[ModelT],
    config: LlamaConfig,
    opened: Checkpoint,
    request: PlacementRequest,
    *,
    dtype: str | torch.dtype = "auto",
    recipe: Recipe | None = None,
) -> Placement:
    """Where the parts of a model will go, from the headers alone; other arguments as `load_model`.

    Raises:
        RequestError, ResourceError: as `place`.
    """
    ready = prepare(cls, config, opened, recipe)
    chosen = choose_dtype(dtype, ready.stored, request.main_device)
    nbytes = {name: loaded_bytes(info, chosen) for name, info in ready.weights.tensors.items()}
    nbytes |= {name: planned.nbytes for name, planned in ready.plan.items() if planned.scheme}
    return place(ready.model, nbytes, request)


def _main(device: Device | Placement | DeviceMesh) -> Device:
    """The device where a model takes ids."""
    if isinstance(device, DeviceMesh):
        return device.device_type
    return device.main_device if isinstance(device, Placement) else device


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
