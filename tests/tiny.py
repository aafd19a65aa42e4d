"""Tiny random Llamas, ours and transformers', with the same weights."""

from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import LlamaConfig as ReferenceConfig, LlamaForCausalLM as Reference

from llamacli.config import LlamaConfig
from llamacli.model import LlamaForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,  # sharp distributions: a slip shows, and greedy choices are clear
    "bos_token_id": 1,
    "eos_token_id": None,
}

NOUNS = "sun moon river stone bird child garden bread light winter".split()
VERBS = "sees warms carries finds follows remembers".split()

# Every rope type reaches past its original length within 250 tokens.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gqa": {"num_key_value_heads": 2},
    "mqa-head-dim": {"num_key_value_heads": 1, "head_dim": 16},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "gelu": {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-3},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    "yarn": {
        "max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 1e4,
        },
    },
    "llama3": {
        "max_position_embeddings": 512,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 5e5,
        },
    },
}


def reference(kind: str = "plain", seed: int = 0, **sizes: Any) -> Reference:
    """A random transformers model; biases and norms are random too."""
    torch.manual_seed(seed)
    config = ReferenceConfig(**{**SIZES, **KINDS[kind], **sizes}, attn_implementation="eager")
    model = Reference(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def twin(model: Reference, *, attn_implementation: str = "sdpa") -> LlamaForCausalLM:
    """Our model with the same weights."""
    config = LlamaConfig.from_dict(model.config.to_dict())
    ours = LlamaForCausalLM(config, attn_implementation=attn_implementation).eval()
    ours.load_state_dict(model.state_dict())
    return ours


def random_ids(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    """(B, T) token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, SIZES["vocab_size"], (batch, length), generator=generator)


def write_tokenizer(folder: Path, vocab_size: int = 400) -> None:
    """A SentencePiece tokenizer with byte fallback, trained on a few sentences."""
    sentences = [f"The {a} {b} {c}." for a in NOUNS for b in VERBS for c in NOUNS]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()


def write_model(folder: Path, seed: int = 0, **sizes: Any) -> LlamaForCausalLM:
    """A whole model folder with random weights; its text is noise, but always the same noise."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    vocab_size = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "tokenizer.model")
    ).vocab_size()
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{**SIZES, "vocab_size": vocab_size, "eos_token_id": 2, "initializer_range": 0.4, **sizes}
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model
