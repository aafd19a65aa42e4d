"""The memory that a model will take, from its headers alone: weights + cache + scratch."""

from dataclasses import dataclass, replace
from math import prod

import torch

from llamacli.checkpoint import Checkpoint
from llamacli.config import LlamaConfig
from llamacli.errors import ResourceError
from llamacli.generation import PREFILL_CHUNK
from llamacli.load_into import READING_THREADS
from llamacli.loading import choose_device, choose_dtype
from llamacli.machine_memory import available_memory_bytes
from llamacli.parallel import Share, column_groups
from llamacli.quantization_plan import Recipe, plan_quantization
from llamacli.torchao_format import QuantizedInfo, WeightInfo

# Bytes for each number of a weight while it is quantized: itself, and copies of it in float32.
_QUANTIZING = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """What a model takes beside the program itself.

    Attributes:
        weights_bytes: of all weights in the form that they have in memory.
        cache_bytes: of keys and values, when all rows have all their tokens.
        scratch_bytes: of what is there for a while: weights that are being read, or the
            activations of a chunk of prompts, whichever is more.
        available_bytes: that the device can still give, None where it does not tell.
    """

    weights_bytes: int
    cache_bytes: int
    scratch_bytes: int
    available_bytes: int | None

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return self.weights_bytes + self.cache_bytes + self.scratch_bytes

    @property
    def fits(self) -> bool:
        """Whether there is enough, as far as the device tells."""
        return self.available_bytes is None or self.total_bytes <= self.available_bytes

    def require(self) -> None:
        """Refuse what would not fit.

        Raises:
            ResourceError: with the sum.
        """
        if self.available_bytes is None or self.fits:
            return
        names = ("weights", "cache", "scratch")
        parts = (f"{name} {getattr(self, f'{name}_bytes') / 1e9:.2f}" for name in names)
        raise ResourceError(
            f"the model needs {self.total_bytes / 1e9:.2f} GB of memory ({' + '.join(parts)}),"
            f" {self.available_bytes / 1e9:.2f} GB are free",
            hint="use a smaller or quantized model (--quantize int4), or a shorter context",
        )


def estimate_memory(
    config: LlamaConfig,
    weights: Checkpoint,
    *,
    dtype: str,
    device: str,
    recipe: Recipe | None,
    rows: int,
    tokens: int,
    ranks: int = 1,
) -> MemoryEstimate:
    """The memory of a model that holds so many rows of so many tokens; options as `load_model`.

    With several ranks it is that of one of them, and what is free is shared by all.

    Raises:
        RequestError, ResourceError: the device is unknown or missing, as `choose_device`.
        CheckpointError, RequestError: the recipe does not fit, as `plan_quantization`.
    """
    share = Share(config, 0, ranks, column_groups(weights.tensors, {}))
    if ranks > 1:
        weights = replace(weights, tensors=share.of(weights.tensors))
    target, infos = choose_device(device), weights.tensors
    chosen = choose_dtype(dtype, next(iter(infos.values())).dtype, target)
    sizes = {name: _loaded_bytes(info, chosen) for name, info in infos.items()}
    passing = {name: info.nbytes for name, info in infos.items() if sizes[name] != info.nbytes}
    if recipe is not None:
        plan = plan_quantization(weights, recipe, tied=config.tie_word_embeddings)
        planned = {name: each for name, each in plan.items() if each.scheme}
        sizes |= {name: each.nbytes for name, each in planned.items()}
        passing |= {name: each.values * _QUANTIZING for name, each in planned.items()}
    passing |= {name: i.nbytes for name, i in infos.items() if isinstance(i, QuantizedInfo)}
    free = _available(target)
    return MemoryEstimate(
        weights_bytes=sum(sizes.values()),
        cache_bytes=rows
        * tokens
        * position_values(config)
        * chosen.itemsize
        // config.kv_heads
        * share.kv_heads,
        scratch_bytes=max(
            sum(sorted(passing.values())[-READING_THREADS:]),
            _activation_values(config, rows, tokens) * max(chosen.itemsize, 4),
        ),
        available_bytes=free and free // (ranks if target.type == "cpu" else 1),
    )


def _loaded_bytes(info: WeightInfo, dtype: torch.dtype) -> int:
    if isinstance(info, QuantizedInfo) or not info.dtype.is_floating_point:
        return info.nbytes
    return prod(info.shape) * dtype.itemsize


def position_values(config: LlamaConfig) -> int:
    """Numbers that the cache holds for a token: keys and values of every layer."""
    return 2 * config.num_hidden_layers * config.kv_heads * config.head_size


def _activation_values(config: LlamaConfig, rows: int, tokens: int) -> int:
    """Of a layer for a chunk of the prompts, and of the logits."""
    heads = config.num_attention_heads + 2 * config.kv_heads
    of_token = 4 * config.hidden_size + 3 * config.intermediate_size + 2 * heads * config.head_size
    return rows * (min(tokens, PREFILL_CHUNK) * of_token + 2 * config.vocab_size)


def _available(device: torch.device) -> int | None:
    if device.type == "cpu":
        return available_memory_bytes()
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return None
