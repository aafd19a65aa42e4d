"""The native step is the same Llama as model.py: each is as near to float32 as the other."""

import copy
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamacli import dense_linear
from llamacli.cache import KVCache
from llamacli.errors import RequestError
from llamacli.kernels import decode_step, native
from llamacli.kernels.decode_step import DecodeStep, FewRows, install, kernel_set
from llamacli.kernels.native import MAX_ROWS
from llamacli.model import LlamaForCausalLM
from llamacli.model_folder import DEMO_FOLDER
from llamacli.quantization import QuantizedWeight, Scheme, quantize
from llamacli.quantized_linear import Int4Linear, quantized_linear, round_activations
from llamacli.tokenizer_fast import load_tokenizer
from tests.tiny import KINDS, random_ids, reference, twin

LINEAR = F.linear
INT4, INT8 = Scheme(4, 32), Scheme(8, 0)

# No multiples of 16 or 32, in bfloat16.
ODD = {"hidden_size": 40, "intermediate_size": 50}
NARROW = {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1}
WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2}

MODELS: dict[str, tuple[str, dict[str, Any], Scheme | None]] = {
    **{kind: (kind, {}, None) for kind in KINDS if kind != "gelu"},
    "odd": ("biases", ODD, None),
    "narrow": ("plain", NARROW, None),
    "int4": ("plain", WIDE, INT4),
    "int4-biases": ("biases", WIDE, INT4),
    "int4-mqa": ("mqa-head-dim", {"hidden_size": 64, "intermediate_size": 160}, INT4),
    "int4-llama3": ("llama3", WIDE, INT4),
    "int4-rounded": ("plain", WIDE, INT4),
    "int8": ("gqa", {"hidden_size": 40, "intermediate_size": 56}, INT8),
    "int8-biases": ("biases", WIDE, INT8),
}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def build(name: str = "plain", seed: int = 0) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A bfloat16 model with the native step, and the same in float32 without."""
    kind, sizes, scheme = MODELS[name]
    exact = twin(reference(kind, seed, **sizes)).bfloat16().float()
    model = copy.deepcopy(exact).bfloat16()
    for path, linear in projections(model) if scheme else ():
        stored = quantize(linear.weight.data, scheme)
        exact.get_submodule(path).weight.copy_(stored.dequantize(torch.float32))
        model.set_submodule(path, quantized_linear(stored, linear.bias))
    if name == "int4-rounded":
        round_activations(model)
    assert install(model)
    return model, exact


def projections(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    named = list(model.named_modules())
    return [(name, m) for name, m in named if isinstance(m, nn.Linear) and name != "lm_head"]


def by_torch(model: LlamaForCausalLM, ids: Tensor, **options: Any) -> Tensor:
    """Logits with the same layers, but one after the other as model.py says."""
    copied = copy.deepcopy(model)  # computes through torch
    assert kernel_set(copied) == "torch"
    return copied(ids, **options).logits


def by_layers(model: LlamaForCausalLM, ids: Tensor, **options: Any) -> Tensor:
    """Logits by the layers that this model has, whatever they compute with."""
    outputs = type(model.model).forward(model.model, ids, **options)
    return nn.Linear.forward(model.lm_head, outputs.last_hidden_state)


Forward = Callable[..., Tensor]


def logits_of(model: LlamaForCausalLM) -> Forward:
    return lambda *args, **options: model(*args, **options).logits


def natively(model: LlamaForCausalLM, ids: Tensor, **options: Any) -> Tensor:
    """Logits of a call that must not go through torch."""
    with torch_calls(model) as calls:
        logits = model(ids, **options).logits
    assert calls == []
    return logits


@contextmanager
def torch_calls(model: LlamaForCausalLM) -> Iterator[list[int]]:
    """The lengths of the calls that go through torch meanwhile."""
    step: Any = model.model.forward
    forward, lengths = step._forward, []

    def call(ids: Tensor, *args: Any, **options: Any) -> Any:
        lengths.append(ids.shape[1])
        return forward(ids, *args, **options)

    step._forward = call
    yield lengths
    step._forward = forward


def assert_as_near(found: Tensor, torchs: Tensor, exact: Tensor) -> None:
    """To the exact logits, found ones are about as near as torch's in bfloat16."""
    allowed = (torchs - exact).norm()
    assert 0 < allowed <= 0.2 * exact.norm()
    assert (found - exact).norm() <= 1.5 * allowed


def decode(forwards: list[Forward], ids: Tensor, lengths: list[int]) -> Tensor:
    """Logits of all tokens, cut into steps of these lengths, which the forwards take in turn."""
    kv = KVCache(2)
    parts = zip(torch.split(ids, lengths, dim=1), itertools.cycle(forwards), strict=False)
    return torch.cat([forward(part, cache=kv).float() for part, forward in parts], dim=1)


# ----------------------------------------------------------------------------------------------
# The law


LENGTHS = [5, 1, 2, MAX_ROWS, 1, 1, 50, 1, 5, 2, MAX_ROWS, 1]  # 50 goes through torch


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("name", MODELS)
def test_steps_of_any_length_are_those_of_torch(name: str) -> None:
    model, exact = build(name)
    ids = random_ids(1, sum(LENGTHS))
    with torch_calls(model) as calls:
        found = decode([logits_of(model)], ids, LENGTHS)
    assert calls == [50]
    slow = decode([lambda *args, **options: by_torch(model, *args, **options)], ids, LENGTHS)
    assert_as_near(found, slow, decode([logits_of(exact)], ids, LENGTHS))


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("name", ["gqa", "biases", "int4", "int8"])
def test_torch_and_native_steps_continue_the_same_cache(name: str) -> None:
    model, exact = build(name)
    ids, lengths = random_ids(1, 80), [3, 4, 1, 1, 5, 6] * 4

    def slow(*args: Any, **options: Any) -> Tensor:
        return by_torch(model, *args, **options)

    def fast(*args: Any, **options: Any) -> Tensor:
        return natively(model, *args, **options)

    expected = decode([logits_of(exact)], ids, lengths)
    for forwards in ([fast, slow], [slow, fast], [slow, slow, fast]):
        assert_as_near(decode(forwards, ids, lengths), decode([slow], ids, lengths), expected)


def padded_steps(forward: Forward, keep: Tensor | None = None) -> Tensor:
    """Three prompts of 4, 2 and 1 tokens padded on the left, then steps; logits of real tokens.

    Before the last steps only the rows `keep` go on, in this order.
    """
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
    kv, found = KVCache(2), []
    for at, length in enumerate([4, 1, 1, 3, 1, 2, 1]):
        if at == 4 and keep is not None:
            kv.keep_rows(keep)
            mask = mask[keep]
        if at > 0:
            mask = F.pad(mask, (0, length), value=1)
        ids = random_ids(len(mask), length, seed=at)
        logits = forward(ids, cache=kv, attention_mask=mask)
        found.append(logits[mask[:, -length:].bool()].float())
    return torch.cat(found)


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("name", ["gqa", "dynamic", "biases", "int4", "int8"])
@pytest.mark.parametrize("keep", [None, [0, 1, 2], [2, 0], [1]])
def test_padded_rows_are_those_of_torch(name: str, keep: list[int] | None) -> None:
    model, exact = build(name)
    rows = None if keep is None else torch.tensor(keep)
    found = padded_steps(lambda *args, **options: natively(model, *args, **options), rows)
    slow = padded_steps(lambda *args, **options: by_torch(model, *args, **options), rows)
    assert_as_near(found, slow, padded_steps(logits_of(exact), rows))


@pytest.mark.usefixtures("kernel_set")
def test_rows_of_a_batch_are_as_if_alone() -> None:
    model, _ = build("int4-biases")
    ids = random_ids(7, 2)
    together = natively(model, ids, cache=KVCache(2)).float()
    alone = torch.cat([natively(model, row[None], cache=KVCache(2)) for row in ids]).float()
    assert (together - alone).norm() <= 0.01 * alone.norm()


@pytest.mark.usefixtures("kernel_set")
def test_positions_may_be_given() -> None:
    model, _ = build("gqa")
    ids, kv = random_ids(1, 5), KVCache(2)
    given = natively(model, ids, cache=kv, position_ids=torch.arange(5)[None])
    assert torch.equal(given, natively(model, ids, cache=KVCache(2)))
    far = natively(model, ids, cache=KVCache(2), position_ids=torch.arange(0, 50, 10)[None])
    slow = by_torch(model, ids, cache=KVCache(2), position_ids=torch.arange(0, 50, 10)[None])
    assert (far - slow).norm() <= 0.05 * slow.norm() < (far - given).norm()


@pytest.mark.usefixtures("kernel_set")
def test_a_static_cache_is_used_to_its_end() -> None:
    model, _ = build("gqa")
    ids, kv, growing = random_ids(1, 9), KVCache(2, max_length=8), KVCache(2)
    for at in range(8):
        step = ids[:, at : at + 1]
        found = natively(model, step, cache=kv)
        assert torch.equal(found, natively(model, step, cache=growing))
    with pytest.raises(RequestError, match="holds 8 tokens, not 9"):
        model(ids[:, 8:], cache=kv)
    assert kv.length == 8


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("name", ["gqa", "int4", "int8"])
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    found, before = [], torch.get_num_threads()
    model, _ = build(name)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(decode([logits_of(model)], random_ids(1, 7 + MAX_ROWS), [5, 1, 1, MAX_ROWS]))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.usefixtures("kernel_set")
def test_several_python_threads_run_one_model() -> None:
    model, _ = build("gqa")
    ids = [random_ids(1, 40, seed=seed) for seed in range(4)]
    expected = [decode([logits_of(model)], row, [1] * 40) for row in ids]

    def run(row: Tensor) -> Tensor:
        with torch.no_grad():
            return decode([logits_of(model)], row, [1] * 40)

    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(run, ids), expected))


@pytest.mark.usefixtures("kernel_set")
def test_what_is_not_finite_stays_so() -> None:
    model, _ = build("gqa")
    model.model.embed_tokens.weight[5] = torch.nan
    install(model)
    kv = KVCache(2)
    assert natively(model, torch.tensor([[4]]), cache=kv).isfinite().all()
    logits = natively(model, torch.tensor([[4, 5, 6]]), cache=kv)
    assert logits[0, 0].isfinite().all()
    assert logits[0, 1:].isnan().all()  # what follows sees it


# ----------------------------------------------------------------------------------------------
# What goes through torch


def written(model: LlamaForCausalLM) -> None:
    other, _ = build("gqa", seed=5)
    model.load_state_dict(other.state_dict())


def assigned(model: LlamaForCausalLM) -> None:
    other, _ = build("gqa", seed=5)
    model.load_state_dict(other.state_dict(), assign=True)


def moved(model: LlamaForCausalLM) -> None:
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.data = weight.data * 2


def norm_written(model: LlamaForCausalLM) -> None:
    model.model.norm.weight.mul_(3)


def layer_replaced(model: LlamaForCausalLM) -> None:
    new = nn.Linear(32, 48, bias=False).bfloat16()
    model.set_submodule("model.layers.0.mlp.gate_proj", new)


CHANGES: dict[str, Callable[[LlamaForCausalLM], object]] = {
    "float": LlamaForCausalLM.float,
    "half": LlamaForCausalLM.half,
    "train": LlamaForCausalLM.train,
    "load_state_dict": written,
    "load_state_dict(assign)": assigned,
    "data": moved,
    "in place": norm_written,
    "layer": layer_replaced,
    "share_memory": LlamaForCausalLM.share_memory,
}


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_model_computes_with_what_it_has_now(
    change: Callable[[LlamaForCausalLM], object],
) -> None:
    model, _ = build("gqa")
    ids = random_ids(1, 4)
    before = natively(model, ids, cache=KVCache(2))
    change(model)
    with torch_calls(model) as calls:
        found = model(ids, cache=KVCache(2)).logits
    assert calls == [4]
    expected = by_layers(model, ids, cache=KVCache(2))
    assert (found - expected).norm() <= 0.01 * expected.norm()
    if change in (written, assigned, moved, norm_written, layer_replaced):
        assert (found - before).norm() > 0.1 * before.norm()


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, MAX_ROWS + 1), {}),
        ((6, 3), {}),
        ((1, 4), {"attention_mask": torch.tensor([[1, 0, 1, 1]])}),
        ((1, 4), {"attention_mask": torch.tensor([[1, 1, 1, 0]])}),
        ((2, 2), {"attention_mask": torch.tensor([[1, 1], [0, 0]])}),
    ],
)
def test_what_does_not_fit_goes_through_torch(
    shape: tuple[int, int], options: dict[str, Tensor]
) -> None:
    model, _ = build("gqa")
    ids = random_ids(*shape)
    with torch_calls(model) as calls:
        found = model(ids, cache=KVCache(2), **options).logits
    assert calls == [shape[1]]
    expected = by_layers(model, ids, cache=KVCache(2), **options)
    assert (found - expected).norm() <= 0.01 * expected.norm()


@pytest.mark.usefixtures("kernel_set")
def test_a_model_that_is_moved_while_a_cache_is_in_use_reads_no_freed_memory() -> None:
    model, _ = build("gqa")
    ids, caches = random_ids(1, 3), [KVCache(2), KVCache(2)]
    for kv in caches:
        model.model(ids[:, :2], cache=kv)
    expected = model.model(ids[:, 2:], cache=caches[0]).last_hidden_state
    model.float()  # the old weights are dropped
    found = model.model(ids[:, 2:], cache=caches[1]).last_hidden_state
    assert torch.equal(found, expected)
    assert model.model(ids, cache=KVCache(2)).last_hidden_state.dtype == torch.float32


@pytest.mark.usefixtures("kernel_set")
def test_without_a_cache_torch_computes() -> None:
    model, _ = build("gqa")
    with torch_calls(model) as calls:
        model(random_ids(1, 4))
    assert calls == [4]


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("name", ["gqa", "int4", "int8"])
def test_gradients_are_those_of_torch(name: str) -> None:
    model, exact = build(name)
    slow, found = copy.deepcopy(exact).bfloat16(), []
    for one in (model, slow, exact):
        with torch.enable_grad():
            one(random_ids(1, 4), cache=KVCache(2)).logits.float().logsumexp(
                dim=-1
            ).sum().backward()
        found.append(one.model.embed_tokens.weight.grad)
    assert_as_near(*found)


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("name", ["gqa", "int4", "int8"])
def test_copies_stand_alone(name: str) -> None:
    model, _ = build(name)
    ids = random_ids(1, 4)
    before = natively(model, ids, cache=KVCache(2))
    twins = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.zero_()
    del model
    assert (twins(ids, cache=KVCache(2)).logits - before).norm() <= 0.05 * before.norm()
    assert install(twins)
    assert torch.equal(natively(twins, ids, cache=KVCache(2)), before)


@pytest.mark.usefixtures("kernel_set")
def test_a_cache_of_other_rows_or_another_model_is_refused() -> None:
    model, exact = build("gqa")
    plain, _ = build("plain")
    for other, rows in ((model, 2), (plain, 1), (exact, 1)):
        kv = KVCache(2)
        other(random_ids(rows, 3), cache=kv)
        with pytest.raises(RequestError, match="the cache holds keys of"):
            model(random_ids(1, 1), cache=kv)


@pytest.mark.usefixtures("kernel_set")
def test_a_mask_that_is_too_short_is_refused() -> None:
    model, _ = build("gqa")
    with pytest.raises(IndexError):
        model(random_ids(1, 4), cache=KVCache(2), attention_mask=torch.ones(1, 3))


@pytest.mark.usefixtures("kernel_set")
def test_the_head_takes_no_other_dtype() -> None:
    model, _ = build("gqa")
    with pytest.raises(RuntimeError, match="dtype"):
        model.lm_head(torch.ones(1, 32))


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize(
    "model",
    [
        twin(reference("gelu")).bfloat16(),
        twin(reference()),
        twin(reference()).half(),
    ],
    ids=["gelu", "float32", "float16"],
)
def test_other_models_are_left_alone(model: LlamaForCausalLM) -> None:
    assert not install(model)
    assert "forward" not in {*vars(model.model), *vars(model.lm_head)}


@pytest.mark.usefixtures("kernel_set")
def test_a_loaded_model_has_the_native_step() -> None:
    model = LlamaForCausalLM.from_pretrained(DEMO_FOLDER, dtype="bfloat16", device="cpu")
    assert isinstance(model.model.forward, DecodeStep)


# ----------------------------------------------------------------------------------------------
# The demo model


def demo(layer: Callable[[QuantizedWeight, None], nn.Module]) -> LlamaForCausalLM:
    """In 4 bits, with such layers."""
    model = LlamaForCausalLM.from_pretrained(DEMO_FOLDER, dtype="bfloat16", device="cpu")
    for path, linear in projections(model):
        model.set_submodule(path, layer(quantize(linear.weight.data, INT4), None))
    return model


@cache
def demo_by_torch() -> tuple[Tensor, Tensor]:
    """200 ids, and the logits (200, V) that torch computes for them in float32."""
    text = (DEMO_FOLDER.parent / "evaluation.txt").read_text(encoding="utf-8")
    ids = torch.tensor([load_tokenizer(DEMO_FOLDER).encode(text)[:200]])
    return ids, by_torch(demo(Int4Linear).float(), ids)[0]


def test_the_demo_model_chooses_as_by_torch(kernel_set: str) -> None:
    ids, expected = demo_by_torch()
    model = demo(quantized_linear)
    assert install(model)
    kv = KVCache(4)
    steps = [natively(model, ids[:, at : at + 1], cache=kv)[0] for at in range(200)]
    (best, second), choice = expected.topk(2).values.T, expected.argmax(dim=-1, keepdim=True)
    is_clear = best - second > 0.05
    assert is_clear.sum() > 150
    found = torch.cat(steps)[is_clear]
    # In bfloat16 the logits are 0.06 apart, so the two best may be equal.
    assert torch.equal(found.gather(1, choice[is_clear])[:, 0], found.amax(dim=-1))


# ----------------------------------------------------------------------------------------------
# CPUs that have no instructions for bfloat16


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("kind", ["biases", "gelu"])
def test_long_prompts_are_multiplied_in_float32_where_that_is_faster(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = twin(reference(kind)).bfloat16().float()
    model, slow = copy.deepcopy(exact).bfloat16(), copy.deepcopy(exact).bfloat16()
    for module in (dense_linear, decode_step):
        monkeypatch.setattr(module, "cpu_computes_bfloat16", lambda: False)
    assert install(model) == (kind != "gelu")
    layers = [layer.forward for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert all(isinstance(forward, FewRows) for forward in layers)
    ids, multiplied = random_ids(1, 50), []
    monkeypatch.setattr(
        F, "linear", lambda *args: multiplied.append(args[0].dtype) or LINEAR(*args)
    )
    found = model(ids).logits.float()
    assert set(multiplied) == {torch.float32}
    assert_as_near(found, slow(ids).logits.float(), exact(ids).logits)


# ----------------------------------------------------------------------------------------------
# Long prompts


@pytest.mark.usefixtures("kernel_set")
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 3, 40), (2, 600)])
def test_norms_and_gates_are_nearer_to_float32_than_by_torch(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, up = (torch.randn(*shape, generator=generator).bfloat16() for _ in range(2))
    weight = torch.rand(shape[-1], generator=generator)
    norm = F.rms_norm(x.double(), shape[-1:], weight.double(), 1e-5)
    assert_rounded(native.rms_norm(x, weight, 1e-5), norm)
    gated = F.silu(x.double()) * up.double()
    assert_rounded(native.silu_mul_(x.clone(), up), gated)
    if x.dim() > 2:  # no multiple of a row apart
        assert_rounded(native.rms_norm(x.transpose(0, 1), weight, 1e-5), norm.transpose(0, 1))


def assert_rounded(found: Tensor, exact: Tensor) -> None:
    """To the nearest bfloat16, or almost."""
    assert (found.shape, found.dtype) == (exact.shape, torch.bfloat16)
    torch.testing.assert_close(found.double(), exact, rtol=2**-8 + 1e-5, atol=1e-30)


@pytest.mark.usefixtures("kernel_set")
def test_a_gate_that_is_watched_is_not_overwritten() -> None:
    model, _ = build("plain")
    seen: list[Tensor] = []
    mlp = model.model.layers[0].mlp
    mlp.gate_proj.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    x = torch.randn(1, 20, 32).bfloat16()
    mlp(x)
    assert torch.equal(seen[0], F.linear(x, mlp.gate_proj.weight))
