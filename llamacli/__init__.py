"""llamacli: the command-line home of the Llama models.

    from llamacli import LlamaForCausalLM, SamplingParams, TokenStream, generate, load_tokenizer

A name brings its module in when it is first used, so `import llamacli` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamacli.attention_visualizer import (
        AttentionMaskVisualizer as AttentionMaskVisualizer,
    )
    from llamacli.auto import (
        AutoConfig as AutoConfig,
        AutoModel as AutoModel,
        AutoModelForCausalLM as AutoModelForCausalLM,
        AutoModelForQuestionAnswering as AutoModelForQuestionAnswering,
        AutoModelForSequenceClassification as AutoModelForSequenceClassification,
        AutoModelForTokenClassification as AutoModelForTokenClassification,
        AutoTokenizer as AutoTokenizer,
    )
    from llamacli.cache import KVCache as KVCache
    from llamacli.config import LlamaConfig as LlamaConfig
    from llamacli.errors import (
        ArtifactError as ArtifactError,
        AuthenticationError as AuthenticationError,
        CheckpointError as CheckpointError,
        ConfigError as ConfigError,
        LlamacliError as LlamacliError,
        LocalIOError as LocalIOError,
        NetworkError as NetworkError,
        NotFoundError as NotFoundError,
        RequestError as RequestError,
        ResourceError as ResourceError,
        TemplateError as TemplateError,
        TokenizerError as TokenizerError,
    )
    from llamacli.flax_model import (
        FlaxLlamaForCausalLM as FlaxLlamaForCausalLM,
        FlaxLlamaModel as FlaxLlamaModel,
    )
    from llamacli.generation import (
        TokenStream as TokenStream,
        generate as generate,
        stream_text as stream_text,
    )
    from llamacli.heads import (
        LlamaForQuestionAnswering as LlamaForQuestionAnswering,
        LlamaForSequenceClassification as LlamaForSequenceClassification,
        LlamaForTokenClassification as LlamaForTokenClassification,
    )
    from llamacli.model import LlamaForCausalLM as LlamaForCausalLM, LlamaModel as LlamaModel
    from llamacli.pipelines.factory import pipeline as pipeline
    from llamacli.request import (
        GenerationRequest as GenerationRequest,
        SamplingParams as SamplingParams,
    )
    from llamacli.stream_decoder import StreamDecoder as StreamDecoder
    from llamacli.streamers import TextStreamer as TextStreamer
    from llamacli.tokenizer_batch import BatchEncoding as BatchEncoding
    from llamacli.tokenizer_fast import (
        LlamaTokenizerFast as LlamaTokenizerFast,
        load_tokenizer as load_tokenizer,
    )
    from llamacli.tokenizer_sentencepiece import LlamaTokenizer as LlamaTokenizer
    from llamacli.torchao_config import TorchAoConfig as TorchAoConfig

    __version__: str

_MODULES = {
    "AttentionMaskVisualizer": "attention_visualizer",
    "AutoConfig": "auto",
    "AutoModel": "auto",
    "AutoModelForCausalLM": "auto",
    "AutoModelForQuestionAnswering": "auto",
    "AutoModelForSequenceClassification": "auto",
    "AutoModelForTokenClassification": "auto",
    "AutoTokenizer": "auto",
    "KVCache": "cache",
    "LlamaConfig": "config",
    "ArtifactError": "errors",
    "AuthenticationError": "errors",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "LlamacliError": "errors",
    "LocalIOError": "errors",
    "NetworkError": "errors",
    "NotFoundError": "errors",
    "RequestError": "errors",
    "ResourceError": "errors",
    "TemplateError": "errors",
    "TokenizerError": "errors",
    "FlaxLlamaForCausalLM": "flax_model",
    "FlaxLlamaModel": "flax_model",
    "TokenStream": "generation",
    "generate": "generation",
    "stream_text": "generation",
    "LlamaForQuestionAnswering": "heads",
    "LlamaForSequenceClassification": "heads",
    "LlamaForTokenClassification": "heads",
    "LlamaForCausalLM": "model",
    "LlamaModel": "model",
    "pipeline": "pipelines.factory",
    "GenerationRequest": "request",
    "SamplingParams": "request",
    "StreamDecoder": "stream_decoder",
    "TextStreamer": "streamers",
    "BatchEncoding": "tokenizer_batch",
    "LlamaTokenizerFast": "tokenizer_fast",
    "load_tokenizer": "tokenizer_fast",
    "LlamaTokenizer": "tokenizer_sentencepiece",
    "TorchAoConfig": "torchao_config",
}

_EXTRA = ("FlaxLlamaForCausalLM", "FlaxLlamaModel")  # need jax and flax; `*` does without them

__all__ = [name for name in _MODULES if name not in _EXTRA]


if not TYPE_CHECKING:  # a type checker knows the names above, and should know no others

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            return version("llamacli")
        if name not in _MODULES:
            raise AttributeError(f"module 'llamacli' has no attribute {name!r}")
        if name in _EXTRA:
            import_module("llamacli.flax_extra").check_flax()
        return getattr(import_module(f"llamacli.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES, "__version__"]
