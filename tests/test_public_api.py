import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import llamacli


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("name", llamacli.__all__)
def test_a_public_name_is_the_object_of_its_module(name: str) -> None:
    found = getattr(llamacli, name)
    assert found.__module__.startswith("llamacli.")
    assert found.__name__ == name
    assert found.__doc__


def test_the_public_names_are_these() -> None:
    assert sorted(llamacli.__all__) == sorted(
        """ArtifactError AttentionMaskVisualizer AuthenticationError AutoConfig AutoModel
        AutoModelForCausalLM AutoModelForQuestionAnswering AutoModelForSequenceClassification
        AutoModelForTokenClassification AutoTokenizer BatchEncoding CheckpointError ConfigError
        GenerationRequest KVCache LlamaConfig LlamaForCausalLM LlamaForQuestionAnswering
        LlamaForSequenceClassification LlamaForTokenClassification LlamaModel LlamaTokenizer
        LlamaTokenizerFast LlamacliError LocalIOError NetworkError NotFoundError RequestError
        ResourceError SamplingParams StreamDecoder TemplateError TextStreamer TokenStream
        TokenizerError TorchAoConfig generate load_tokenizer pipeline stream_text""".split()
    )


def test_a_type_checker_sees_the_same_names() -> None:
    tree = ast.parse(Path(llamacli.__file__).read_text())
    imported = {
        (alias.asname, node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("llamacli.")
        for alias in node.names
    }
    assert imported == {(name, f"llamacli.{where}") for name, where in llamacli._MODULES.items()}


def test_dir_lists_what_can_be_used() -> None:
    assert {*llamacli.__all__, "__version__", "__doc__"} <= set(dir(llamacli))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'llamacli' has no attribute 'nope'"):
        llamacli.nope  # noqa: B018
    with pytest.raises(ImportError, match="nope"):
        from llamacli import nope  # noqa: F401


def test_the_version_is_that_of_the_package() -> None:
    assert llamacli.__version__ == version("llamacli")


@pytest.mark.parametrize(
    "statement",
    [
        "import llamacli",
        "import llamacli; dir(llamacli); llamacli.__version__",
        "from llamacli import LlamaConfig, SamplingParams, RequestError, StreamDecoder",
        "from llamacli import LlamaTokenizer, load_tokenizer, BatchEncoding",
        "import llamacli.cli.app, llamacli.cli.commands",
        "import llamacli.hub, llamacli.model_folder",
    ],
)
def test_what_needs_no_tensors_imports_no_torch(statement: str) -> None:
    heavy = "{'torch', 'numpy', 'transformers', 'huggingface_hub', 'jinja2', 'safetensors'}"
    assert run(f"{statement}; import sys; print({heavy} & set(sys.modules))") == "set()\n"


def test_star_import_brings_the_public_names() -> None:
    code = "from llamacli import *; print(LlamaForCausalLM.__name__, generate.__name__)"
    assert run(code) == "LlamaForCausalLM generate\n"
