"""Decode steps of a Llama on CUDA: one graph, captured once and replayed for every token.

`install` puts it behind the forward of a LlamaModel. What it does not take (prompts, gradients,
dynamic rotary positions) goes on through torch. The same code runs on a CPU without a graph.

Shapes as in model.py; S is the capacity of the cache here, of which a mask hides what is empty.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamacli.cache import KVCache
from llamacli.errors import RequestError
from llamacli.kernels.fast_forward import FastForward

_WARM_UPS = 3  # cuBLAS and SDPA take their workspaces at first

Body = Callable[[], Tensor]
Capture = Callable[[Body, torch.device], Body]
Buffers = list[tuple[Tensor, Tensor]]  # of each layer keys and values (B, K, S, D)


def install(model: nn.Module) -> bool:
    """Speed up a LlamaModel, or one with a head, if it is on CUDA; tell whether it is."""
    base: Any = getattr(model, "model", model)
    if {tensor.device.type for tensor in (*base.parameters(), *base.buffers())} != {"cuda"}:
        return False
    base.forward = GraphStep(base, capture)
    return True


def compile_step(model: nn.Module) -> None:
    """Have torch.compile fuse the steps of a model that has been installed; it takes a minute.

    Raises:
        RequestError: its steps are none of these.
    """
    step = getattr(getattr(model, "model", model), "forward", None)
    if not isinstance(step, GraphStep):
        raise RequestError("--compile needs a model that is on one CUDA device as a whole")
    step.compile()


def capture(body: Body, device: torch.device) -> Body:
    """A function that replays what `body` does on a GPU, and gives the same tensor each time.

    As https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs: warmed up on a side stream.
    """
    with torch.cuda.device(device):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                body()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):  # its own would be that of the first device
            out = body()

    def replay() -> Tensor:
        with torch.cuda.device(device):
            graph.replay()
        return out

    return replay


class GraphStep(FastForward):
    """The forward of a LlamaModel.

    Args:
        model: a LlamaModel.
        capture: turns a step into one that is cheap to repeat.
    """

    def __init__(self, model: Any, capture: Capture) -> None:
        super().__init__(model)
        self._capture = capture
        self._operations = FewOperations(model)
        self._compiled: Callable[..., Tensor] | None = None
        self._captured: WeakKeyDictionary[KVCache, _CapturedStep] = WeakKeyDictionary()

    def compile(self) -> None:
        """Compile steps before they are captured."""
        self._compiled = torch.compile(self._operations.__call__, dynamic=False)
        self._captured.clear()

    def _compute(
        self,
        input_ids: Tensor,
        cache: KVCache,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
    ) -> Tensor | None:
        if position_ids is not None or not self._fits(input_ids):
            return None
        step = self._captured.get(cache)
        if step is None or len(step.keys) != len(input_ids) or not cache.holds(step.keys, 1):
            step = self._captured[cache] = self._new_step(input_ids, cache)
        out = step(input_ids, cache.length, attention_mask)
        cache.advance(1)
        return out

    def _fits(self, input_ids: Tensor) -> bool:
        return (
            input_ids.shape[1] == 1
            and self._operations.are_current()
            and torch.is_inference_mode_enabled()
            and not self._model.training
            and not self._model.config.rope_follows_length
        )

    def _new_step(self, input_ids: Tensor, cache: KVCache) -> "_CapturedStep":
        config, weight = self._model.config, self._model.norm.weight
        shape = (len(input_ids), config.kv_heads, 1, config.head_size)
        buffers = cache.reserve(torch.empty(shape, dtype=weight.dtype, device=weight.device))
        for buffer in (tensor for pair in buffers for tensor in pair):
            buffer[:, :, cache.length :] = 0  # hidden values count 0 times, but not if they are NaN
        return _CapturedStep(self._compiled or self._operations, buffers, self._capture)


class _CapturedStep:
    """A step for the buffers of one cache; what changes from token to token is copied in."""

    def __init__(self, body: Callable[..., Tensor], buffers: Buffers, capture: Capture) -> None:
        self.keys = buffers[0][0]
        batch, _, capacity, _ = self.keys.shape
        device = self.keys.device
        self._token_ids = torch.zeros((batch, 1), dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)  # in the cache
        self._position_ids = torch.zeros((batch, 1), dtype=torch.int64, device=device)
        self._seen = torch.zeros((batch, capacity), dtype=torch.bool, device=device)
        self._columns = torch.arange(capacity, device=device)
        self._capture = capture
        self._replay: Body | None = None
        inputs = (self._token_ids, self._position, self._position_ids, self._seen)
        self._body = lambda: body(*inputs, buffers)

    def __call__(self, token_ids: Tensor, length: int, attention_mask: Tensor | None) -> Tensor:
        """Hidden states (B, 1, C) after one token (B, 1) more than `length`."""
        self._token_ids.copy_(token_ids)
        self._position.fill_(length)
        if attention_mask is None:
            self._position_ids.fill_(length)
            torch.le(self._columns, length, out=self._seen[0])
            self._seen[1:] = self._seen[0]
        else:
            self._seen[:, : length + 1] = attention_mask.bool()
            self._position_ids.copy_(self._seen.sum(dim=-1, keepdim=True) - 1)
        if self._replay is None:  # what capturing writes to the cache is what the step writes
            self._replay = self._capture(self._body, self.keys.device)
        return self._replay().clone()  # the next replay writes to the same place


class FewOperations:
    """One token a row through the layers of model.py, in about a third of the operations.

    Weights that have the same input become one; the modules keep views of their parts.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._projections = [
            (
                _joined(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                _joined(layer.mlp.gate_proj, layer.mlp.up_proj),
            )
            for layer in model.layers
        ]
        self._place = model.norm.weight.data_ptr()

    def are_current(self) -> bool:
        """Whether the weights are where they were; what moves or casts a model moves all."""
        return bool(self._model.norm.weight.data_ptr() == self._place)

    def __call__(
        self,
        token_ids: Tensor,
        position: Tensor,
        position_ids: Tensor,
        seen: Tensor,
        buffers: Buffers,
    ) -> Tensor:
        """Hidden states (B, 1, C) after the last norm.

        Args:
            token_ids: (B, 1).
            position: (1,), where in the cache keys and values are written.
            position_ids: (B, 1), by which they are rotated.
            seen: (B, S), what may be attended to; the token itself is.
            buffers: keys and values of each layer.
        """
        x = self._model.embed_tokens(token_ids)[:, 0]  # (B, C)
        cos, sin = (part[:, :, 0] for part in self._model.rotary_emb(position_ids, x.dtype))
        half = sin.shape[-1] // 2
        rope = cos, torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)  # (B, 1, D) each
        mask = torch.zeros_like(seen, dtype=x.dtype).masked_fill(~seen, float("-inf"))
        mask = mask[:, None, None]  # (B, 1, 1, S)
        for layer, joined, cached in zip(
            self._model.layers, self._projections, buffers, strict=True
        ):
            x = self._layer(layer, joined, cached, x, rope, mask, position)
        return _norm(x, self._model.norm)[:, None]

    def _layer(
        self,
        layer: Any,
        joined: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
        cached: tuple[Tensor, Tensor],
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor,
        position: Tensor,
    ) -> Tensor:
        (keys, values), (qkv_proj, gate_up_proj) = cached, joined
        kv_heads, head_dim = keys.shape[1], keys.shape[3]
        heads = torch.unflatten(qkv_proj(_norm(x, layer.input_layernorm)), -1, (-1, head_dim))
        qk, v = heads[:, :-kv_heads], heads[:, -kv_heads:]  # (B, H + K, D), (B, K, D)
        qk = torch.addcmul(qk * rope[0], qk.roll(head_dim // 2, dims=-1), rope[1])
        q, k = qk[:, :-kv_heads], qk[:, -kv_heads:]
        keys.index_copy_(2, position, k[:, :, None])
        values.index_copy_(2, position, v[:, :, None])
        # The queries that share keys stand in a row: masked kernels know no groups.
        q = torch.unflatten(q, 1, (kv_heads, -1))  # (B, K, H/K, D)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        x = _add(x, layer.self_attn.o_proj, out.flatten(1))
        gate, up = gate_up_proj(_norm(x, layer.post_attention_layernorm)).chunk(2, dim=-1)
        return _add(x, layer.mlp.down_proj, layer.mlp.act(gate) * up)


def _norm(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)


def _add(x: Tensor, linear: Any, y: Tensor) -> Tensor:
    """x + linear(y), in one operation where there is one."""
    if type(linear) is nn.Linear and linear.bias is None:
        return torch.addmm(x, y, linear.weight.t())
    return x + linear(y)  # type: ignore[no-any-return]


def _joined(*linears: Any) -> Callable[[Tensor], Tensor]:
    """Layers with one input as one layer: (…, K) → (…, all N)."""
    if not all(type(linear) is nn.Linear for linear in linears):
        return lambda x: torch.cat([linear(x) for linear in linears], dim=-1)
    joined = [_share([linear.weight for linear in linears])]
    if linears[0].bias is not None:
        joined.append(_share([linear.bias for linear in linears]))
    return lambda x: F.linear(x, *joined)


def _share(parts: list[nn.Parameter]) -> Tensor:
    """The parts one after the other along the first dimension; they become views of it."""
    whole = torch.cat([part.data for part in parts])
    for part, data in zip(parts, torch.split(whole, [*map(len, parts)]), strict=True):
        part.data = data
    return whole
