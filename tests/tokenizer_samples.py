"""Small vocabularies of every kind that a Llama comes with, made here."""

import base64
import io
import json
import random
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from llamacli.tokenizer_bytes import BYTE_TO_CHAR

SENTENCES = [
    "Plants create energy through a process known as photosynthesis.",
    "The quick brown fox jumps over the lazy dog, again and again.",
    "Hello world! Hello again, said the fox; the dog said nothing at all.",
    "Ein Vogel singt über den Dächern, während der Regen fällt.",
    "She sells 12 sea shells for 34 cents by the sea shore in 1999.",
]

# What a text may hold: blanks, newlines, marks that look like tokens, every width of UTF-8.
CHARACTERS = " \n\t  abHeloé漢字🦙👩‍👧▁<>/s|[]0x\ufffd\x00\u200b"


def random_texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)

    def character() -> str:
        if rng.random() < 0.8:
            return rng.choice(CHARACTERS)
        return chr(rng.choice([rng.randrange(0x20, 0x3000), rng.randrange(0x10000, 0x1FFFF)]))

    return ["".join(character() for _ in range(rng.randrange(24))) for _ in range(count)]


@cache
def sentencepiece_model(**options: Any) -> bytes:
    """A SentencePiece model trained on a few sentences, with the options that Llama 2 has."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_writer=model,
        minloglevel=2,
        **{
            "vocab_size": 420,
            "model_type": "bpe",
            "byte_fallback": True,
            "split_digits": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "hard_vocab_limit": False,
        }
        | options,
    )
    return model.getvalue()


@cache
def tiktoken_tokens() -> tuple[bytes, ...]:
    """All bytes, and the joins that byte pair encoding of the sentences finds, in order."""
    words = [[bytes([byte]) for byte in word.encode()] for word in " ".join(SENTENCES).split(" ")]
    words += [[b" ", *word] for word in words]
    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < 380:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        left, right = max(sorted(pairs), key=pairs.__getitem__)
        tokens.append(left + right)
        for word in words:
            _join(word, left, right)
    return tuple(tokens)


def _join(word: list[bytes], left: bytes, right: bytes) -> None:
    """Join every neighboring left and right in place, from the left."""
    place = 0
    while place + 1 < len(word):
        if (word[place], word[place + 1]) == (left, right):
            word[place : place + 2] = [left + right]
        place += 1


@cache
def tiktoken_file() -> bytes:
    lines = (
        f"{base64.b64encode(token).decode()} {rank}\n"
        for rank, token in enumerate(tiktoken_tokens())
    )
    return "".join(lines).encode()


def byte_level_json(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json like Llama 3's, without a split pattern, with two added tokens."""
    vocab = {char: token_id for token_id, char in enumerate(BYTE_TO_CHAR.values())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
    tokenizer.add_tokens(["<think>"])
    data: dict[str, Any] = json.loads(tokenizer.to_str())
    return data | changes


def converted_json(scheme: str) -> dict[str, Any]:
    """A tokenizer.json like Llama 2's: SentencePiece's pieces as BPE.

    `scheme` is "prepend" (the normalizer of old files), or Metaspace's "first" or "always".
    """
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁Helo.wrd"]
    merges = [("▁", "H"), ("e", "l"), ("l", "o"), ("▁H", "el"), ("▁Hel", "lo"), ("▁", "w")]
    pieces += ["".join(pair) for pair in merges]
    vocab = {piece: token_id for token_id, piece in enumerate(pieces)}
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    if scheme == "prepend":
        replace = normalizers.Replace(" ", "▁")
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    data: dict[str, Any] = json.loads(tokenizer.to_str())
    return data


def folder_with(folder: Path, model: bytes) -> Path:
    """The folder, with this tokenizer.model in it."""
    (folder / "tokenizer.model").write_bytes(model)
    return folder


def write_json(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path
