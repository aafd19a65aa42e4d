"""Where the parts of a model go, and that a model in parts says what it says in one piece."""

import gc
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llamacli.devices import choose_dtype
from llamacli.errors import CheckpointError, LocalIOError, RequestError, ResourceError
from llamacli.generation import TokenStream
from llamacli.machine_memory import peak_memory_bytes, reset_peak_memory
from llamacli.memory_limits import memory_limits
from llamacli.model import LlamaForCausalLM
from llamacli.offload import SpillFile
from llamacli.pipelines.factory import pipeline
from llamacli.torchao_config import TorchAoConfig
from tests.command_line import here, refused, run
from tests.tiny import random_ids, write_model

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
LAYER = 4 * (4 * 64 * 64 + 3 * 64 * 96 + 2 * 64)  # bytes in float32
SOME_ON_DISK = {
    "model": "cpu",
    "model.layers.1": "disk",
    "model.layers.3": "disk",
    "model.norm": "disk",
    "lm_head": "disk",
}
ON_CPU: dict[str, Any] = {"dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("placement") / "model"
    write_model(folder, **SIZES)
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, **ON_CPU)


@pytest.fixture(scope="module")
def bytes_of_all(plain: LlamaForCausalLM) -> int:
    return sum(parameter.nbytes for parameter in plain.parameters())


def opened(folder: Path, **options: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype="float32", **options)


def said(model: LlamaForCausalLM, length: int = 6) -> list[int]:
    ids = model.generate(random_ids(2, length), max_new_tokens=12, do_sample=False)
    return list(ids.flatten().tolist())


def on_disk(model: LlamaForCausalLM) -> set[str]:
    found: dict[str, str] = model.hf_device_map
    return {module for module, device in found.items() if device == "disk"}


# --------------------------------------------------------------------------- what a model says


def test_a_model_partly_on_disk_says_the_same(folder: Path, plain: LlamaForCausalLM) -> None:
    model = opened(folder, device_map=SOME_ON_DISK)
    assert on_disk(model) == SOME_ON_DISK.keys() - {"model"}
    assert model.device.type == "cpu"
    assert said(model) == said(plain)


def test_all_of_a_model_may_be_on_disk(
    folder: Path, plain: LlamaForCausalLM, tmp_path: Path
) -> None:
    model = opened(folder, device_map={"": "disk"})
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert said(model) == said(plain)
    with pytest.raises(RequestError, match="partly on disk cannot be written"):
        model.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_limits_of_memory_put_the_rest_on_disk(
    folder: Path, plain: LlamaForCausalLM, bytes_of_all: int
) -> None:
    model = opened(folder, max_memory={"cpu": bytes_of_all - LAYER})
    assert 0 < len(on_disk(model)) < len(model.hf_device_map)
    held = sum(p.nbytes for p in model.parameters() if p.device.type == "cpu")
    assert held <= bytes_of_all - 2 * LAYER  # one comes at a time
    assert said(model) == said(plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_a_model_on_a_gpu_the_cpu_and_disk_says_the_same(
    folder: Path, plain: LlamaForCausalLM
) -> None:
    limits = {0: 3 * LAYER, "cpu": 2 * LAYER}
    model = opened(folder, max_memory=limits)
    assert {"cuda:0", "cpu", "disk"} >= set(model.hf_device_map.values())
    assert model.device.type == "cuda"
    ids = model.generate(random_ids(2, 6).cuda(), max_new_tokens=12, do_sample=False)
    assert ids.flatten().tolist() == said(plain)


def test_memory_keeps_to_the_limit(folder: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 20}
    write_model(tmp_path / "m", **sizes)  # 84 MB
    said(opened(folder, device_map=SOME_ON_DISK))  # imports what accelerate imports late
    gc.collect()
    reset_peak_memory()
    before = peak_memory_bytes()
    said(opened(tmp_path / "m", max_memory={"cpu": "20MB"}))
    assert peak_memory_bytes() - before < 30e6


def test_tied_weights_stay_together(tmp_path: Path) -> None:
    write_model(tmp_path / "m", **SIZES, tie_word_embeddings=True)
    expected = said(LlamaForCausalLM.from_pretrained(tmp_path / "m", **ON_CPU))
    for device_map in ({"": "disk"}, {"": "disk", "model.layers": "cpu"}):
        assert said(opened(tmp_path / "m", device_map=device_map)) == expected
    apart = {"": "cpu", "lm_head": "disk"}
    with pytest.raises(RequestError, match="device_map must keep tied weights together"):
        opened(tmp_path / "m", device_map=apart)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_quantized_while_loading_go_through_the_offload_folder(
    bits: int, folder: Path, tmp_path: Path
) -> None:
    groups = {"group_size": 32} if bits == 4 else {}
    recipe = TorchAoConfig(f"int{bits}_weight_only", **groups)
    expected = LlamaForCausalLM.from_pretrained(folder, **ON_CPU, quantization_config=recipe)
    options = {"device_map": SOME_ON_DISK, "quantization_config": recipe}
    model = opened(folder, **options, offload_folder=tmp_path)
    assert said(model) == said(expected)
    assert not list(tmp_path.iterdir())  # the file has no name
    with pytest.raises(RequestError, match=r"offload_folder is needed: \d+ weights"):
        opened(folder, **options)


def test_a_dtype_that_is_not_that_of_the_files_goes_through_the_offload_folder(
    folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"dtype": "bfloat16", "device_map": {"": "disk"}}
    with pytest.raises(RequestError, match="offload_folder is needed"):
        LlamaForCausalLM.from_pretrained(folder, **options)
    model = LlamaForCausalLM.from_pretrained(folder, **options, offload_folder=tmp_path)
    assert model.dtype == torch.bfloat16
    with pytest.raises(LocalIOError, match="offload_folder"):
        LlamaForCausalLM.from_pretrained(folder, **options, offload_folder=tmp_path / "no")


def test_a_model_that_fits_one_device_is_not_split(
    folder: Path, plain: LlamaForCausalLM, bytes_of_all: int
) -> None:
    for options in ({"max_memory": {"cpu": bytes_of_all}}, {"device_map": {"": "cpu"}}):
        model = opened(folder, **options)
        assert not hasattr(model, "hf_device_map")
        assert said(model) == said(plain)


def test_a_pipeline_takes_the_limits(folder: Path, bytes_of_all: int) -> None:
    limits = {"cpu": bytes_of_all - LAYER}
    speaker = pipeline("text-generation", folder, max_memory=limits, dtype="float32")
    assert on_disk(speaker.model)
    assert speaker("The sun", max_new_tokens=3)[0]["generated_text"].startswith("The sun")


def test_a_file_that_shrinks_is_an_error_and_no_crash(tmp_path: Path) -> None:
    write_model(tmp_path / "m", **SIZES)
    model = opened(tmp_path / "m", device_map={"": "disk"})
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="became shorter"):
        said(model)


def test_an_offload_file_that_lost_bytes_is_an_error(tmp_path: Path) -> None:
    file = SpillFile(tmp_path, 32)
    info = file.append(torch.arange(8.0))
    memory = torch.zeros(64, dtype=torch.uint8)
    assert file.read_into(info, memory[:32]).tolist() == [*range(8)]
    with pytest.raises(LocalIOError, match="what was written is not there"):
        file.read_into(replace(info, shape=(16,)), memory)


# --------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cpu=600MB", {"cpu": 600_000_000}),
        ("0=20GiB, cpu=1.5gb", {"0": 20 * 2**30, "cpu": 1_500_000_000}),
        ("mps=7", {"mps": 7}),
    ],
)
def test_limits_as_users_write_them(text: str, found: dict[str, int]) -> None:
    assert memory_limits(text) == found
    assert memory_limits({0: "1kB", "cpu": 5}) == {"0": 1000, "cpu": 5}


@pytest.mark.parametrize("text", ["", "cpu", "cpu=", "cpu=5X", "gpu=5GB", "cpu=-1", "cpu=1,cpu=2"])
def test_what_are_no_limits_is_refused(text: str, folder: Path) -> None:
    with pytest.raises(RequestError, match="max_memory must be such as 0=20GiB,cpu=8GiB, got"):
        opened(folder, max_memory=text)
    refused(run(folder, "--max-memory", text, "a"), "--max-memory must be such as")


@pytest.mark.parametrize(
    ("device_map", "words"),
    [
        ({"model": "cpu"}, "leaves out lm_head.weight"),
        ({"": "cpu", "model.layers.1.mlp": "disk"}, "must not split a layer: model.layers.1.mlp"),
        ({"": "cpu", "head": "disk"}, "names modules that the model lacks: head"),
        ({"": "tpu"}, "must be one of auto, cuda"),
        (7.5, 'must be "auto" or a mapping'),
    ],
)
def test_what_is_no_device_map_is_refused(device_map: object, words: str, folder: Path) -> None:
    if isinstance(device_map, dict) and device_map == {"": "tpu"}:
        device_map = {"model": "tpu", "lm_head": "cpu"}
    with pytest.raises(RequestError, match=words) as raised:
        opened(folder, device_map=device_map)
    assert str(raised.value).startswith("device_map")


def test_one_device_is_named_once(folder: Path) -> None:
    with pytest.raises(RequestError, match="device and max_memory contradict each other"):
        opened(folder, device="cpu", max_memory="cpu=1GB")
    done = run(folder, "--device", "cpu", "--max-memory", "cpu=1GB", "a")
    refused(done, "--device and --max-memory contradict each other")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fault_121_limits_for_a_device_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ResourceError, match="max_memory: this machine has no device cuda:0"):
        opened(folder, max_memory={0: "1GB"})
    done = run(folder, "--max-memory", "0=1GB,cpu=1GB", "a")
    refused(done, "--max-memory: this machine has no device cuda:0", "it has: cpu", code=8)
    refused(run(folder, "--device", "cuda", "a"), "no device cuda", "it has: cpu", code=8)
    refused(run(folder, "--device", "gpu", "a"), "device must be one of auto, cuda", code=2)
    refused(run(folder, "--compile", "a"), "--compile needs a model that is on one CUDA", code=2)


def test_what_cannot_fit_is_refused_with_the_sum(folder: Path) -> None:
    with pytest.raises(ResourceError, match=r"do not fit on cpu, where they may take 0\.00 GB"):
        opened(folder, max_memory={"cpu": "5kB"})
    refused(run(folder, "--max-memory", "cpu=5kB", "a"), "that stay +", "at a time", code=8)


# ------------------------------------------------------------------------------ the command line


def test_a_plan_tells_what_goes_where_and_loads_nothing(folder: Path, bytes_of_all: int) -> None:
    limit = f"cpu={bytes_of_all - LAYER}"
    lines = run(folder, "--dtype", "float32", "--max-memory", limit, "--plan", "a").text
    first, second, *_ = lines.splitlines()
    assert first.split()[:4] == ["model.embed_tokens", "…", "model.layers.1", "cpu"]
    assert second.split()[:4] == ["model.layers.2", "…", "lm_head", "disk"]
    done = run(folder, "--dtype", "float32", "--max-memory", limit, "--plan", "--json", "a")
    parts = json.loads(done.out)["placement"]
    assert [part["device"] for part in parts] == ["cpu", "disk"]
    assert sum(part["nbytes"] for part in parts) == bytes_of_all


def test_a_device_map_is_read_from_a_file(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_text(json.dumps(SOME_ON_DISK))
    args = ("--dtype", "float32", "--greedy", "--raw", "-n", "8", "The sun")
    split = run(folder, "--device-map", file, *args)
    assert (split.code, split.err, split.out) == (0, "", run(folder, *args).out)
    file.write_text('{"model": 1.5}')
    refused(run(folder, "--device-map", file, "a"), "--device-map: 1.5 is no device")
    refused(run(folder, "--device-map", tmp_path / "no", "a"), "does not exist", code=6)


def test_accelerate_is_imported_only_where_a_model_is_split(folder: Path) -> None:
    code = f"""if True:
        import sys
        from llamacli import LlamaForCausalLM
        LlamaForCausalLM.from_pretrained({str(folder)!r}, device_map="auto")
        print("accelerate" in sys.modules)"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


# --------------------------------------------------------------------------------------- memory


def test_fault_123_a_context_that_does_not_fit_is_refused_with_the_sum(tmp_path: Path) -> None:
    write_model(tmp_path / "m", max_position_embeddings=10**10)
    done = run(tmp_path / "m", "-n", "-1", "a")
    refused(done, "the model needs", "cache 5120.00", "GB are free", code=8)
    for length in ("9000000000", "-1"):
        plan = here("run", "-m", tmp_path / "m", "--plan", "-n", length, "a")
        assert plan.text.endswith("it does not fit\n")


def test_fault_120_when_memory_runs_out_the_text_so_far_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(folder, "--greedy", "--raw", "-n", "8", "The sun").out
    calls, decode = [], TokenStream._decode_step

    def step(self: Any, input_ids: torch.Tensor) -> torch.Tensor:
        calls.append(input_ids)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return decode(self, input_ids)

    monkeypatch.setattr(TokenStream, "_decode_step", step)
    done = run(folder, "--greedy", "--raw", "-n", "8", "The sun")
    assert done.code == 8
    assert done.err.startswith("llamacli: error: out of memory: CUDA out of memory")
    assert "a smaller or quantized model, or a shorter context" in done.err
    assert len(done.out) > 1
    assert whole.startswith(done.out.removesuffix(b"\n"))
    assert done.out.endswith(b"\n")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_fault_120_when_a_gpu_runs_out_the_text_so_far_is_kept(folder: Path) -> None:
    torch.cuda.set_per_process_memory_fraction(0.0001)
    try:
        done = run(folder, "--greedy", "--raw", "--device", "cuda", "-n", "1000", "The sun")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert done.code == 8
    assert "out of memory" in done.err or "GB are free" in done.err


@pytest.mark.parametrize("name", ["auto", "bfloat16"])
def test_fault_122_an_old_gpu_computes_in_float16_or_says_why_not(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    device = torch.device("cuda:0")
    if name == "auto":
        assert choose_dtype(name, torch.bfloat16, device) == torch.float16
        assert "Tesla T4) does not compute in bfloat16; the weights are rounded" in caplog.text
    else:
        with pytest.raises(ResourceError, match="does not compute in bfloat16") as raised:
            choose_dtype(name, torch.bfloat16, device)
        assert raised.value.hint == "use dtype float16 or float32"
    assert choose_dtype(name, torch.bfloat16, torch.device("cpu")) is not None
