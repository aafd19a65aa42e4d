"""The sizes of well-known Llamas, to be measured without a download.

Numbers of the config.json files that Meta and the TinyLlama project published.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llamacli.errors import check_choice

if TYPE_CHECKING:
    from llamacli.config import LlamaConfig

_LLAMA_3: dict[str, Any] = {
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "rms_norm_eps": 1e-5,
}


def _sizes(hidden: int, intermediate: int, layers: int, heads: int, **rest: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **rest,
    }


def _llama_2(*sizes: int, **rest: Any) -> dict[str, Any]:
    return _sizes(*sizes, max_position_embeddings=4096, rms_norm_eps=1e-5, **rest)


def _llama_3(*sizes: int, **rest: Any) -> dict[str, Any]:
    return _sizes(*sizes, **_LLAMA_3 | rest)


_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "tinyllama-1.1b": _sizes(2048, 5632, 22, 32, num_key_value_heads=4, rms_norm_eps=1e-5),
    "llama-2-7b": _llama_2(4096, 11008, 32, 32),
    "llama-2-13b": _llama_2(5120, 13824, 40, 40),
    "llama-2-70b": _llama_2(8192, 28672, 80, 64, num_key_value_heads=8),
    "llama-3-8b": _llama_3(4096, 14336, 32, 32, max_position_embeddings=8192),
    "llama-3.1-8b": _llama_3(4096, 14336, 32, 32),
    "llama-3.1-70b": _llama_3(8192, 28672, 80, 64),
    "llama-3.2-1b": _llama_3(2048, 8192, 16, 32, tie_word_embeddings=True),
    "llama-3.2-3b": _llama_3(3072, 8192, 28, 24, tie_word_embeddings=True),
}
SHAPES = tuple(_SHAPES)


def shape(name: str) -> "LlamaConfig":
    """The config of a shape in bfloat16.

    Raises:
        RequestError: there is none of this name.
    """
    check_choice("shape", name, _SHAPES)
    from llamacli.config import LlamaConfig

    return LlamaConfig(**_SHAPES[name], dtype="bfloat16")
