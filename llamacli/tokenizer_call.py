"""A tokenizer is called as one of `transformers` is: texts in, padded rows of ids out."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from llamacli.errors import RequestError, printable
from llamacli.prompts import choose_template, render_chats
from llamacli.request import Message
from llamacli.tokenizer_batch import BatchEncoding, as_tensors
from llamacli.tokenizer_offsets import place_tokens
from llamacli.tokenizer_sequences import SequenceBuilder
from llamacli.tokenizer_truncation import kept_lengths

_CHOICES: Mapping[str, tuple[object, ...]] = {
    "padding": (False, True, "longest", "max_length", "do_not_pad"),
    "truncation": (False, True, *"longest_first only_first only_second do_not_truncate".split()),
    "padding_side": ("left", "right"),
    "return_tensors": (None, "pt"),
}
# What stands at padding, in the order of the result.
FILLERS: dict[str, Any] = {
    "input_ids": None,  # the pad token's
    "token_type_ids": 0,
    "attention_mask": 0,
    "special_tokens_mask": 1,
    "offset_mapping": (0, 0),
}
_OF_CHATS = frozenset(
    """padding max_length pad_to_multiple_of padding_side return_tensors
    return_attention_mask""".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What a call of a tokenizer takes besides the texts; the names are those of `transformers`.

    Attributes:
        add_special_tokens: put BOS and EOS around each sequence, as the tokenizer says.
        padding: make all rows as long as the longest (True), or as `max_length` ("max_length").
        truncation: cut a row so that it has `max_length` ids; of a pair the longer sequence first
            (True or "longest_first"), "only_first" or "only_second".
        max_length: None takes the tokenizer's `model_max_length`; without that nothing is cut.
        pad_to_multiple_of: make padded rows as long as a multiple of this.
        padding_side: "left" or "right".
        return_tensors: "pt" gives tensors (B, T), int64; None lists.
        return_attention_mask: 1 for a token, 0 for padding.
        return_token_type_ids: 0 in the first sequence, 1 in the second.
        return_special_tokens_mask: 1 for BOS, EOS and padding, 0 for a token of the text.
        return_offsets_mapping: (start, end) of the characters in its text that a token stands for;
            (0, 0) for BOS, EOS and padding.

    Raises:
        RequestError: a value that is not among these.
    """

    add_special_tokens: bool = True
    padding: bool | str = False
    truncation: bool | str = False
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    padding_side: str
    return_tensors: str | None = None
    return_attention_mask: bool = True
    return_token_type_ids: bool = False
    return_special_tokens_mask: bool = False
    return_offsets_mapping: bool = False

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
        truncation_side: where rows are cut, "right" or "left".
        model_max_length: the most ids that the model is made for, if the files say so.
    """

    padding_side: str
    truncation_side: str
    model_max_length: int | None
    pad_token_id: int | None

    @abstractmethod
    def encode(
        self, text: str, *, add_special_tokens: bool = True, split_special_tokens: bool = False
    ) -> list[int]:
        """The ids of a text."""

    @abstractmethod
    def decode(
        self,
        ids: Any,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
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
        rows = [self._row(one, chosen) for one in _as_batch(text, text_pair)]
        return self._finished(rows, chosen, single=isinstance(text, str))

    def _row(self, texts: Sequence[str], chosen: CallOptions) -> dict[str, list[Any]]:
        """What was asked for of one text, or of a pair."""
        sequences = [self.encode(text, add_special_tokens=False) for text in texts]
        kept = self._kept([len(ids) for ids in sequences], chosen)
        sequences = [ids[part] for ids, part in zip(sequences, kept, strict=True)]
        if chosen.add_special_tokens:
            row = _with_mask(self.build_inputs_with_special_tokens(*sequences))
            types = self.create_token_type_ids_from_sequences(*sequences)
            special = self.get_special_tokens_mask(*sequences)  # type: ignore[arg-type]
        else:
            row = _with_mask(list(chain(*sequences)))
            types = [number for number, ids in enumerate(sequences) for _ in ids]
            special = [0] * len(types)
        if chosen.return_token_type_ids:
            row["token_type_ids"] = types
        if chosen.return_special_tokens_mask:
            row["special_tokens_mask"] = special
        if chosen.return_offsets_mapping:
            row["offset_mapping"] = self._offsets(texts, kept, special)
        return row

    def _kept(self, lengths: list[int], chosen: CallOptions) -> list[slice]:
        """The part of each sequence that truncation leaves."""
        limit = self.model_max_length if chosen.max_length is None else chosen.max_length
        if not chosen.truncates or limit is None:
            return [slice(None) for _ in lengths]
        around = 0
        if chosen.add_special_tokens:
            around = len(self.build_inputs_with_special_tokens(*([] for _ in lengths)))
        if around > limit:
            raise RequestError(f"max_length must be at least {around} here, got {limit}")
        kept = kept_lengths(lengths, limit - around, chosen.truncation)
        if self.truncation_side == "right":
            return [slice(count) for count in kept]
        return [slice(whole - count, whole) for whole, count in zip(lengths, kept, strict=True)]

    def _offsets(
        self, texts: Sequence[str], kept: Sequence[slice], special: Sequence[int]
    ) -> list[tuple[int, int]]:
        placed = (place_tokens(self, text) for text in texts)  # type: ignore[arg-type]
        parts = (tokens[part] for tokens, part in zip(placed, kept, strict=True))
        places = ((token.start, token.end) for token in chain(*parts))
        return [(0, 0) if flag else next(places) for flag in special]

    def _finished(
        self, rows: Sequence[dict[str, list[Any]]], chosen: CallOptions, single: bool
    ) -> BatchEncoding:
        """The rows padded, as tensors, or as the lists of a single row."""
        length = self._padded_length([len(row["input_ids"]) for row in rows], chosen)
        fillers = FILLERS | {"input_ids": self.pad_token_id}
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

    def _padded_length(self, lengths: Sequence[int], chosen: CallOptions) -> int:
        length: int | None = max(lengths, default=0)
        if chosen.padding == "max_length":
            length = self.model_max_length if chosen.max_length is None else chosen.max_length
        if length is None:
            raise RequestError("max_length is needed: the tokenizer has no model_max_length")
        multiple = chosen.pad_to_multiple_of or 1
        return -(-length // multiple) * multiple

    def batch_decode(self, sequences: Any, **options: Any) -> list[str]:
        """The text of each row of ids, lists or a tensor (B, T); options and errors as `decode`."""
        return [self.decode(ids, **options) for ids in sequences]

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
            options: `padding`, `max_length`, `pad_to_multiple_of`, `padding_side`,
                `return_tensors` and `return_attention_mask`, as of a call.

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


def _with_mask(ids: list[int]) -> dict[str, list[Any]]:
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}


def _as_batch(
    text: str | Sequence[str], text_pair: str | Sequence[str] | None
) -> list[tuple[str, ...]]:
    """The text or the pair of each row."""
    texts = _as_texts("text", text)
    if text_pair is None:
        return [(one,) for one in texts]
    pairs = _as_texts("text_pair", text_pair)
    if len(texts) != len(pairs):
        raise RequestError(f"text_pair must have a text for each of {len(texts)}, got {len(pairs)}")
    return list(zip(texts, pairs, strict=True))


def _as_texts(name: str, value: str | Sequence[str]) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    listed = isinstance(texts, list | tuple)
    if not (listed and texts and all(isinstance(text, str) for text in texts)):
        shown = printable(repr(value))
        raise RequestError(f"{name} must be a string or a list of strings, got {shown}")
    return list(texts)


def _fill(ids: list[Any], filler: Any, length: int, chosen: CallOptions) -> list[int]:
    if filler is None:
        hint = "tokenizer.pad_token = tokenizer.eos_token"
        raise RequestError("padding needs a pad_token, and the tokenizer has none", hint=hint)
    padding = [filler] * (length - len(ids))
    return padding + ids if chosen.padding_side == "left" else ids + padding
