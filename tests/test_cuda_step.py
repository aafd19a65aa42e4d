"""What runs on CUDA as a graph, run on the CPU without one; and on a GPU where there is one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llamacli.cache import KVCache
from llamacli.errors import RequestError
from llamacli.kernels import cuda_step
from llamacli.kernels.cuda_step import GraphStep, compile_step
from llamacli.model import LlamaForCausalLM
from llamacli.quantization import quantize_int4
from llamacli.quantized_linear import Int4Linear
from tests.tiny import KINDS, random_ids, reference, twin

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")


def eagerly(body: Callable[[], Tensor], _: torch.device) -> Callable[[], Tensor]:
    return body


def pair(kind: str = "gqa") -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A model whose steps are those of the graph, and one that computes as model.py says."""
    stepped, plain = twin(reference(kind)), twin(reference(kind))
    stepped.model.forward = GraphStep(stepped.model, eagerly)  # type: ignore[method-assign]
    return stepped, plain


@torch.inference_mode()
def decoded(
    model: LlamaForCausalLM,
    ids: Tensor,
    prompt: int,
    mask: Tensor | None = None,
    max_length: int | None = None,
) -> Tensor:
    """Logits (B, T, V): of the prompt at once, then of one token after the other."""
    cache = KVCache(model.config.num_hidden_layers, max_length=max_length)
    found = [model(ids[:, :prompt], cache=cache, attention_mask=_until(mask, prompt)).logits]
    for at in range(prompt, ids.shape[1]):
        seen = _until(mask, at + 1)
        found.append(model(ids[:, at : at + 1], cache=cache, attention_mask=seen).logits)
    return torch.cat(found, dim=1)


def _until(mask: Tensor | None, end: int) -> Tensor | None:
    return None if mask is None else mask[:, :end]


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_the_model(kind: str) -> None:
    stepped, plain = pair(kind)
    ids = random_ids(2, 12)
    assert_near(decoded(stepped, ids, 5), decoded(plain, ids, 5))


@pytest.mark.parametrize("max_length", [None, 80])
def test_a_cache_may_grow_or_be_static(max_length: int | None) -> None:
    stepped, plain = pair()
    ids = random_ids(1, 80)  # beyond the first capacity
    found, expected = (decoded(model, ids, 60, None, max_length) for model in (stepped, plain))
    assert_near(found, expected)


def test_rows_may_be_padded() -> None:
    stepped, plain = pair()
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, :3] = False
    ids = random_ids(2, 12)
    found, expected = (decoded(model, ids, 6, mask) for model in (stepped, plain))
    assert_near(found[:, 6:], expected[:, 6:])
    assert_near(found[0, :6], expected[0, :6])


def test_layers_with_small_integers_are_used_as_they_are() -> None:
    stepped, plain = twin(reference()), twin(reference())
    for model in (stepped, plain):
        for layer in model.model.layers:
            weight = quantize_int4(layer.mlp.up_proj.weight.data, 32)
            layer.mlp.set_submodule("up_proj", Int4Linear(weight, None))
    stepped.model.forward = GraphStep(stepped.model, eagerly)  # type: ignore[method-assign]
    ids = random_ids(1, 9)
    assert_near(decoded(stepped, ids, 4), decoded(plain, ids, 4))


def test_a_step_is_captured_once_for_the_buffers_of_a_cache() -> None:
    model, captured = twin(reference()), []

    def capture(body: Callable[[], Tensor], _: torch.device) -> Callable[[], Tensor]:
        captured.append(body)
        return body

    model.model.forward = GraphStep(model.model, capture)  # type: ignore[method-assign]
    decoded(model, random_ids(1, 30), 4, None, 30)
    decoded(model, random_ids(1, 30), 4, None, 30)
    assert len(captured) == 2  # two caches


def test_joined_weights_are_still_the_model_s_own() -> None:
    stepped, plain = pair("biases")
    for (name, found), expected in zip(
        stepped.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected), name


def test_gradients_and_moved_models_go_through_torch() -> None:
    stepped, plain = pair()
    ids, cache = random_ids(1, 1), KVCache(2)
    assert stepped(ids, cache=cache).logits.requires_grad
    stepped.double()
    with torch.inference_mode():
        assert_near(stepped(ids, cache=KVCache(2)).logits.float(), plain(ids).logits)


def test_a_model_on_the_cpu_is_left_alone() -> None:
    model = twin(reference())
    assert not cuda_step.install(model)
    with pytest.raises(RequestError, match="--compile needs a model that is on one CUDA device"):
        compile_step(model)


@needs_cuda
@pytest.mark.parametrize("kind", ["plain", "gqa", "llama3", "biases"])
def test_a_captured_graph_computes_the_same(kind: str) -> None:
    stepped, plain = twin(reference(kind)).cuda(), twin(reference(kind)).cuda()
    assert cuda_step.install(stepped)
    ids = random_ids(2, 80).cuda()
    found, expected = (decoded(model, ids, 40) for model in (stepped, plain))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
