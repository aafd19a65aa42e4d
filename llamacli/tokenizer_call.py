"""A tokenizer is called as one of `transformers` is: texts in, padded rows of ids out."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamacli.errors import RequestError, printable
from llamacli.prompts import choose_template, render_chats
from llamacli.request import Message
from llamacli.tokenizer_batch import BatchEncoding, as_tensors
from llamacli.tokenizer_sequences import SequenceBuilder

_CHOICES: Mapping[str, tuple[object, ...]] = {
    "padding": (False, True, "longest", "max_length", "do_not_pad"),
    "truncation": (False, True, "longest_first", "only_first", "do_not_truncate"),
    "padding_side": ("left", "right"),
    "return_tensors": (None, "pt"),
}
_OF_CHATS = {"padding", "max_length", "padding_side", "return_tensors", "return_attention_mask"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What a call of a tokenizer takes besides the texts; the names are those of `transformers`.

    Attributes:
        add_special_tokens: put BOS and EOS around each sequence, as the tokenizer says.
        padding: make all rows as long as the longest (True), or as `max_length` ("max_length").
        truncation: cut a row on the right so that it has `max_length` ids.
        max_length: None takes the tokenizer's `model_max_length`.
        padding_side: "left" or "right".
        return_tensors: "pt" gives tensors (B, T), int64; None lists.
        return_attention_mask: 1 for a token, 0 for padding.
        return_token_type_ids: 0 in the first sequence, 1 in the second.

    Raises:
        RequestError: a value that is not among these.
    """

    add_special_tokens: bool = True
    padding: bool | str = False
    truncation: bool | str = False
    max_length: int | None = None
    padding_side: str
    return_tensors: str | None = None
    return_attention_mask: bool = True
    return_token_type_ids: bool = False

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                shown = ", ".join(map(repr, known))
                got = printable(repr(value))
                raise RequestError(f"{name} must be one of {shown}, got {got}")
        if self.max_length is not None and not self.truncates and self.padding != "max_length":
            raise RequestError('max_length needs truncation=True or padding="max_length"')

    @property
    def pads(self) -> bool:
        """Whether rows are padded."""
        return self.padding not in (False, "do_not_pad")

    @property
    def truncates(self) -> bool:
        """Whether rows are cut."""
        return self.truncation not in (False, "do_not_truncate")


class TokenizerCall(SequenceBuilder):
    """The part of a tokenizer that is used on batches.

    Attributes:
        padding_side: where padding stands, "left" or "right".
        model_max_length: the most ids that the model is made for, if the files say so.
    """

    padding_side: str
    model_max_length: int | None
    pad_token_id: int | None

    @abstractmethod
    def encode(
        self, text: str, *, add_special_tokens: bool = True, split_special_tokens: bool = False
    ) -> list[int]:
        """The ids of a text."""

    @abstractmethod
    def decode(self, ids: Any, *, skip_special_tokens: bool = False) -> str:
        """The text of ids."""

    @abstractmethod
    def encode_segments(self, segments: Sequence[str | int]) -> list[int]:
        """The ids of plain text (str) and added tokens (int)."""

    @abstractmethod
    def id_to_token(self, token_id: int) -> str:
        """The token with this id."""

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: str | Sequence[str] | None = None,
        **options: Any,
    ) -> BatchEncoding:
        """Encode a text, or a batch of texts, each alone or together with its pair.

        Args:
            text: one text, or several.
            text_pair: as many second texts.
            options: fields of `CallOptions`.

        Returns:
            `input_ids` and what was asked for beside it: of one text a list, of several texts a
            list for each; with `return_tensors="pt"` always tensors (B, T).

        Raises:
            TypeError: an option that is not supported, by name.
            RequestError: a value outside its range, no padding token, rows that make no tensor.
        """
        chosen = CallOptions(**{"padding_side": self.padding_side} | options)
        texts, pairs = _as_batch(text, text_pair)
        rows = [self._row(*both, chosen) for both in zip(texts, pairs, strict=True)]
        return self._finished(rows, chosen, single=isinstance(text, str))

    def _row(self, text: str, pair: str | None, chosen: CallOptions) -> dict[str, list[int]]:
        first = self.encode(text, add_special_tokens=False)
        second = None if pair is None else self.encode(pair, add_special_tokens=False)
        if chosen.truncates:
            first = self._truncated(first, second, chosen)
        if not chosen.add_special_tokens:
            ids, types = first + (second or []), [0] * len(first) + [1] * len(second or [])
        else:
            ids = self.build_inputs_with_special_tokens(first, second)
            types = self.create_token_type_ids_from_sequences(first, second)
        row = _with_mask(ids)
        return row | {"token_type_ids": types} if chosen.return_token_type_ids else row

    def _truncated(
        self, first: list[int], second: list[int] | None, chosen: CallOptions
    ) -> list[int]:
        limit = self._max_length(chosen)
        if second is not None and chosen.truncation != "only_first":
            raise RequestError('truncation of pairs must be "only_first"')
        used = len(second or [])
        if chosen.add_special_tokens:
            used = len(self.build_inputs_with_special_tokens([], second))
        if used > limit:
            raise RequestError(f"max_length must be at least {used} here, got {limit}")
        return first[: limit - used]

    def _max_length(self, chosen: CallOptions) -> int:
        length = self.model_max_length if chosen.max_length is None else chosen.max_length
        if length is None:
            raise RequestError("max_length is needed: the tokenizer has no model_max_length")
        return length

    def _finished(
        self, rows: Sequence[dict[str, list[int]]], chosen: CallOptions, single: bool
    ) -> BatchEncoding:
        """The rows padded, as tensors, or as the lists of a single row."""
        length = max((len(row["input_ids"]) for row in rows), default=0)
        if chosen.padding == "max_length":
            length = max(length, self._max_length(chosen))
        fillers = {"input_ids": self.pad_token_id, "token_type_ids": 0, "attention_mask": 0}
        dropped = () if chosen.return_attention_mask else ("attention_mask",)
        encoding = BatchEncoding()
        for name in [name for name in fillers if name in rows[0] and name not in dropped]:
            encoding[name] = [row[name] for row in rows]
            if chosen.pads:
                encoding[name] = [_fill(i, fillers[name], length, chosen) for i in encoding[name]]
        if chosen.return_tensors:
            return as_tensors(encoding)
        if single:
            return BatchEncoding({name: values[0] for name, values in encoding.items()})
        return encoding

    def batch_decode(
        self,
        sequences: Any,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> list[str]:
        """The text of each row of ids: lists, or a tensor (B, T).

        Raises:
            RequestError: blanks are to be removed before punctuation. The tokens say where blanks
                are, and what is decoded is exact.
        """
        if clean_up_tokenization_spaces:
            raise RequestError("clean_up_tokenization_spaces must be False")
        return [self.decode(ids, skip_special_tokens=skip_special_tokens) for ids in sequences]

    def apply_chat_template(
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """Messages as the model was trained to see them.

        What a message says never becomes a special token.

        Args:
            conversation: the messages of a chat, or of several.
            chat_template: jinja text, or the name of a built-in template; None takes the model's.
            add_generation_prompt: end with what opens the assistant's turn.
            tokenize: ids; otherwise text.
            return_dict: the ids in a `BatchEncoding`; otherwise they alone.
            options: `padding`, `max_length`, `padding_side`, `return_tensors` and
                `return_attention_mask`, as of a call.

        Raises:
            TypeError: an option that is not supported, by name.
            RequestError, TemplateError: as `render_chats`.
        """
        if unsupported := sorted(options.keys() - _OF_CHATS):
            raise TypeError(f"apply_chat_template does not support {', '.join(unsupported)}")
        chosen = CallOptions(**{"padding_side": self.padding_side} | options)
        template = choose_template(self, chat_template)  # type: ignore[arg-type]
        if template is None:
            raise RequestError("the tokenizer has no chat template: give chat_template")
        single = bool(conversation) and isinstance(conversation[0], Mapping)
        chats: Any = [conversation] if single else conversation
        settings = {"template": template, "add_generation_prompt": add_generation_prompt}
        rendered = list(render_chats(chats, self, **settings))  # type: ignore[arg-type]
        if not tokenize:
            texts = ["".join(map(self._segment_text, segments)) for segments in rendered]
            return texts[0] if single else texts
        encoding = self._finished(
            [_with_mask(self.encode_segments(segments)) for segments in rendered], chosen, single
        )
        return encoding if return_dict else encoding["input_ids"]

    def _segment_text(self, segment: str | int) -> str:
        return segment if isinstance(segment, str) else self.id_to_token(segment)


def _with_mask(ids: list[int]) -> dict[str, list[int]]:
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}


def _as_batch(
    text: str | Sequence[str], text_pair: str | Sequence[str] | None
) -> tuple[list[str], list[str | None]]:
    texts = _as_texts("text", text)
    if text_pair is None:
        return texts, [None] * len(texts)
    pairs = _as_texts("text_pair", text_pair)
    if len(texts) != len(pairs):
        raise RequestError(f"text_pair must have a text for each of {len(texts)}, got {len(pairs)}")
    return texts, [*pairs]


def _as_texts(name: str, value: str | Sequence[str]) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    listed = isinstance(texts, list | tuple)
    if not (listed and texts and all(isinstance(text, str) for text in texts)):
        shown = printable(repr(value))
        raise RequestError(f"{name} must be a string or a list of strings, got {shown}")
    return list(texts)


def _fill(ids: list[int], filler: int | None, length: int, chosen: CallOptions) -> list[int]:
    if filler is None:
        hint = "tokenizer.pad_token = tokenizer.eos_token"
        raise RequestError("padding needs a pad_token, and the tokenizer has none", hint=hint)
    padding = [filler] * (length - len(ids))
    return padding + ids if chosen.padding_side == "left" else ids + padding
