"""Meta's tokenizer.model of Llama 3: lines of `base64 rank`, built into a tokenizers BPE."""

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING

from llamacli.errors import TokenizerError, printable
from llamacli.json_files import read_file
from llamacli.tokenizer_bytes import BYTE_TO_CHAR
from llamacli.tokenizer_config import MAX_VOCABULARY_BYTES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# github.com/meta-llama/llama3, llama/tokenizer.py
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL_COUNT = 256
# Names of Llama 3.1 by place; Llama 3 has reserved tokens where 3.1 has names of its own, and no
# use for them. The places between are reserved, numbered in order.
_SPECIAL_NAMES = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}


def tiktoken_tokenizer(path: Path) -> "Tokenizer":
    """The tokenizer that a tiktoken file describes, with 256 special tokens, BOS before a text.

    Raises:
        NotFoundError, TokenizerError: the file is missing or damaged.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    ranks = _read_ranks(path)
    vocab = {_spell(token): rank for token, rank in ranks.items()}
    model = models.BPE(vocab=vocab, merges=_merges(ranks), ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_special_tokens())
    bos = _SPECIAL_NAMES[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def _read_ranks(path: Path) -> dict[bytes, int]:
    """The rank of every token, which is its id."""
    data = read_file(path, error=TokenizerError, max_bytes=MAX_VOCABULARY_BYTES)
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as problem:
            where = f"{printable(path)}, line {number}"
            got = printable(line.decode(errors="replace"))
            raise TokenizerError(f"{where}: expected `base64 rank`, got {got!r}") from problem
    every_byte = all(bytes([byte]) in ranks for byte in range(256))
    if not every_byte or sorted(ranks.values()) != list(range(data.count(b"\n"))):
        raise TokenizerError(f"{printable(path)}: tokens or ranks are missing or occur twice")
    return ranks


def _merges(ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    """Every pair whose join is a token, in the order in which tiktoken would join them.

    tiktoken joins the neighbors whose join has the lowest rank, whatever the two are; so each
    way to cut a token in two is a merge. The order among these is that of transformers.
    """
    merges = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                merges.append((rank, ranks[left], ranks[right], left, right))
    return [(_spell(left), _spell(right)) for *_, left, right in sorted(merges)]


def _spell(token: bytes) -> str:
    return "".join(map(BYTE_TO_CHAR.__getitem__, token))


def _special_tokens() -> list[str]:
    tokens = []
    for place in range(_SPECIAL_COUNT):
        reserved = place - len([named for named in _SPECIAL_NAMES if named < place])
        tokens.append(_SPECIAL_NAMES.get(place, f"<|reserved_special_token_{reserved}|>"))
    return tokens
