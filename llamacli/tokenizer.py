"""Text ↔ token ids: what both Llama tokenizers share.

A subclass encodes plain text and knows its vocabulary. Everything else is here: the tokens that
are matched whole inside text, BOS and EOS, decoding, and the methods that the documentation of
transformers promises, with the results of LlamaTokenizer in transformers 4.53.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, overload

from llamacli.atomic import atomic_write
from llamacli.errors import (
    LocalIOError,
    NotFoundError,
    RequestError,
    TokenizerError,
    printable,
)
from llamacli.stream_decoder import StreamDecoder
from llamacli.tokenizer_added import AddedToken, AddedTokens
from llamacli.tokenizer_batch import plain_ids
from llamacli.tokenizer_bytes import (
    BYTE_TO_CHAR,
    byte_level_bytes,
    scalar_text,
    sentencepiece_bytes,
)
from llamacli.tokenizer_call import TokenizerCall
from llamacli.tokenizer_config import TokenizerConfig

# Tokens that end a turn or the text in the Llama 3 family and in ChatML.
END_OF_TURN = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>")


class Tokenizer(TokenizerCall):
    """A vocabulary of ids 0 … vocab_size-1, added tokens included.

    Text is a sequence of Unicode characters: a lone surrogate, as a command line can hold one,
    is encoded as U+FFFD.

    Attributes:
        byte_level: tokens are written in the byte-level alphabet, else as SentencePiece does.
        leading_blanks: how many blanks decode drops from the start of the text.
        config: the settings, with the defaults filled in.
        vocab_size: one more than the largest id.
        added_tokens: the id of every token that is matched whole inside text.
        all_special_ids: the ids of the special ones among them.
        eos_token_ids: the ids that end a text or a turn.
    """

    byte_level: bool
    leading_blanks: int
    _vocabulary_name: ClassVar[str]
    _saved_class: ClassVar[str]  # under which transformers finds the saved files readable

    def __init__(
        self, config: TokenizerConfig, model_size: int, added: Mapping[int, AddedToken]
    ) -> None:
        self.config = config
        self._added = AddedTokens()
        self.added_tokens: Mapping[str, int] = self._added.ids
        self._bytes: dict[int, bytes] = {}
        for token_id, token in (*added.items(), *config.added_tokens.items()):
            self._add(token_id, token)
        self.vocab_size = max([model_size - 1, *self._added.by_id]) + 1
        for content in config.additional_special_tokens:
            self._special("special token", content)
        self.bos_token, self.bos_token_id = self._special("bos_token", config.bos_token)
        self.eos_token, self.eos_token_id = self._special("eos_token", config.eos_token)
        self.unk_token, self.unk_token_id = self._special("unk_token", config.unk_token)
        self.pad_token = config.pad_token
        self.padding_side = config.padding_side or "left"
        self.truncation_side = config.truncation_side or "right"
        self.model_max_length = config.model_max_length
        ends = {self.eos_token_id, *map(self.added_tokens.get, END_OF_TURN)}
        self.eos_token_ids = frozenset(token_id for token_id in ends if token_id is not None)
        # A model without byte pieces encodes what it does not know as the unknown token.
        self._never_plain = self._added.by_id.keys() - {self.unk_token_id}
        self.update_post_processor()

    @abstractmethod
    def _model_id(self, token: str) -> int | None:
        """The id of a token of the model itself, that is without the added ones."""

    @abstractmethod
    def _model_token(self, token_id: int) -> str | None:
        """The token of the model itself with this id."""

    @abstractmethod
    def _encode_text(self, text: str, *, first: bool) -> list[int]:
        """Encode text in which no added token is looked for; `first` where a text begins."""

    @abstractmethod
    def _vocabulary(self) -> bytes:
        """The contents of the vocabulary file."""

    def _add(self, token_id: int, token: AddedToken) -> None:
        model_token, model_id = self._model_token(token_id), self._model_id(token.content)
        self._added.add(token_id, token, model_token, model_id)

    def _special(self, name: str, content: str | None) -> tuple[str | None, int | None]:
        """A token that the config names, and its id; it is an added token from now on."""
        if content is None:
            return None, None
        token_id = self.token_to_id(content)
        if token_id is None:
            shown, size = printable(repr(content)), f"{self.vocab_size:,} tokens"
            raise TokenizerError(f"{name} {shown} is not in the vocabulary of {size}")
        token = self._added.by_id.get(token_id, AddedToken(content=content))
        self._add(token_id, replace(token, special=True))
        return content, token_id

    @property
    def pad_token(self) -> str | None:
        """What rows are padded with; a token of the vocabulary may be set."""
        return self.config.pad_token

    @pad_token.setter
    def pad_token(self, content: str | None) -> None:
        _, self.pad_token_id = self._special("pad_token", content)
        self.config = replace(self.config, pad_token=content)
        self.__dict__.pop("_skipped", None)
        self.all_special_ids = sorted(i for i, token in self._added.by_id.items() if token.special)

    @property
    def chat_template(self) -> str | None:
        """The jinja text that turns messages into a prompt, if the model came with one."""
        return self.config.chat_template

    # ---- encoding

    def encode(
        self, text: str, *, add_special_tokens: bool = True, split_special_tokens: bool = False
    ) -> list[int]:
        """The ids of a text.

        Args:
            text: any text.
            add_special_tokens: put BOS and EOS around it, as `add_bos_token` and `add_eos_token`
                say. A text that begins with the BOS string then has two, as in transformers.
            split_special_tokens: added tokens typed in the text are plain text.
        """
        ids = self.encode_segments([text] if split_special_tokens else self.split(text))
        return self.build_inputs_with_special_tokens(ids) if add_special_tokens else ids

    def split(self, text: str) -> list[str | int]:
        """Cut a text at its added tokens: plain text as str, an added token as its id."""
        return self._added.split(scalar_text(text))

    def encode_segments(self, segments: Sequence[str | int]) -> list[int]:
        """The ids of plain text (str) and added tokens (int), without BOS and EOS.

        Neighboring pieces of text are one text. Whatever they hold, they never become an added
        token.
        """
        ids: list[int] = []
        for is_text, run in groupby(segments, lambda segment: isinstance(segment, str)):
            if is_text:
                ids += self._encode_plain("".join(map(str, run)), first=not ids)
            else:
                ids += map(int, run)
        return ids

    def _encode_plain(self, text: str, *, first: bool) -> list[int]:
        ids = self._encode_text(scalar_text(text), first=first)
        if self._never_plain.isdisjoint(ids):
            return ids
        # The model itself can hold an added token, as a user-defined SentencePiece symbol.
        return [i for found in ids for i in self._spelled(found)]

    def _spelled(self, token_id: int) -> list[int]:
        """The same text without an added token: that one is spelled in bytes."""
        if token_id not in self._never_plain:
            return [token_id]
        name = BYTE_TO_CHAR.__getitem__ if self.byte_level else "<0x{:02X}>".format
        return self.convert_tokens_to_ids([name(byte) for byte in self.id_to_bytes(token_id)])

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, in the spelling of the vocabulary, without BOS and EOS."""
        return self.convert_ids_to_tokens(self.encode(text, add_special_tokens=False))

    def with_bos_once(self, ids: Sequence[int]) -> list[int]:
        """The ids with BOS before them, if this tokenizer adds one and they have none."""
        prefix = [] if list(ids[:1]) == self._prefix else self._prefix
        return [*prefix, *ids]

    # ---- decoding

    def decode(
        self,
        ids: Any,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of the ids: a sequence, an array or tensor (T,), or one alone.

        The first token that shows loses the blank that SentencePiece put before the text.
        `skip_special_tokens=True` leaves special tokens out, for a SentencePiece model exactly as
        sentencepiece itself does; otherwise they show by their name: `[1, 15043]` is "<s> Hello".
        Bytes that belong to no character show as U+FFFD. An id without a token shows nothing.

        Raises:
            TokenizerError: an id outside the vocabulary.
            RequestError: blanks are to be removed before punctuation. The tokens say where blanks
                are, and what is decoded is exact.
        """
        if clean_up_tokenization_spaces:
            raise RequestError("clean_up_tokenization_spaces must be False")
        decoder = StreamDecoder(self, skip_special_tokens=skip_special_tokens)
        return "".join(map(decoder.push, plain_ids(ids))) + decoder.flush()

    def id_to_bytes(self, token_id: int) -> bytes:
        """What a token stands for: the UTF-8 bytes of its text, or a part of a character."""
        if token_id not in self._bytes:
            to_bytes = byte_level_bytes if self.byte_level else sentencepiece_bytes
            self._bytes[token_id] = to_bytes(self.id_to_token(token_id))
        return self._bytes[token_id]

    @cached_property
    def _skipped(self) -> frozenset[int]:
        """The ids that decode leaves out with `skip_special_tokens`."""
        return frozenset(self.all_special_ids)

    def shown_bytes(self, token_id: int, skip_special_tokens: bool) -> bytes:
        """What decode shows of a token."""
        skipped = skip_special_tokens and token_id in self._skipped
        return b"" if skipped else self.id_to_bytes(token_id)

    def id_to_token(self, token_id: int) -> str:
        """The token with this id, empty for a gap in the vocabulary.

        Raises:
            TokenizerError: the id is outside the vocabulary.
        """
        if not 0 <= token_id < self.vocab_size:
            size = f"a vocabulary of {self.vocab_size:,} tokens"
            raise TokenizerError(f"token id {token_id} is outside {size}")
        added = self._added.by_id.get(token_id)
        return added.content if added else self._model_token(token_id) or ""

    @overload
    def convert_ids_to_tokens(self, ids: int) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]: ...
    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str]:
        """The tokens of ids, or of one, in the spelling of the vocabulary."""
        if isinstance(ids, int):
            return self.id_to_token(ids)
        return [self.id_to_token(token_id) for token_id in ids]

    def token_to_id(self, token: str) -> int | None:
        """The id of a token of the vocabulary."""
        return self.added_tokens.get(token, self._model_id(scalar_text(token)))

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        """The ids of tokens, or of one; what the vocabulary lacks has the unknown token's id.

        Raises:
            TokenizerError: a token is not in the vocabulary, which has no unknown token either.
        """
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        token_id = self.token_to_id(tokens)
        token_id = self.unk_token_id if token_id is None else token_id
        if token_id is None:
            raise TokenizerError(f"token {printable(repr(tokens))} is not in the vocabulary")
        return token_id

    # ---- saving

    def save_vocabulary(
        self, save_directory: Path | str, filename_prefix: str | None = None
    ) -> tuple[str]:
        """Write the vocabulary file into a folder; its path is returned.

        Raises:
            NotFoundError: there is no such folder.
            LocalIOError: the disk refuses.
        """
        folder = Path(save_directory)
        if not folder.is_dir():
            raise NotFoundError(f"{printable(folder)} is not a folder")
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = folder / f"{prefix}{self._vocabulary_name}"
        with atomic_write(path) as temporary:
            temporary.write_bytes(self._vocabulary())
        return (str(path),)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the vocabulary and tokenizer_config.json, which transformers can read too.

        Raises:
            LocalIOError: the disk refuses.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            where = printable(folder)
            raise LocalIOError(f"cannot make folder {where}: {problem.strerror}") from problem
        added = self._added.by_id
        named = {self.bos_token, self.eos_token, self.unk_token, self.pad_token}
        special = [token.content for token in added.values() if token.special]
        replace(
            self.config,
            added_tokens=added,
            additional_special_tokens=tuple(token for token in special if token not in named),
            tokenizer_class=self._saved_class,
        ).write(folder)
        self.save_vocabulary(folder)
