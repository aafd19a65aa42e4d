"""Trains the demo model: its tokenizer, then the model, on the corpus of this package.

`python -m llamacli.demo.train --output DIR` writes an ordinary Hugging Face model folder.
Progress goes to stderr. README.md tells what came out.
"""

import argparse
import io
import json
import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor
from torch.nn import functional as F

from llamacli.atomic import atomic_write
from llamacli.config import LlamaConfig
from llamacli.demo.corpus import documents
from llamacli.model import LlamaForCausalLM

logger = logging.getLogger(__name__)

PROMPTS = [
    "Plants create energy through a process known as",
    "Once upon a time",
    "One day, a little",
    "The sun is",
    "The capital of France is",
    "In winter,",
    "Anna had a",
]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that the result depends on, besides the corpus and the version of torch."""

    seed: int = 0
    steps: int = 4000
    batch_size: int = 8
    sequence_length: int = 512
    learning_rate: float = 3e-3  # the peak; a linear warm-up leads to it, a cosine to zero after it
    warmup_steps: int = 100
    weight_decay: float = 0.1
    max_gradient_norm: float = 1.0


CONFIG = LlamaConfig(
    vocab_size=2048,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    dtype="bfloat16",
)


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> bytes:
    """A byte-fallback BPE model, set up as Llama's: the content of `tokenizer.model`."""
    lines = (line for text in texts for line in text.splitlines())  # so that a line end is a byte
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def encode(texts: Sequence[str], tokenizer: sentencepiece.SentencePieceProcessor) -> list[Tensor]:
    """Token ids of each document, with the marks of its beginning and its end."""
    rows = tokenizer.encode(list(texts), add_bos=True, add_eos=True)
    return [torch.tensor(row) for row in rows]


def batches(rows: list[Tensor], recipe: Recipe) -> Iterator[Tensor]:
    """Endless batches (B, T + 1): the documents in a new order each epoch, end to end, then cut."""
    rng = random.Random(recipe.seed)
    rows = list(rows)
    window = recipe.sequence_length + 1
    while True:
        rng.shuffle(rows)
        stream = torch.cat(rows)
        start = rng.randrange(window)  # the cuts fall elsewhere in each epoch
        windows = stream[start:].unfold(0, window, recipe.sequence_length)
        order = list(range(len(windows)))
        rng.shuffle(order)
        for first in range(0, len(order) - recipe.batch_size + 1, recipe.batch_size):
            yield windows[order[first : first + recipe.batch_size]]


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at this step."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; the norms' gains are not decayed."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


def next_token_loss(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    """Mean cross-entropy, in nats a token, of a batch (B, T + 1)."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch[:, :-1]).logits  # (B, T, V)
    return F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


def train_model(model: LlamaForCausalLM, rows: list[Tensor], recipe: Recipe) -> float:
    """Train in place; the result is the mean loss of the last 50 steps, in nats a token."""
    optimizer = build_optimizer(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, recipe)
    )
    losses: list[float] = []
    start = time.perf_counter()
    for step, batch in zip(range(1, recipe.steps + 1), batches(rows, recipe), strict=False):
        loss = next_token_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses = [*losses[-49:], loss.item()]
        if step % 50 == 0:
            report_progress(step, losses, time.perf_counter() - start, recipe)
    return sum(losses) / len(losses)


def report_progress(step: int, losses: list[float], elapsed_s: float, recipe: Recipe) -> None:
    """One line of log: loss, speed, and how long it will go on."""
    tokens_per_second = step * recipe.batch_size * recipe.sequence_length / elapsed_s
    remaining_s = elapsed_s / step * (recipe.steps - step)
    logger.info(
        "step %d/%d  loss %.3f  %.0f tokens/s  %.0f s left",
        step, recipe.steps, sum(losses) / len(losses), tokens_per_second, remaining_s,
    )  # fmt: skip


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write an object as indented JSON, whole or not at all."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_folder(folder: Path, model: LlamaForCausalLM, tokenizer_model: bytes) -> None:
    """Write weights (bfloat16), tokenizer and the JSON files beside them."""
    model.to(torch.bfloat16).save_pretrained(folder)
    with atomic_write(folder / "tokenizer.model") as path:
        path.write_bytes(tokenizer_model)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "add_bos_token": True,
            "add_eos_token": False,
            "legacy": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.config.max_position_embeddings,
        },
    )
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": model.config.bos_token_id,
            "eos_token_id": model.config.eos_token_id,
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.9,
        },
    )


def log_samples(folder: Path) -> None:
    """Greedy continuations by the model as it was written."""
    model = LlamaForCausalLM.from_pretrained(folder, device="cpu")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for prompt in PROMPTS:
        prompt_ids = torch.tensor([tokenizer.encode(prompt, add_bos=True)])
        with torch.inference_mode():
            output_ids = model.generate(prompt_ids, max_new_tokens=100, do_sample=False)
        logger.info("- %s", tokenizer.decode(output_ids[0].tolist()))


def train(folder: Path, recipe: Recipe) -> None:
    """Train tokenizer and model by the recipe, and write the folder."""
    start = time.perf_counter()
    torch.manual_seed(recipe.seed)
    texts = documents(recipe.seed)
    tokenizer_model = train_tokenizer(texts, CONFIG.vocab_size)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model)
    rows = encode(texts, tokenizer)
    model = LlamaForCausalLM(CONFIG)
    size = sum(parameter.numel() for parameter in model.parameters())
    logger.info("%d documents, %d tokens, %d parameters", len(rows), sum(map(len, rows)), size)
    loss = train_model(model, rows, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    save_folder(folder, model, tokenizer_model)
    logger.info("final loss %.4f after %.0f s", loss, time.perf_counter() - start)
    log_samples(folder)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="Train the demo model of llamacli.")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="optimizer steps")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    train(options.output, Recipe(steps=options.steps))


if __name__ == "__main__":
    main()
