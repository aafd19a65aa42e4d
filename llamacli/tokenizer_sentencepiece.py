"""LlamaTokenizer: the SentencePiece tokenizer of Llama 1 and 2, with sentencepiece as the truth."""

import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from llamacli import hub
from llamacli.errors import TokenizerError, printable
from llamacli.json_files import read_file
from llamacli.tokenizer import Tokenizer
from llamacli.tokenizer_bytes import BLANK
from llamacli.tokenizer_config import (
    DOWNLOAD_HINT,
    MAX_VOCABULARY_BYTES,
    TokenizerConfig,
    file_kind,
)

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# A ModelProto whose normalizer_spec (field 3) holds add_dummy_prefix = false (its field 3).
# Protobuf messages merge when concatenated, the last value wins.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class LlamaTokenizer(Tokenizer):
    """Encodes with sentencepiece and a tokenizer.model file.

    SentencePiece puts a blank before a text. With `legacy=True` (the default, as in transformers
    4.53) it puts one before every stretch of text after an added token too; with `legacy=False`
    only before the first, and there only with `add_prefix_space` (True by default).

    Args:
        vocab_file: a tokenizer.model of SentencePiece.
        config: what no file says is BOS before a text, no EOS, and the names in the model.
        settings: fields of the config by name, as `legacy=False`.

    Raises:
        NotFoundError, TokenizerError: the file is missing or damaged, the config contradicts it.
    """

    byte_level = False
    _vocabulary_name = "tokenizer.model"
    _saved_class = "LlamaTokenizer"

    def __init__(
        self, vocab_file: Path | str, config: TokenizerConfig = TokenizerConfig(), **settings: Any
    ) -> None:
        path, config = Path(vocab_file), replace(config, **settings)
        if file_kind(path) != "sentencepiece":
            raise TokenizerError(f"{printable(path)} is not a SentencePiece model")
        self._data = read_file(path, error=TokenizerError, max_bytes=MAX_VOCABULARY_BYTES)
        try:
            self.processor = model = _load(self._data)
            self._pieces: list[str] = model.id_to_piece(list(range(model.vocab_size())))
            self._unknown_id: int = model.unk_id()
            self._unknown_surface: bytes = model.decode([self._unknown_id]).encode()
            # Two lone blanks show what the model drops at the start of a text: one, all, none.
            blanks: str = model.decode_pieces([BLANK, BLANK])
        except (RuntimeError, IndexError, UnicodeDecodeError) as problem:
            what = f"{printable(path)} is a damaged SentencePiece model"
            raise TokenizerError(what, hint=DOWNLOAD_HINT) from problem
        self.leading_blanks = {"": sys.maxsize, " ": 1}.get(blanks, 0)
        config = config.filled(
            add_bos_token=model.bos_id() >= 0,
            add_eos_token=False,
            add_prefix_space=True,
            legacy=True,
            bos_token=self._model_token(model.bos_id()),
            eos_token=self._model_token(model.eos_id()),
            unk_token=self._model_token(self._unknown_id),
        )
        if not (config.legacy or config.add_prefix_space):
            self.leading_blanks = 0  # none was put before the text
        super().__init__(config, model_size=len(self._pieces), added={})

    @classmethod
    def from_pretrained(cls, folder: Path | str, **settings: Any) -> Self:
        """Read tokenizer.model and the settings in a folder; `settings` overrule the files.

        `folder` may be a hub name.
        """
        folder = hub.resolve(folder, weights=False).path
        return cls(folder / "tokenizer.model", TokenizerConfig.read(folder, **settings))

    @property
    def legacy(self) -> bool:
        """Whether every stretch of text after an added token gets a blank before it."""
        return bool(self.config.legacy)

    @cached_property
    def _model_without_prefix(self) -> "SentencePieceProcessor":
        return _load(self._data + _NO_DUMMY_PREFIX)

    def _encode_text(self, text: str, *, first: bool) -> list[int]:
        prefix = self.legacy or (first and self.config.add_prefix_space)
        ids: list[int] = (self.processor if prefix else self._model_without_prefix).encode(text)
        return ids

    def _model_id(self, token: str) -> int | None:
        token_id: int = self.processor.piece_to_id(token)
        return token_id if self._model_token(token_id) == token else None

    def _model_token(self, token_id: int) -> str | None:
        return self._pieces[token_id] if 0 <= token_id < len(self._pieces) else None

    @cached_property
    def _skipped(self) -> frozenset[int]:
        """Control pieces that no file names are left out, too, as sentencepiece does."""
        is_control = self.processor.is_control(list(range(len(self._pieces))))
        control = {token_id for token_id, found in enumerate(is_control) if found}
        return frozenset(control.union(self.all_special_ids))

    def shown_bytes(self, token_id: int, skip_special_tokens: bool) -> bytes:
        """What decode shows of a token; sentencepiece never leaves the unknown one out."""
        if skip_special_tokens and token_id == self._unknown_id:
            return self._unknown_surface
        return super().shown_bytes(token_id, skip_special_tokens)

    def _vocabulary(self) -> bytes:
        return self._data


def _load(data: bytes) -> "SentencePieceProcessor":
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=data)
