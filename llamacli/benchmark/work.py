"""What a case takes, whoever computes it: bytes of a decode step, operations of a prompt."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from llamacli.benchmark.cases import Case
from llamacli.config import LlamaConfig
from llamacli.memory_estimate import position_values
from llamacli.model import LlamaForCausalLM


@dataclass(frozen=True, slots=True)
class Work:
    """Of one model, on all ranks that share it.

    Attributes:
        weight_bytes: read in each step: all but the embeddings, of which a step reads a row.
        position_bytes: keys and values of one position of one row.
        layer_flops: of a token in the projections, without attention.
        head_flops: of a token in the output head.
        attention_flops: of a token for each position that it sees.
    """

    weight_bytes: int
    position_bytes: int
    layer_flops: int
    head_flops: int
    attention_flops: int

    @classmethod
    def of(cls, model: LlamaForCausalLM) -> Self:
        """That of a loaded model, in the form that its weights have now."""
        config, weight = model.config, model.model.norm.weight  # never quantized
        parts = (*model.model.layers, model.model.norm, model.lm_head)
        weight_bytes = _nbytes(tensor for part in parts for tensor in _tensors(part))
        return cls.of_sizes(config, model.tp_size * weight_bytes, weight.itemsize)

    @classmethod
    def of_sizes(cls, config: LlamaConfig, weight_bytes: int, itemsize: int) -> Self:
        """That of a model with so many bytes of weights, and so many in a key's number."""
        heads = config.num_hidden_layers * config.head_size
        return cls(
            weight_bytes=weight_bytes,
            position_bytes=position_values(config) * itemsize,
            layer_flops=2 * projection_values(config),
            head_flops=2 * config.vocab_size * config.hidden_size,
            attention_flops=4 * heads * config.num_attention_heads,
        )

    def step_bytes(self, case: Case) -> float:
        """Read in a decode step of a case, on average: weights, and the cache of every row."""
        seen = case.depth + case.prompt_tokens + (case.new_tokens + 1) / 2
        return self.weight_bytes + case.batch * seen * self.position_bytes

    def prefill_flops(self, case: Case) -> float:
        """Of a case's prompts; the head is asked for the last token of each."""
        tokens = case.prompt_tokens
        seen = tokens * (case.depth + (tokens + 1) / 2)
        of_row = tokens * self.layer_flops + seen * self.attention_flops + self.head_flops
        return case.batch * of_row


def projection_values(config: LlamaConfig) -> int:
    """Numbers in the projections of all layers."""
    heads = 2 * config.num_attention_heads + 2 * config.kv_heads
    of_layer = heads * config.head_size + 3 * config.intermediate_size
    return config.num_hidden_layers * of_layer * config.hidden_size


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    return (*module.parameters(), *module.buffers())


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
