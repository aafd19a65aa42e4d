"""LlamaTokenizerFast: tokenizer.json, and Meta's Llama 3 file. `load_tokenizer` picks the class."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from llamacli import hub
from llamacli.errors import LlamacliError, NotFoundError, TokenizerError, printable
from llamacli.tokenizer import Tokenizer
from llamacli.tokenizer_added import AddedToken
from llamacli.tokenizer_bytes import BLANK
from llamacli.tokenizer_config import TokenizerConfig, file_kind
from llamacli.tokenizer_conversion import converted
from llamacli.tokenizer_json import components, load_tokenizer_json
from llamacli.tokenizer_sentencepiece import LlamaTokenizer
from llamacli.tokenizer_tiktoken import tiktoken_tokenizer

if TYPE_CHECKING:
    import tokenizers

logger = logging.getLogger(__name__)

# Where no file names them, the names of Llama 3 and of Llama 2.
_BOS_TOKENS = ("<|begin_of_text|>", "<s>")
_EOS_TOKENS = ("<|end_of_text|>", "</s>")


class LlamaTokenizerFast(Tokenizer):
    """Encodes with the tokenizers library: byte-level BPE of Llama 3, or a converted SentencePiece.

    A tokenizer.json alone says where blanks are put before text; `legacy` and `add_prefix_space` of
    the config have a say in what becomes of a SentencePiece model (see `converted`).

    Args:
        vocab_file: a tokenizer.json, or a tokenizer.model: the tiktoken file of Llama 3, or a
            SentencePiece model.
        config: whether BOS and EOS are added is read from the template in the file where the
            config says nothing and names no class of Llama.
        settings: fields of the config by name, as `add_eos_token=True`.

    Raises:
        NotFoundError, TokenizerError: the file is missing or damaged, the config contradicts it.
    """

    _vocabulary_name = "tokenizer.json"
    _saved_class = "PreTrainedTokenizerFast"

    def __init__(
        self, vocab_file: Path | str, config: TokenizerConfig = TokenizerConfig(), **settings: Any
    ) -> None:
        path, config = Path(vocab_file), replace(config, **settings)
        kind = file_kind(path)
        if kind == "json":
            self._tokenizer, model_size = load_tokenizer_json(path)
        elif kind == "tiktoken":
            self._tokenizer = tiktoken_tokenizer(path)
            model_size = self._tokenizer.get_vocab_size(with_added_tokens=False)
        else:
            source = LlamaTokenizer(path, config)
            config, model_size = source.config, source.processor.vocab_size()
            self._tokenizer = converted(
                source.processor,
                legacy=source.legacy,
                add_prefix_space=bool(config.add_prefix_space),
            )
        self._plain, self._blank_first = _without_added_tokens(self._tokenizer)
        decoder = list(components(_state(self._tokenizer.decoder)))
        self.byte_level = any(part["type"] == "ByteLevel" for part in decoder)
        self.leading_blanks = int(any(map(_drops_a_blank, decoder)))
        added = self._tokenizer.get_added_tokens_decoder()
        super().__init__(
            self._filled(config),
            model_size,
            {token_id: _added_token(token) for token_id, token in added.items()},
        )

    @classmethod
    def from_pretrained(cls, folder: Path | str, **settings: Any) -> Self:
        """Read tokenizer.json, else tokenizer.model; `settings` overrule files.

        `folder` may be a hub name.
        """
        folder = hub.resolve(folder, weights=False).path
        path = folder / "tokenizer.json"
        path = path if path.exists() else folder / "tokenizer.model"
        return cls(path, TokenizerConfig.read(folder, **settings))

    def _filled(self, config: TokenizerConfig) -> TokenizerConfig:
        config = config.filled(
            bos_token=self._first_known(_BOS_TOKENS), eos_token=self._first_known(_EOS_TOKENS)
        )
        around = [
            item.get("SpecialToken", {}).get("id")
            for component in components(_state(self._tokenizer.post_processor))
            if component["type"] == "TemplateProcessing"
            for item in component["single"]
        ]
        is_llama = "LlamaTokenizer" in (config.tokenizer_class or "")
        return config.filled(
            add_bos_token=config.bos_token is not None
            and (is_llama or around[:1] == [config.bos_token]),
            add_eos_token=config.eos_token is not None
            and not is_llama
            and around[-1:] == [config.eos_token],
        )

    def _first_known(self, tokens: tuple[str, ...]) -> str | None:
        known = (token for token in tokens if self._tokenizer.token_to_id(token) is not None)
        return next(known, None)

    def update_post_processor(self) -> None:
        """Rebuild the template of the saved tokenizer.json from the two flags, too."""
        from tokenizers.processors import TemplateProcessing

        super().update_post_processor()
        before, after = (self.convert_ids_to_tokens(ids) for ids in (self._prefix, self._suffix))
        single, second = (
            [f"{part}:{number}" for part in (*before, sequence, *after)]
            for number, sequence in enumerate(("$A", "$B"))
        )
        try:
            self._tokenizer.post_processor = TemplateProcessing(
                single=single,
                pair=single + second,
                special_tokens=list(zip(before + after, self._prefix + self._suffix, strict=True)),
            )
        except ValueError as problem:  # a token with a colon in it
            raise TokenizerError(f"no template can be made: {printable(problem)}") from problem

    def _encode_text(self, text: str, *, first: bool) -> list[int]:
        if first and self._blank_first and text and not text.startswith((" ", BLANK)):
            text = BLANK + text
        try:
            return self._plain.encode(text, add_special_tokens=False).ids
        except BaseException as problem:
            # A panic in Rust, as a regular expression that gives up, is not an Exception.
            if isinstance(problem, KeyboardInterrupt | SystemExit):
                raise
            raise TokenizerError(f"tokenizers failed: {printable(problem)}") from problem

    def _model_id(self, token: str) -> int | None:
        return self._plain.token_to_id(token)

    def _model_token(self, token_id: int) -> str | None:
        return self._plain.id_to_token(token_id)

    def _vocabulary(self) -> bytes:
        return self._tokenizer.to_str().encode()


def load_tokenizer(folder: Path | str, **settings: Any) -> Tokenizer:
    """The tokenizer of a model's folder; `settings` overrule what is said in the files.

    A SentencePiece tokenizer.model is the truth where there is one, else tokenizer.json, else the
    tokenizer.model that Meta wrote for Llama 3.

    Raises:
        NotFoundError: neither file is there.
        TokenizerError: the file, or a setting beside it, is bad.
    """
    folder = Path(folder)
    model, fast = folder / "tokenizer.model", folder / "tokenizer.json"
    if model.exists() and file_kind(model) == "sentencepiece":
        tokenizer = LlamaTokenizer.from_pretrained(folder, **settings)
        if fast.exists():
            _compare(fast, tokenizer.vocab_size)
        return tokenizer
    if not model.exists() and not fast.exists():
        raise NotFoundError(f"{printable(folder)} has neither tokenizer.model nor tokenizer.json")
    return LlamaTokenizerFast.from_pretrained(folder, **settings)


def _compare(path: Path, vocab_size: int) -> None:
    """Say so if the file that is not used disagrees with the one that is."""
    try:
        found = LlamaTokenizerFast(path).vocab_size
    except LlamacliError as problem:
        logger.warning("tokenizer.model is used; its neighbor is bad: %s", problem)
        return
    if found != vocab_size:
        sizes = (vocab_size, found)
        logger.warning("tokenizer.model is used: it has %d tokens, tokenizer.json %d", *sizes)


def _without_added_tokens(full: "tokenizers.Tokenizer") -> tuple["tokenizers.Tokenizer", bool]:
    """The same tokenizer for plain text, and whether a text begins with a blank of its own.

    The model is shared, not copied. Metaspace puts the blank before whatever it is given, but
    text after an added token must not have one.
    """
    from tokenizers import Tokenizer, pre_tokenizers

    plain = Tokenizer(full.model)
    plain.normalizer = full.normalizer
    pre_tokenizer = full.pre_tokenizer
    first = isinstance(pre_tokenizer, pre_tokenizers.Metaspace) and (
        pre_tokenizer.prepend_scheme == "first"
    )
    if first:
        pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=pre_tokenizer.split)
    plain.pre_tokenizer = pre_tokenizer
    return plain, first


def _state(part: Any) -> Any:
    """A part of a tokenizer as tokenizer.json writes it."""
    return None if part is None else json.loads(part.__getstate__())


def _drops_a_blank(decoder: Mapping[str, Any]) -> bool:
    if decoder["type"] == "Metaspace":
        return decoder.get("prepend_scheme") != "never"
    return decoder["type"] == "Strip" and bool(decoder["start"])


def _added_token(token: "tokenizers.AddedToken") -> AddedToken:
    return AddedToken(
        content=token.content, special=token.special, lstrip=token.lstrip, rstrip=token.rstrip
    )
