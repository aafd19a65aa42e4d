"""Tensor parallelism: every rank holds a slice of each projection, and all compute each token.

A table says what becomes of a layer. With N ranks (arXiv:1909.08053):
    colwise    a rank has 1/N of the outputs: rows of the weight
    rowwise    a rank has 1/N of the inputs: columns of the weight; the ranks' outputs are added up
    embedding_rowwise        a rank has 1/N of the vocabulary, and zeros for other ids; added up
    colwise_gather_output    as colwise; then every rank gets all outputs

The same slice of heads goes through q, k, v and o, the same of the MLP through gate, up and down,
so a layer needs two sums and nothing else. What no line names, the norms, every rank has whole.
The model knows nothing of it: hooks do the sums. With DTensor, a pair of layers of width 64 takes
166 µs on one rank, without 10: 22 layers would spend 10 ms of each token on it, and their import
takes 0.4 s.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import lcm
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from llamacli.checkpoint import Checkpoint
from llamacli.collectives import Group
from llamacli.config import LlamaConfig
from llamacli.errors import RequestError
from llamacli.load_into import weight_sources
from llamacli.quantization import Scheme
from llamacli.torchao_format import QuantizedInfo, WeightInfo

TP_PLAN: Mapping[str, str] = {
    "embed_tokens": "embedding_rowwise",
    "layers.*.self_attn.q_proj": "colwise",
    "layers.*.self_attn.k_proj": "colwise",
    "layers.*.self_attn.v_proj": "colwise",
    "layers.*.self_attn.o_proj": "rowwise",
    "layers.*.mlp.gate_proj": "colwise",
    "layers.*.mlp.up_proj": "colwise",
    "layers.*.mlp.down_proj": "rowwise",
    "lm_head": "colwise_gather_output",
}


def style_of(path: str) -> str | None:
    """What becomes of a layer, with any prefix before its path; None for those left whole."""
    found = (style for pattern, style in TP_PLAN.items() if fnmatchcase(f".{path}", f"*.{pattern}"))
    return next(found, None)


Span = tuple[int, int]  # start and stop


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank holds of a model of this config.

    Query heads and vocabulary are cut evenly, the MLP into whole groups of its quantized weights.
    Where there are fewer key/value heads than ranks, several ranks hold the same.

    Attributes:
        groups: name of a weight → how many of its columns share a scale.

    Raises:
        RequestError: the heads, the groups or the vocabulary cannot be shared by so many.
    """

    config: LlamaConfig
    rank: int
    size: int
    groups: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        heads, kv_heads, size = self.config.num_attention_heads, self.config.kv_heads, self.size
        if heads % size or (kv_heads % size and size % kv_heads):
            counts = f"{heads} query heads and {kv_heads} key/value heads"
            raise RequestError(f"{counts} cannot be shared by {size} ranks")
        if self.config.intermediate_size // self._unit < size:
            groups = f"{self.config.intermediate_size // self._unit} groups of {self._unit}"
            raise RequestError(f"an MLP of {groups} columns cannot be shared by {size} ranks")
        if self._vocabulary * (size - 1) >= self.config.vocab_size:
            raise RequestError(f"{self.config.vocab_size} ids cannot be shared by {size} ranks")
        width = heads // size * self.config.head_size
        for name, group in self.groups.items():
            if name.endswith("o_proj.weight") and width % group:
                raise RequestError(
                    f"{name} has groups of {group} columns, {size} ranks would have {width} each"
                )

    @property
    def _unit(self) -> int:
        """Columns of the MLP that stay together."""
        down = (g for name, g in self.groups.items() if name.endswith("down_proj.weight"))
        return lcm(*down)

    @property
    def _vocabulary(self) -> int:
        """Ids of each rank; the last may have fewer."""
        return -(-self.config.vocab_size // self.size)

    def _even(self, count: int) -> Span:
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def span(self, path: str) -> Span:
        """The rows (columns of a rowwise layer) that the rank holds of a layer in the plan."""
        name, size = path.rpartition(".")[2], self.config.head_size
        if name in ("embed_tokens", "lm_head"):
            start = self.rank * self._vocabulary
            return start, min(start + self._vocabulary, self.config.vocab_size)
        if name in ("q_proj", "o_proj"):
            start, stop = self._even(self.config.num_attention_heads)
            return start * size, stop * size
        if name in ("k_proj", "v_proj"):
            start, stop = self._even(self.config.kv_heads)
            return start * size, max(stop, start + 1) * size
        start, stop = self._even(self.config.intermediate_size // self._unit)
        return start * self._unit, stop * self._unit

    @property
    def kv_heads(self) -> int:
        """Key/value heads of the rank."""
        start, stop = self.span("k_proj")
        return (stop - start) // self.config.head_size

    def of(self, weights: Mapping[str, WeightInfo]) -> dict[str, WeightInfo]:
        """What the rank reads of a checkpoint's weights."""
        return dict(self._slices(weights))

    def _slices(self, weights: Mapping[str, WeightInfo]) -> Iterator[tuple[str, WeightInfo]]:
        for name, info in weights.items():
            path, _, attribute = name.rpartition(".")
            style = style_of(path)
            if style is None or len(info.shape) != 2 - (attribute == "bias"):
                yield name, info
            elif style != "rowwise":
                yield name, info.rows(*self.span(path))
            elif attribute != "bias":
                yield name, info.columns(*self.span(path))
            elif self.rank == 0:  # the bias is a summand of one rank
                yield name, info


def column_groups(
    weights: Mapping[str, WeightInfo], schemes: Mapping[str, Scheme]
) -> dict[str, int]:
    """How many columns of a weight share a scale, as `Share` wants it.

    Args:
        weights: as they are stored.
        schemes: of those that become quantized while they are read.

    Raises:
        RequestError: rows would get other scales than in one process.
    """
    stored = {name: i.scheme for name, i in weights.items() if isinstance(i, QuantizedInfo)}
    for name, scheme in schemes.items():
        if scheme.bits == 8 and style_of(name.rpartition(".")[0]) == "rowwise":
            hint = "use --quantize int4, or a model that is quantized already"
            raise RequestError("ranks cannot quantize their parts of rows to int8", hint=hint)
    both = {**stored, **schemes}
    return {name: scheme.group_size for name, scheme in both.items() if scheme.bits == 4}


# ----------------------------------------------------------------------------------------------
# On a module


def apply_tensor_parallel(
    model: nn.Module, mesh: DeviceMesh, groups: Mapping[str, int] | None = None
) -> Share:
    """Make a model on the meta device that of this rank; tell which slices it wants.

    From then on its forward is to be called on all ranks, with the same input, and gives the same
    on all. It is for inference alone: there are no gradients.

    Args:
        model: a LlamaModel, or one with a head.
        mesh: of one dimension.
        groups: as in `Share`.

    Raises:
        RequestError: as `Share`.
    """
    config: LlamaConfig = model.config  # type: ignore[assignment]
    share = Share(config, mesh.get_local_rank(), mesh.size(), groups or {})
    model.requires_grad_(False)
    group = Group(mesh)
    cut: dict[nn.Parameter, nn.Parameter] = {}  # those that layers share, they still share
    for path, layer in model.named_modules():
        if style := style_of(path):
            _cut(layer, style, share.span(path), share.rank, cut)
            _connect(layer, style, share.span(path), group, config.vocab_size)
    model.tp_size = mesh.size()  # type: ignore[assignment]
    return share


def take_share(
    model: nn.Module, whole: Checkpoint, schemes: Mapping[str, Scheme], mesh: DeviceMesh
) -> Checkpoint:
    """Make a model that of this rank, and a checkpoint what the rank reads.

    Raises:
        CheckpointError: the weights do not fit the model, as `load_into`.
        RequestError: as `Share` and `column_groups`.
    """
    used = weight_sources(model, whole, schemes).values()  # checks whole shapes
    share = apply_tensor_parallel(model, mesh, column_groups(whole.tensors, schemes))
    return replace(whole, tensors=share.of({name: whole.tensors[name] for name in used}))


def _cut(
    layer: Any, style: str, span: Span, rank: int, cut: dict[nn.Parameter, nn.Parameter]
) -> None:
    """Give a layer parameters of the size of its slice."""
    for name, parameter in list(layer.named_parameters()):
        if style != "rowwise":
            part = parameter[slice(*span)]
        elif name == "weight":
            part = parameter[:, slice(*span)]
        else:
            part = parameter if rank == 0 else None
        if part is not None:
            part = cut.setdefault(parameter, nn.Parameter(part, requires_grad=False))
        setattr(layer, name, part)


def _connect(layer: nn.Module, style: str, span: Span, group: Group, vocab_size: int) -> None:
    """Have a layer's forward go on where other ranks are needed."""
    if style == "rowwise":
        layer.register_forward_hook(lambda _, __, out: group.add_up(out))
    elif style == "embedding_rowwise":
        layer.forward = VocabularySlice(layer, span, group)
    elif style == "colwise_gather_output":
        layer.register_forward_hook(lambda _, __, out: group.gather_last(out, vocab_size))


class VocabularySlice:
    """The forward of an embedding that has the ids start … stop-1."""

    def __init__(self, embedding: Any, span: Span, group: Group) -> None:
        self.embedding, self.span, self.group = embedding, span, group

    def __call__(self, token_ids: Tensor) -> Tensor:
        """(B, T) → (B, T, C)."""
        start, stop = self.span
        elsewhere = (token_ids < start) | (token_ids >= stop)
        found = F.embedding((token_ids - start).masked_fill(elsewhere, 0), self.embedding.weight)
        return self.group.add_up(found.masked_fill(elsewhere[..., None], 0))
