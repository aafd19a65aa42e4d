"""The memory that a model will take, from its headers alone: weights + cache + scratch."""

import os
from dataclasses import dataclass, replace

import torch

from llamacli.checkpoint import Checkpoint
from llamacli.config import LlamaConfig
from llamacli.devices import choose_device, choose_dtype, free_memory_bytes
from llamacli.errors import ResourceError
from llamacli.generation import GPU_PREFILL_CHUNK, PREFILL_CHUNK
from llamacli.load_into import READING_THREADS, loaded_bytes
from llamacli.parallel import Share, column_groups
from llamacli.placement import Placement
from llamacli.quantization_plan import Recipe, plan_quantization
from llamacli.ranks import Place
from llamacli.torchao_format import QuantizedInfo

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
    dtype: str | torch.dtype,
    device: str | torch.device | int | Placement,
    recipe: Recipe | None,
    rows: int,
    tokens: int,
    ranks: int = 1,
) -> MemoryEstimate:
    """The memory of a model that holds so many rows of so many tokens.

    Of a placed model it is that on the main device.

    With several ranks it is that of one of them, and those on this machine share what is free.

    Raises:
        RequestError, ResourceError: as `choose_device` and `choose_dtype`.
        CheckpointError, RequestError: the recipe does not fit, as `plan_quantization`.
    """
    target = choose_device(device.main_device if isinstance(device, Placement) else device)
    share = Share(config, 0, ranks, column_groups(weights.tensors, {}))
    if ranks > 1:
        weights = replace(weights, tensors=share.of(weights.tensors))
    infos = weights.tensors
    # What was quantized computes in bfloat16.
    stored = torch.bfloat16 if recipe else next(iter(infos.values())).dtype
    chosen = choose_dtype(dtype, stored, target)
    sizes = {name: loaded_bytes(info, chosen) for name, info in infos.items()}
    passing = {name: info.nbytes for name, info in infos.items() if sizes[name] != info.nbytes}
    if recipe is not None:
        plan = plan_quantization(weights, recipe, tied=config.tie_word_embeddings)
        planned = {name: each for name, each in plan.items() if each.scheme}
        sizes |= {name: each.nbytes for name, each in planned.items()}
        passing |= {name: each.values * _QUANTIZING for name, each in planned.items()}
    passing |= {name: i.nbytes for name, i in infos.items() if isinstance(i, QuantizedInfo)}
    placed = device.bytes_on(str(target)) if isinstance(device, Placement) else None
    chunk = PREFILL_CHUNK if target.type == "cpu" else GPU_PREFILL_CHUNK
    position_bytes = position_values(config) * chosen.itemsize // config.kv_heads * share.kv_heads
    free = free_memory_bytes(target)
    return MemoryEstimate(
        weights_bytes=sum(sizes.values()) if placed is None else placed,
        cache_bytes=rows * tokens * position_bytes,
        scratch_bytes=max(
            sum(sorted(passing.values())[-READING_THREADS:]),
            _activation_values(config, rows, tokens, chunk) * max(chosen.itemsize, 4),
        ),
        available_bytes=free and free // (_ranks_here(ranks) if target.type == "cpu" else 1),
    )


def _ranks_here(ranks: int) -> int:
    """Of so many ranks, those on this machine: torchrun may have started others elsewhere."""
    place = Place.from_environment(os.environ)
    return ranks if place is None else min(ranks, place.local_size)


def position_values(config: LlamaConfig) -> int:
    """Numbers that the cache holds for a token: keys and values of every layer."""
    return 2 * config.num_hidden_layers * config.kv_heads * config.head_size


def _activation_values(config: LlamaConfig, rows: int, tokens: int, chunk: int) -> int:
    """Of a layer for a chunk of the prompts, and of the logits."""
    heads = config.num_attention_heads + 2 * config.kv_heads
    of_token = 4 * config.hidden_size + 3 * config.intermediate_size + 2 * heads * config.head_size
    return rows * (min(tokens, chunk) * of_token + 2 * config.vocab_size)
