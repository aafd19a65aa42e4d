"""Tensors of a checkpoint become the parameters of a module, or nothing changes."""

import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from llamacli import load_into as loading
from llamacli.checkpoint import Checkpoint, Weight, open_checkpoint, save_state_dict
from llamacli.config import LlamaConfig
from llamacli.errors import CheckpointError, ResourceError
from llamacli.kernels import native
from llamacli.load_into import READING_THREADS, load_into
from llamacli.memory import allocate
from llamacli.model import LlamaForCausalLM
from llamacli.quantization import Scheme, quantize, quantize_int8
from llamacli.quantized_linear import Int8Linear
from llamacli.torchao_format import metadata_for, part_name
from llamacli.weight_file import Take
from tests import attacks
from tests.tiny import SIZES

MEGABYTE = 1_000_000
NAMES = [name for name, _ in LlamaForCausalLM(LlamaConfig(**SIZES)).named_parameters()]


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers that torch computes."""
    monkeypatch.setattr(native, "fits", lambda weight: False)


def empty_model(**changed: object) -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changed}))


def good_weights() -> dict[str, Tensor]:
    return LlamaForCausalLM(LlamaConfig(**SIZES)).state_dict()


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file(dict(tensors), folder / "model.safetensors")


def sparse_checkpoint(folder: Path, count: int) -> nn.ParameterDict:
    """So many tensors of 20 MB that take no space on the disk; returns a module for them."""
    size = 20 * MEGABYTE
    names = [f"tensor{number}" for number in range(count)]
    header = {
        name: attacks.entry(
            dtype="BF16", shape=[size // 2], data_offsets=[at * size, (at + 1) * size]
        )
        for at, name in enumerate(names)
    }
    start = attacks.weights(header, b"")
    with (folder / "model.safetensors").open("wb") as file:
        file.write(start)
        file.truncate(len(start) + count * size)
    return nn.ParameterDict({name: torch.empty(size // 2, device="meta") for name in names})


def test_parameters_get_the_dtype_asked_for_and_keep_requires_grad(tmp_path: Path) -> None:
    save_state_dict(tmp_path, {"weight": torch.full((2, 2), 1.5), "bias": torch.zeros(2)})
    layer = nn.Linear(2, 2, device="meta")
    layer.bias.requires_grad_(False)
    load_into(layer, open_checkpoint(tmp_path), dtype=torch.bfloat16)
    assert torch.equal(layer.weight, torch.full((2, 2), 1.5, dtype=torch.bfloat16))
    assert layer.bias.dtype == torch.bfloat16
    assert (layer.weight.requires_grad, layer.bias.requires_grad) == (True, False)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_loading_holds_no_second_copy(dtype: torch.dtype | None, tmp_path: Path) -> None:
    module = sparse_checkpoint(tmp_path, count=20)
    in_flight = 4 * (20 + 10) * MEGABYTE  # a tensor and a stack for each thread
    with attacks.memory_limit(400 * MEGABYTE + in_flight):
        load_into(module, open_checkpoint(tmp_path), dtype=dtype)
    assert sum(parameter.nbytes for parameter in module.values()) == 400 * MEGABYTE


@pytest.mark.skipif(sys.platform != "linux", reason="memory is not limited here")
def test_too_little_memory_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    module = sparse_checkpoint(tmp_path, count=20)
    with attacks.memory_limit(200 * MEGABYTE):
        checkpoint = open_checkpoint(tmp_path)
        with pytest.raises(ResourceError, match="no memory for a tensor of 20,000,000 bytes"):
            load_into(module, checkpoint)
    assert all(parameter.is_meta for parameter in module.values())


@given(name=st.sampled_from(NAMES))
def test_fault_011_a_tensor_of_another_shape_is_named(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, state = tmp_path_factory.mktemp("shape"), good_weights()
    wanted = tuple(state[name].shape)
    write(folder, state | {name: torch.zeros(7, *wanted)})
    with pytest.raises(CheckpointError) as caught:
        load_into(empty_model(), open_checkpoint(folder))
    assert f"{name} (file has {(7, *wanted)}, config wants {wanted})" in str(caught.value)


def test_fault_011_misfits_are_found_before_memory_is_allocated(tmp_path: Path) -> None:
    module = sparse_checkpoint(tmp_path, count=50)  # 1 GB
    module["tensor49"] = torch.empty(3, device="meta")
    with attacks.memory_limit(15 * MEGABYTE):
        checkpoint = open_checkpoint(tmp_path)
        with pytest.raises(CheckpointError, match=r"tensor49 \(file has \(10000000,\), config"):
            load_into(module, checkpoint)
    assert module["tensor0"].is_meta


def test_fault_011_integers_are_not_taken_for_weights(tmp_path: Path) -> None:
    state = good_weights()
    write(tmp_path, state | {"model.norm.weight": torch.ones(32, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match=r"file has \(32,\) of torch.int8, config wants \(32"):
        load_into(empty_model(), open_checkpoint(tmp_path))


def test_fault_012_missing_tensors_are_listed_up_to_five(tmp_path: Path) -> None:
    write(tmp_path, {name: good_weights()[name] for name in NAMES[6:]})
    with pytest.raises(CheckpointError) as caught:
        load_into(empty_model(), open_checkpoint(tmp_path))
    assert str(caught.value) == f"the weights lack {', '.join(NAMES[:5])} and 1 more"


def test_fault_012_unexpected_tensors_are_noted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    redundant = ["model.layers.0.self_attn.rotary_emb.inv_freq", "rope.freqs"]
    extra = {name: torch.ones(1) for name in [*"abcdefg", *redundant]}
    write(tmp_path, good_weights() | extra)
    load_into(empty_model(), open_checkpoint(tmp_path))
    assert caplog.messages == ["tensors that the model has no use for: a, b, c, d, e and 2 more"]


def test_fault_013_tied_embeddings_need_no_head(tmp_path: Path) -> None:
    state = good_weights()
    del state["lm_head.weight"]
    write(tmp_path, state)
    model = empty_model(tie_word_embeddings=True)
    load_into(model, open_checkpoint(tmp_path))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with pytest.raises(CheckpointError, match=r"the weights lack lm_head\.weight") as caught:
        load_into(empty_model(), open_checkpoint(tmp_path))
    assert "tie_word_embeddings" in str(caught.value.hint)


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    module = nn.Linear(8, 4)
    save_state_dict(tmp_path, module.state_dict())
    seen: list[tuple[int, int]] = []
    opened = open_checkpoint(tmp_path)
    load_into(module.to("meta"), opened, progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (opened.total_bytes, opened.total_bytes) == (144, 144)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt])
def test_an_exception_midway_cancels_what_has_not_begun(
    problem: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = nn.ParameterDict({f"tensor{n}": torch.ones(2) for n in range(100)})
    save_state_dict(tmp_path, module.state_dict())
    begun: list[str] = []
    leaving = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *args: bool, **options: bool) -> None:
            leaving.set()  # only now may readers go on
            super().shutdown(*args, **options)

    class Slow(Checkpoint):
        def read(self, name: str, take: Take = allocate) -> Weight:
            begun.append(name)
            assert name == "tensor0" or leaving.wait(60)
            return super().read(name, take)

    def fail(done: int, total: int) -> None:
        raise problem

    monkeypatch.setattr(loading, "ThreadPoolExecutor", Pool)
    opened = open_checkpoint(tmp_path)
    slow = Slow(opened.tensors, opened.files)
    with pytest.raises(problem):
        load_into(module.to("meta"), slow, progress=fail)
    assert len(begun) <= 1 + READING_THREADS
    assert all(parameter.is_meta for parameter in module.values())


# ----------------------------------------------------------------------------------------------
# Quantized while they are loaded

UP_PROJ = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("scheme", [Scheme(4, 8), Scheme(4, 32), Scheme(8, 32)])
def test_weights_are_quantized_as_by_quantize(
    scheme: Scheme, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    sizes = {"intermediate_size": 128, "mlp_bias": True}  # a width that the CPU's operator takes
    state = LlamaForCausalLM(LlamaConfig(**SIZES | sizes)).state_dict()
    write(tmp_path, state)
    model = empty_model(**sizes)
    load_into(model, open_checkpoint(tmp_path), dtype=dtype, schemes={f"{UP_PROJ}.weight": scheme})
    expected = quantize(state[f"{UP_PROJ}.weight"].to(dtype or torch.float32), scheme)
    layer, x = model.get_submodule(UP_PROJ), torch.eye(32).repeat(3, 1)  # many rows: not rounded
    bias = state[f"{UP_PROJ}.bias"].to(dtype or torch.float32)
    columns = expected.dequantize(torch.float32).T.repeat(3, 1)
    assert torch.equal(layer.bias, bias)
    tolerance = 0.01 if scheme == Scheme(4, 32) else 0.0  # packed, scales are in bfloat16
    assert torch.allclose(layer(x) - bias, columns, rtol=tolerance, atol=tolerance + 1e-6)
    others = {name for name, _ in model.named_parameters()}
    assert others == state.keys() - {f"{UP_PROJ}.weight"}


def test_only_the_weights_that_schemes_name_are_quantized(tmp_path: Path) -> None:
    state = good_weights()
    write(tmp_path, state)
    schemes = {
        name: Scheme(4, 16) if "self_attn" in name else Scheme(8, state[name].shape[1])
        for name in NAMES
        if "proj" in name
    }
    model = empty_model()
    load_into(model, open_checkpoint(tmp_path), schemes=schemes)
    for name in NAMES:
        path = name.rpartition(".")[0]
        module = model.get_submodule(path)
        if name not in schemes:
            assert torch.equal(module.weight, state[name])
            continue
        expected = quantize(state[name], schemes[name])
        for part in ("qdata", "scale"):
            assert torch.equal(getattr(module, part), getattr(expected, part))


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_is_not_quantized(tied: bool, tmp_path: Path) -> None:
    state = good_weights()
    if tied:  # the head may be quantized, but it is the embedding too
        del state["model.embed_tokens.weight"]
    write(tmp_path, state)
    model = empty_model(tie_word_embeddings=tied)
    name = "lm_head.weight" if tied else "model.embed_tokens.weight"
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is quantized, and is not the"):
        load_into(model, open_checkpoint(tmp_path), schemes={name: Scheme(8, 32)})
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_head_of_its_own_may_be_quantized(tmp_path: Path) -> None:
    write(tmp_path, good_weights())
    model = empty_model()
    load_into(model, open_checkpoint(tmp_path), schemes={"lm_head.weight": Scheme(8, 32)})
    assert isinstance(model.lm_head, Int8Linear)


def test_no_weight_is_quantized_twice(tmp_path: Path) -> None:
    name, scheme = f"{UP_PROJ}.weight", Scheme(8, 32)
    tensors = good_weights()
    metadata = metadata_for(
        {n: (None, t.shape, t.dtype) for n, t in tensors.items()}
        | {name: (scheme, tensors[name].shape, torch.float32)}
    )
    weight = quantize_int8(tensors.pop(name))
    parts = {"qdata": weight.qdata, "scale": weight.scale}
    parts["zero_point"] = torch.zeros_like(weight.scale, dtype=torch.int8)
    tensors |= {part_name(name, part): tensor for part, tensor in parts.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata=metadata)
    opened, model = open_checkpoint(tmp_path), empty_model()
    with pytest.raises(CheckpointError, match=rf"already quantized: {name}$"):
        load_into(model, opened, schemes={name: scheme})
    assert all(parameter.is_meta for parameter in model.parameters())
    load_into(model, opened)
    assert torch.equal(model.get_submodule(UP_PROJ).qdata, weight.qdata)
