"""The snippets of the Llama page of transformers' documentation, with the import swapped.

The models are the demo model and small ones, on the CPU. Each snippet runs as it is written.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import llamacli
from llamacli import auto
from llamacli.errors import CheckpointError, RequestError, ResourceError
from llamacli.model_folder import DEMO_FOLDER
from tests.tiny import write_model

PROMPT = "Plants create energy through a process known as"

PIPELINE = """
import torch
from llamacli import pipeline

pipeline = pipeline(
    task="text-generation",
    model="huggyllama/llama-7b",
    dtype=torch.float16,
    device=0
)
output = pipeline("Plants create energy through a process known as")
"""

AUTO_MODEL = """
import torch
from llamacli import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("huggyllama/llama-7b")
model = AutoModelForCausalLM.from_pretrained(
    "huggyllama/llama-7b",
    dtype=torch.float16,
    device_map="auto",
    attn_implementation="sdpa"
)
prompt = "Plants create energy through a process known as"
input_ids = tokenizer(prompt, return_tensors="pt").to(model.device)

output = model.generate(**input_ids, cache_implementation="static")
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""

QUANTIZED = """
import torch
from llamacli import TorchAoConfig, AutoModelForCausalLM, AutoTokenizer

quantization_config = TorchAoConfig("int4_weight_only", group_size=128)
model = AutoModelForCausalLM.from_pretrained(
    "huggyllama/llama-30b",
    torch_dtype=torch.bfloat16,
    device_map="auto",
    quantization_config=quantization_config
)

tokenizer = AutoTokenizer.from_pretrained("huggyllama/llama-30b")
prompt = "Plants create energy through a process known as"
input_ids = tokenizer(prompt, return_tensors="pt").to("cuda")

output = model.generate(**input_ids, cache_implementation="static")
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""

VISUALIZER = """
from llamacli.utils.attention_visualizer import AttentionMaskVisualizer

visualizer = AttentionMaskVisualizer("huggyllama/llama-7b")
visualizer("Plants create energy through a process known as")
"""

CAUSAL_LM = """
from llamacli import AutoTokenizer, LlamaForCausalLM

model = LlamaForCausalLM.from_pretrained("meta-llama/Llama-2-7b-hf")
tokenizer = AutoTokenizer.from_pretrained("meta-llama/Llama-2-7b-hf")

prompt = "Hey, are you conscious? Can you talk to me?"
inputs = tokenizer(prompt, return_tensors="pt")

# Generate
generate_ids = model.generate(inputs.input_ids, max_length=30)
print(tokenizer.batch_decode(
    generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
)[0])
"""

TOKENIZER = """
from llamacli import LlamaTokenizerFast

tokenizer = LlamaTokenizerFast.from_pretrained("hf-internal-testing/llama-tokenizer")
ids = tokenizer.encode("Hello this is a test")
"""

CONFIG = """
from llamacli import LlamaModel, LlamaConfig

# Initializing a LLaMA llama-7b style configuration
configuration = LlamaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)

# Initializing a model from the llama-7b style configuration
model = LlamaModel(configuration)

# Accessing the model configuration
configuration = model.config
"""


def run(snippet: str, model: Path = DEMO_FOLDER) -> dict[str, Any]:
    """The names that a snippet leaves, run with this model on the CPU."""
    code = re.sub(r'"(huggyllama|meta-llama|hf-internal-testing)/[^"]+"', repr(str(model)), snippet)
    names: dict[str, Any] = {}
    exec(code.replace('"cuda"', '"cpu"').replace("device=0", 'device="cpu"'), names)
    return names


def test_the_pipeline_continues_the_prompt() -> None:
    names = run(PIPELINE)
    [record] = names["output"]
    assert record.keys() == {"generated_text"}
    assert record["generated_text"].startswith(PROMPT)


def test_auto_classes_continue_the_prompt_as_transformers_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(AUTO_MODEL)  # draws, as the demo model's generation_config says
    assert capsys.readouterr().out.startswith(PROMPT)
    names = run(AUTO_MODEL.replace('"static"', '"static", do_sample=False'))
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER)
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO_FOLDER, dtype=torch.float16)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    assert names["input_ids"].input_ids.tolist() == inputs["input_ids"].tolist()
    output = model.generate(**inputs, do_sample=False, max_new_tokens=20)
    expected = tokenizer.decode(output[0], skip_special_tokens=True)
    assert capsys.readouterr().out == expected + "\n"
    assert names["model"].dtype == torch.float16


def test_a_quantized_model_continues_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    names = run(QUANTIZED)
    assert capsys.readouterr().out.startswith(PROMPT)
    assert names["model"].dtype == torch.bfloat16


def test_the_visualizer_draws(capsys: pytest.CaptureFixture[str]) -> None:
    run(VISUALIZER)
    assert "causal mask" in capsys.readouterr().out


def test_the_class_itself_continues_up_to_a_length(capsys: pytest.CaptureFixture[str]) -> None:
    names = run(CAUSAL_LM)
    assert capsys.readouterr().out.startswith("Hey, are you conscious? Can you talk to me?")
    assert names["generate_ids"].shape[1] <= 30


def test_the_fast_tokenizer_encodes() -> None:
    reference = transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER)
    names = run(TOKENIZER)
    assert names["ids"] == reference("Hello this is a test")["input_ids"]


def test_a_model_is_made_from_a_config() -> None:
    names = run(CONFIG)
    assert names["model"].config is names["configuration"]


@pytest.mark.parametrize("skip", [False, True])
def test_a_streamer_writes_what_that_of_transformers_writes(
    capsys: pytest.CaptureFixture[str], skip: bool
) -> None:
    settings = {"do_sample": False, "max_new_tokens": 12}
    written = []
    for library in (llamacli, transformers):
        tokenizer = library.AutoTokenizer.from_pretrained(DEMO_FOLDER)
        model = library.AutoModelForCausalLM.from_pretrained(DEMO_FOLDER, dtype="float32")
        streamer = library.TextStreamer(tokenizer, skip_prompt=skip, skip_special_tokens=skip)
        for _ in range(2):
            inputs = tokenizer(PROMPT, return_tensors="pt")
            model.generate(**inputs, streamer=streamer, **settings)
        written.append(capsys.readouterr().out)
    assert written[0] == written[1]
    with pytest.raises(RequestError, match="one row"):
        llamacli.TextStreamer(tokenizer).put(torch.zeros(2, 3))


# ------------------------------------------------------------------------ the Auto classes alone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("auto") / "model"
    write_model(folder)
    return folder


def test_each_auto_class_opens_its_own(folder: Path) -> None:
    assert auto.AutoConfig.from_pretrained(folder).hidden_size == 32
    base = auto.AutoModel.from_pretrained(folder, device_map={"": -1}, torch_dtype="bfloat16")
    assert type(base).__name__ == "LlamaModel"
    assert (base.device.type, base.dtype) == ("cpu", torch.bfloat16)
    for task in ("SequenceClassification", "TokenClassification", "QuestionAnswering"):
        opener = getattr(auto, f"AutoModelFor{task}")
        with pytest.raises(CheckpointError, match="the weights lack"):
            opener.from_pretrained(folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device_map": {"model": "cpu", "head": "cpu"}}, "device_map names modules"),
        ({"device_map": "balanced"}, "device must be one of"),
        ({"device_map": "cpu", "device": "cpu"}, "device_map"),
        ({"torch_dtype": "auto", "dtype": "auto"}, "torch_dtype"),
        ({"attn_implementation": "flash"}, "attn_implementation must be one of"),
    ],
)
def test_what_is_not_supported_is_named(folder: Path, options: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        auto.AutoModelForCausalLM.from_pretrained(folder, **options)
    with pytest.raises(TypeError, match="load_in_8bit"):
        auto.AutoModelForCausalLM.from_pretrained(folder, load_in_8bit=True)


@pytest.mark.parametrize("number", [99, "99"])
def test_a_number_is_a_gpu(number: object) -> None:
    with pytest.raises(ResourceError, match="no device cuda:99"):
        auto.AutoModel.from_pretrained(DEMO_FOLDER, device_map=number)
