"""FlaxPreTrainedModel: a module, its parameters, and the folders that hold them."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import torch

from llamacli import hub
from llamacli.background import Report, ignore
from llamacli.checkpoint import Checkpoint
from llamacli.config import LlamaConfig
from llamacli.empty_model import meta_model
from llamacli.errors import RequestError, check_choice
from llamacli.flax_cache import FlaxKVCache
from llamacli.flax_generation import compiled_loop
from llamacli.flax_weights import Params, fill_twin, read_params
from llamacli.generation_config import GenerationConfig
from llamacli.loading import ModelName, PreTrainedModel, choose, open_weights
from llamacli.model_folder import read_config
from llamacli.torchao_format import QuantizedInfo, WeightInfo
from llamacli.weight_file import TensorInfo


class FlaxPreTrainedModel:
    """A Flax module and its parameters, as `transformers` 4 has them.

    Args:
        config: sizes and constants.
        seed: of random parameters.
        dtype: of the parameters, and so of what is computed.
        attn_implementation: "sdpa" or "eager".
        params: in place of random ones.

    Attributes:
        module: the Flax module, for what `__call__` cannot do.
        loop: the whole loop of `generate`.
        params: a tree of arrays, with the paths of Hugging Face's Flax models.
        generation_config: the model's own defaults for `generate`.
    """

    module_class: ClassVar[type[nn.Module]]
    torch_class: ClassVar[type[PreTrainedModel]]

    def __init__(
        self,
        config: LlamaConfig,
        *,
        seed: int = 0,
        dtype: Any = jnp.float32,
        attn_implementation: str = "sdpa",
        params: Params | None = None,
    ) -> None:
        self.config = config
        self.generation_config = GenerationConfig()
        self.module = self.module_class(config, attn_implementation)
        self.params: Params = self._random(seed, dtype) if params is None else params
        self.loop = compiled_loop(self.module)
        self._apply = jax.jit(
            self.module.apply,
            static_argnames=("train", "output_hidden_states", "output_attentions"),
        )

    def _random(self, seed: int, dtype: Any) -> Params:
        def make(key: jax.Array) -> Any:
            params = self.module.init(key, jnp.zeros((1, 1), jnp.int32))["params"]
            return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

        return jax.jit(make)(jax.random.key(seed))

    @property
    def dtype(self) -> Any:
        """Of the parameters."""
        return jax.tree.leaves(self.params)[0].dtype

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        params: Params | None = None,
        past_key_values: FlaxKVCache | None = None,
        dropout_rng: jax.Array | None = None,
        train: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Compute; compiled once for each shape of the arguments.

        Args:
            input_ids: (B, T).
            attention_mask: (B, up to S), 1 where a real token stands, 0 for padding. Tokens behind
                its end are real; None means that all are.
            position_ids: (B, T); counted from each row's first real token when None.
            params: in place of the model's own.
            past_key_values: of `init_cache` or the last call; holds the tokens before these.
            dropout_rng: a key, for training with attention dropout.
            train: with dropout.
            output_hidden_states: give those before and between the layers, too.
            output_attentions: give the weights of attention, too.
            return_dict: False gives a tuple.

        Returns:
            `FlaxBaseModelOutput` or `FlaxCausalLMOutput`.

        Raises:
            RequestError: a wrong shape, a full cache, or dropout without a key.
        """
        ids, mask = _array("input_ids", input_ids), _array("attention_mask", attention_mask)
        _check_room(ids, mask, past_key_values)
        if train and self.config.attention_dropout and dropout_rng is None:
            raise RequestError("training with attention_dropout needs a dropout_rng")
        outputs = self._apply(
            {"params": self.params if params is None else params},
            ids,
            mask,
            _array("position_ids", position_ids),
            past_key_values,
            rngs=None if dropout_rng is None else {"dropout": dropout_rng},
            train=train,
            output_hidden_states=bool(output_hidden_states),
            output_attentions=bool(output_attentions),
        )
        return outputs.to_tuple() if return_dict is False else outputs

    def init_cache(self, batch_size: int, max_length: int) -> FlaxKVCache:
        """An empty cache, with room for so many rows of so many tokens."""
        return FlaxKVCache.empty(self.config, batch_size, max_length, self.dtype)

    @classmethod
    def from_pretrained(
        cls,
        model: ModelName,
        *,
        revision: str | None = None,
        dtype: Any = "auto",
        attn_implementation: str = "sdpa",
        report: Report = ignore,
    ) -> Self:
        """Read a model from a folder or the hub, in safetensors; quantized weights become plain.

        Args:
            model: a folder, or a hub name such as "meta-llama/Llama-3.2-1B".
            revision: branch, tag or commit of a hub model.
            dtype: of the parameters; "auto" keeps that of the files, but on a CPU it is float32.
            attn_implementation: "sdpa" or "eager".
            report: is called with each step of a download.

        Raises:
            RequestError: a dtype in which the twins do not compute.
            LlamacliError: as `PreTrainedModel.from_pretrained` of the torch class.
        """
        folder = hub.resolve(model, revision=revision, report=report).path
        config = read_config(folder)
        opened = open_weights(folder, config)
        loaded = load_twin(
            cls, config, opened, dtype=dtype, attn_implementation=attn_implementation
        )
        loaded.generation_config = GenerationConfig.from_folder(folder)
        return loaded

    def save_pretrained(self, folder: str | os.PathLike[str], params: Params | None = None) -> None:
        """Write a folder that the torch class reads, and this one; `params` as in a call.

        Raises:
            LocalIOError: the disk refused.
        """
        twin = meta_model(self.torch_class, self.config)
        fill_twin(twin, self.params if params is None else params)
        twin.generation_config = self.generation_config
        twin.save_pretrained(folder)


ModelT = TypeVar("ModelT", bound=FlaxPreTrainedModel)


def load_twin(
    cls: type[ModelT],
    config: LlamaConfig,
    opened: Checkpoint,
    *,
    dtype: Any = "auto",
    attn_implementation: str = "sdpa",
    progress: Callable[[int, int], object] | None = None,
) -> ModelT:
    """Read the weights into a new model on JAX's first device; options as `from_pretrained`.

    `progress` is called with the bytes read so far and in all, after each weight.
    """
    params = read_params(
        meta_model(cls.torch_class, config),
        opened,
        dtype=choose_dtype(dtype, next(iter(opened.tensors.values())).dtype),
        progress=progress,
    )
    plain = dataclasses.replace(config, quantization_config=None)
    return cls(plain, attn_implementation=attn_implementation, params=params)


def choose_dtype(dtype: Any, stored: torch.dtype) -> torch.dtype:
    """The dtype of the parameters.

    "auto" is the stored one; on a CPU it is float32, since XLA widens half precision there in each
    step: decode of a 1.1B model took five times as long in bfloat16.

    Raises:
        RequestError: not the name of a dtype that a twin computes in.
    """
    known = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
    keeps = stored in known.values() and jax.default_backend() != "cpu"
    auto = stored if keeps else torch.float32
    named = isinstance(dtype, str | torch.dtype)
    name = str(dtype).removeprefix("torch.") if named else jnp.dtype(dtype).name
    options: dict[str, torch.dtype] = {"auto": auto, **known}
    return choose("dtype", name, options)


def choose_platform(device: str) -> None:
    """Have JAX compute on its first device ("auto") or on the CPU, before it has begun.

    Raises:
        RequestError: another device.
    """
    check_choice("device", device, ("auto", "cpu"))
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")


def as_loaded(opened: Checkpoint, dtype: str, device: str) -> tuple[Checkpoint, str]:
    """Headers and dtype of weights that are read as `load_twin` does, for an estimate of memory."""
    choose_platform(device)
    chosen = choose_dtype(dtype, next(iter(opened.tensors.values())).dtype)
    tensors: dict[str, WeightInfo] = {
        name: TensorInfo(info.shape, chosen, "", 0) if isinstance(info, QuantizedInfo) else info
        for name, info in opened.tensors.items()
    }
    plain = dataclasses.replace(opened, tensors=tensors)
    return plain, str(chosen).removeprefix("torch.")


def _array(name: str, values: Any) -> Any:
    """(B, T) integers, or None."""
    if values is None:
        return None
    array = jnp.asarray(values, jnp.int32)
    if array.ndim != 2:
        raise RequestError(f"{name} must have two dimensions, rows and tokens, got {array.ndim}")
    return array


def _check_room(ids: jax.Array, mask: jax.Array | None, cache: FlaxKVCache | None) -> None:
    """A mask that covers keys which are not there, or a full cache, would compute nonsense."""
    width = ids.shape[1] if cache is None else cache.max_length
    if mask is not None and mask.shape[1] > width:
        covered = mask.shape[1]
        raise RequestError(f"attention_mask covers {covered:,} tokens, but there are {width:,}")
    if cache is None or isinstance(cache.length, jax.core.Tracer):  # no number yet
        return
    if (end := int(cache.length) + ids.shape[1]) > width:
        raise RequestError(f"the static cache holds {width:,} tokens, not {end:,}")
