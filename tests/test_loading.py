import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM as Reference, LlamaModel as ReferenceModel

from llamacli import devices
from llamacli.checkpoint import open_checkpoint
from llamacli.config import LlamaConfig
from llamacli.devices import choose_device, choose_dtype
from llamacli.errors import (
    CheckpointError,
    ConfigError,
    LlamacliError,
    LocalIOError,
    NotFoundError,
    RequestError,
    ResourceError,
)
from llamacli.generation_config import GenerationConfig
from llamacli.kernels import native
from llamacli.model import LlamaForCausalLM, LlamaModel
from llamacli.weight_file import WeightFile
from tests.tiny import KINDS, SIZES, random_ids, reference, twin

IDS = random_ids(2, 12)
CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that transformers wrote."""
    reference("gqa").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# ---------------------------------------------------------------------------- from_pretrained


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_transformers_saved_gives_equal_logits(kind: str, tmp_path: Path) -> None:
    theirs = reference(kind)
    theirs.save_pretrained(tmp_path)
    ours = LlamaForCausalLM.from_pretrained(tmp_path)
    assert not ours.training
    assert_equal(ours(IDS).logits, theirs(IDS).logits)


@torch.no_grad()
def test_shards_of_transformers_give_equal_logits(tmp_path: Path) -> None:
    theirs = reference("plain")
    theirs.save_pretrained(tmp_path, max_shard_size="20kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_equal(LlamaForCausalLM.from_pretrained(str(tmp_path))(IDS).logits, theirs(IDS).logits)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager", "flash_attention_2"])
@torch.no_grad()
def test_attention_implementations_agree(folder: Path, attn_implementation: str) -> None:
    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation=attn_implementation)
    assert_equal(model(IDS).logits, reference("gqa")(IDS).logits)


@pytest.mark.filterwarnings("ignore:.*kernel:UserWarning")  # torch says why, too
def test_what_no_flash_attention_kernel_takes_is_named() -> None:
    config = LlamaConfig(**SIZES, attention_dropout=0.1)
    model = LlamaForCausalLM(config, attn_implementation="flash_attention_2")
    with pytest.raises(ResourceError, match=r"no kernel for torch\.float32 on cpu"):
        model.train()(IDS)


def test_an_unknown_attention_implementation_is_refused_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"one of sdpa, eager, flash_attention_2, got 'flex'"):
        LlamaForCausalLM.from_pretrained(folder, attn_implementation="flex")


def test_a_loaded_model_knows_its_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 7], "temperature": 0.3}')
    found = LlamaForCausalLM.from_pretrained(folder).generation_config
    assert found == GenerationConfig(eos_token_ids=frozenset({5, 7}), sampling={"temperature": 0.3})


# ------------------------------------------------------------------------ with and without a head


@torch.no_grad()
def test_a_bare_model_reads_the_checkpoint_of_a_model_with_a_head(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = LlamaModel.from_pretrained(folder), ReferenceModel.from_pretrained(folder)
    assert_equal(ours(IDS).last_hidden_state, theirs(IDS).last_hidden_state)
    assert not [r for r in caplog.records if r.name.startswith("llamacli")]


@torch.no_grad()
def test_a_bare_model_is_saved_as_transformers_saves_it(folder: Path, tmp_path: Path) -> None:
    ours = LlamaModel.from_pretrained(folder)
    ours.save_pretrained(tmp_path / "ours")
    theirs = ReferenceModel.from_pretrained(tmp_path / "ours")
    assert_equal(theirs(IDS).last_hidden_state, ours(IDS).last_hidden_state)
    theirs.save_pretrained(tmp_path / "theirs")
    for name in ("ours", "theirs"):
        assert_equal(
            LlamaModel.from_pretrained(tmp_path / name)(IDS).last_hidden_state,
            ours(IDS).last_hidden_state,
        )


@torch.no_grad()
def test_a_tied_head_needs_only_the_bare_model(tmp_path: Path) -> None:
    theirs = reference("tied")
    theirs.model.save_pretrained(tmp_path)
    assert_equal(LlamaForCausalLM.from_pretrained(tmp_path)(IDS).logits, theirs(IDS).logits)


def test_a_head_that_is_not_there_is_missed(tmp_path: Path) -> None:
    reference("plain").model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"the weights lack lm_head\.weight"):
        LlamaForCausalLM.from_pretrained(tmp_path)


# ---------------------------------------------------------------------------- save_pretrained


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_transformers_reads_what_was_saved(kind: str, tmp_path: Path) -> None:
    ours = twin(reference(kind))
    ours.save_pretrained(tmp_path)
    theirs = Reference.from_pretrained(tmp_path)
    assert_equal(theirs(IDS).logits, ours(IDS).logits)


@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 20_000])
@pytest.mark.parametrize("kind", ["gqa", "tied", "biases", "llama3"])
def test_saving_and_loading_is_the_identity(
    kind: str, max_shard_bytes: int, tmp_path: Path
) -> None:
    model = twin(reference(kind)).bfloat16()
    model.generation_config = GenerationConfig(
        eos_token_ids=frozenset({3, 4}), sampling={"temperature": 0.7, "top_p": 0.9}
    )
    model.save_pretrained(tmp_path / "new" / "folder", max_shard_bytes=max_shard_bytes)
    again = LlamaForCausalLM.from_pretrained(tmp_path / "new" / "folder", dtype="bfloat16")
    assert again.config == dataclasses.replace(model.config, dtype="bfloat16")
    assert again.generation_config == model.generation_config
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    twin(reference("tied")).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in open_checkpoint(tmp_path).tensors


def test_a_saved_model_replaces_all_of_an_earlier_one(tmp_path: Path) -> None:
    first = twin(reference("plain"))
    first.generation_config = GenerationConfig(eos_token_ids=frozenset({9}))
    first.save_pretrained(tmp_path, max_shard_bytes=20_000)
    twin(reference("gqa")).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert LlamaForCausalLM.from_pretrained(tmp_path).generation_config == GenerationConfig()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalIOError, match="cannot write to"):
        twin(reference("plain")).save_pretrained(tmp_path / "file" / "model")


# ------------------------------------------------------------------------------------- errors


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that reads a tensor, and so allocates one."""

    def read(*_: object) -> Tensor:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(WeightFile, "read", read)


@pytest.mark.usefixtures("no_reading")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param(
            {"hidden_size": 131072, "num_attention_heads": 1024},
            CheckpointError,
            r"model.embed_tokens.weight \(file has \(97, 32\), config wants \(97, 131072\)\)",
            id="fault-011-sizes-of-a-giant",
        ),
        pytest.param(
            {"num_hidden_layers": 512},
            CheckpointError,
            r"lack model\.layers\.2\.self_attn\.q_proj\.weight, .* and 4585 more",
            id="fault-012-layers-without-weights",
        ),
        pytest.param(
            {"vocab_size": 2**24},
            CheckpointError,
            r"config wants \(16777216, 32\)",
            id="fault-033-vocab-size",
        ),
        pytest.param(
            {"quantization_config": {"quant_method": "gptq"}}, CheckpointError, "gptq", id="gptq"
        ),
        pytest.param({"model_type": "qwen3"}, ConfigError, "qwen3", id="fault-038-another-model"),
    ],
)
def test_config_and_weights_are_compared_before_memory_is_allocated(
    folder: Path, change: dict[str, Any], error: type[LlamacliError], message: str
) -> None:
    change_config(folder, **change)
    with pytest.raises(error, match=message):
        LlamaForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_file_that_is_not_there_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(NotFoundError, match=missing):
        LlamaForCausalLM.from_pretrained(folder)


def test_fault_039_code_in_the_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (folder / "modeling_evil.py").write_text(f"open({str(canary)!r}, 'w')\nEvil = None\n")
    change_config(
        folder,
        auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"},
        trust_remote_code=True,
        _attn_implementation_internal="evil/kernel",
    )
    LlamaForCausalLM.from_pretrained(folder)
    assert not canary.exists()
    assert not [name for name in sys.modules if "modeling_evil" in name]


# --------------------------------------------------------------------------- dtype and device


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.bfloat16, torch.float64])
def test_the_dtype_asked_for_is_that_of_every_weight(
    folder: Path, dtype: str | torch.dtype
) -> None:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, device="cpu")
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {p.dtype for p in model.parameters()} == {expected}


@pytest.mark.parametrize("dtype", ["int8", "half", "fp16", "", torch.int8, torch.float8_e4m3fn])
def test_a_dtype_that_no_model_runs_in_is_refused(folder: Path, dtype: str | torch.dtype) -> None:
    with pytest.raises(RequestError, match="dtype must be one of auto, float32, bfloat16"):
        LlamaForCausalLM.from_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize(
    ("stored", "in_hardware", "expected", "notes"),
    [
        (torch.float32, True, torch.float32, 0),
        (torch.bfloat16, True, torch.bfloat16, 0),
        (torch.bfloat16, False, torch.float32, 0),
        (torch.float16, True, torch.bfloat16, 1),
        (torch.float16, False, torch.float32, 0),
    ],
)
def test_auto_is_the_stored_dtype_or_what_the_cpu_is_good_at(
    stored: torch.dtype,
    in_hardware: bool,
    expected: torch.dtype,
    notes: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(devices, "cpu_computes_bfloat16", lambda: in_hardware)
    monkeypatch.setattr(native, "kernels", lambda: None)
    caplog.set_level(logging.WARNING, "llamacli")
    assert choose_dtype("auto", stored, CPU) == expected
    assert caplog.text.count("rounded from float16 to bfloat16") == notes


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_bfloat16_stays_where_the_kernels_read_it(
    stored: torch.dtype, kernel_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_computes_bfloat16", lambda: False)
    is_read = stored == torch.bfloat16 and kernel_set != "portable"
    assert choose_dtype("auto", stored, CPU) == (torch.bfloat16 if is_read else torch.float32)


def test_auto_is_the_stored_dtype_on_other_devices() -> None:
    assert choose_dtype("auto", torch.float16, torch.device("cuda")) == torch.float16


def test_auto_is_a_device_that_this_machine_has() -> None:
    assert choose_device("auto").type == devices.available_devices()[0]
    assert choose_device("cpu") == choose_device(CPU) == CPU


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cuda:99", id="fault-121-cuda-99"),
        pytest.param("cpu:3", id="fault-121-cpu-3"),
        pytest.param(
            "mps",
            id="fault-121-mps",
            marks=pytest.mark.skipif(torch.backends.mps.is_available(), reason="it is here"),
        ),
        pytest.param(
            "cuda",
            id="fault-121-cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="it is here"),
        ),
    ],
)
def test_a_device_that_is_not_there_is_a_lack_of_resources(folder: Path, device: str) -> None:
    with pytest.raises(ResourceError, match=f"no device {device}") as caught:
        LlamaForCausalLM.from_pretrained(folder, device=device)
    assert "cpu" in str(caught.value.hint)


@pytest.mark.parametrize("device", ["gpu", "", "cuda:-1", "cuda:x", "meta", "\x1b[2J"])
def test_fault_121_what_is_no_device_is_a_wrong_request(folder: Path, device: str) -> None:
    with pytest.raises(RequestError, match="device must be one of auto, cuda, xpu, mps, cpu") as c:
        LlamaForCausalLM.from_pretrained(folder, device=device)
    assert str(c.value).isprintable()


@needs_cuda
@torch.no_grad()
def test_logits_on_cuda_equal_those_on_the_cpu(folder: Path) -> None:
    on_cpu = LlamaForCausalLM.from_pretrained(folder, device="cpu")
    on_cuda = LlamaForCausalLM.from_pretrained(folder, device="cuda")
    assert {p.device.type for p in on_cuda.parameters()} == {"cuda"}
    found = on_cuda(IDS.cuda())
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), on_cpu(IDS), rtol=0, atol=1e-3)


@needs_cuda
@pytest.mark.parametrize("cache_implementation", ["dynamic", "static"])
@pytest.mark.parametrize("kind", ["gqa", "dynamic", "llama3"])
def test_generation_on_cuda_equals_that_on_the_cpu(
    kind: str, cache_implementation: str, tmp_path: Path
) -> None:
    reference(kind).save_pretrained(tmp_path)
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    on_cpu, on_cuda = (
        LlamaForCausalLM.from_pretrained(tmp_path, device=device)
        .generate(
            IDS.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=20,
            cache_implementation=cache_implementation,
        )
        .cpu()
        for device in ("cpu", "cuda")
    )
    assert on_cuda.tolist() == on_cpu.tolist()


# ----------------------------------------------------------------------------- memory and time

MEASURE = """
import re, sys
import torch
from llamacli import LlamaForCausalLM

def peak_bytes():  # getrusage would count the parent before exec, too
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

torch.set_num_threads(1)
before = peak_bytes()
model = LlamaForCausalLM.from_pretrained(sys.argv[1], dtype=sys.argv[2], device="cpu")
print((peak_bytes() - before) / sum(p.nbytes for p in model.parameters()))
"""


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 200 MB of bfloat16 weights, the embedding much larger than the rest."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {
        "vocab_size": 32000,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    }
    config = LlamaConfig(**SIZES | sizes)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).bfloat16()
    model.to_empty(device="cpu").save_pretrained(folder)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is Linux's")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_needs_the_memory_of_the_weights_and_little_more(
    large_folder: Path, dtype: str
) -> None:
    command = [sys.executable, "-c", MEASURE, str(large_folder), dtype]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert 0.9 < float(found) < 1.25


def test_a_model_is_built_without_the_compiler_of_torch(folder: Path) -> None:
    code = (
        "import sys; from llamacli import LlamaForCausalLM;"
        "LlamaForCausalLM.from_pretrained(sys.argv[1]); print('torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "False\n"
