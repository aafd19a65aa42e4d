"""A model before its weights: built without memory, beside what its checkpoint has for it."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from llamacli.checkpoint import Checkpoint
from llamacli.config import LlamaConfig
from llamacli.quantization_plan import PlannedWeight, Recipe, plan_quantization

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class EmptyModel(Generic[ModelT]):
    """A model without weights, and those that it will have, by its own names.

    Attributes:
        plan: how weights become quantized.
        stored: the dtype where nothing else is asked for.
    """

    model: ModelT
    weights: Checkpoint
    plan: Mapping[str, PlannedWeight]
    stored: torch.dtype


def prepare(
    cls: type[ModelT],
    config: LlamaConfig,
    opened: Checkpoint,
    recipe: Recipe | None,
    attn_implementation: str = "sdpa",
) -> EmptyModel[ModelT]:
    """A class of model, and the weights of a checkpoint under its names.

    Raises:
        CheckpointError, RequestError: the recipe does not fit, as `plan_quantization`.
    """
    model = meta_model(cls, config, attn_implementation)
    stored = next(iter(opened.tensors.values())).dtype
    plan: Mapping[str, PlannedWeight] = {}
    if recipe is not None:
        plan = plan_quantization(opened, recipe, tied=config.tie_word_embeddings)
        stored = next(iter(plan.values())).dtype
    names = names_for(model, opened.tensors)
    tensors = {ours: opened.tensors[theirs] for ours, theirs in names.items()}
    weights = dataclasses.replace(opened, tensors=tensors)
    plan = {ours: plan[theirs] for ours, theirs in names.items() if theirs in plan}
    return EmptyModel(model, weights, plan, stored)


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


def names_for(model: Any, stored: Iterable[str]) -> dict[str, str]:
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
