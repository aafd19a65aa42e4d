"""token-classification: a label for each token, or for the words and names that they make."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import Any

import torch
from torch import Tensor

from llamacli.errors import RequestError, check_choice
from llamacli.heads import LlamaForTokenClassification
from llamacli.pipelines.base import Pipeline, PipelineOptions, as_text, windows
from llamacli.tokenizer_offsets import PlacedToken, place_tokens

STRATEGIES = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityOptions(PipelineOptions):
    """What a call takes.

    Attributes:
        aggregation_strategy: "none" labels each token; "simple" joins neighbors of one label, after
            B- and I-; "first", "average" and "max" before that give each word (the tokens between
            blanks) the label of its first token, of the mean probabilities, or of the token that
            is most certain.
        ignore_labels: these are left out of the result.
        stride: read a long text in windows that share so many tokens with their neighbors, and
            keep the longer one of two entities that overlap. A window has the tokenizer's
            `model_max_length` at most. By default a text that is too long is an error.
        batch_size: texts, or windows, at once.

    Raises:
        RequestError: an unknown strategy, or a stride without one.
    """

    aggregation_strategy: str = "none"
    ignore_labels: Sequence[str] = ("O",)
    stride: int | None = None

    def __post_init__(self) -> None:
        PipelineOptions.__post_init__(self)
        check_choice("aggregation_strategy", self.aggregation_strategy, STRATEGIES)
        if self.stride is not None and self.aggregation_strategy == "none":
            raise RequestError("stride joins entities: it needs an aggregation_strategy")


@dataclass(slots=True)
class _Span:
    """Some tokens with one label.

    Attributes:
        ids: of the tokens.
        scores: (labels,) probabilities.
        index: of the first token in what the model sees.
        start, end: the first character, and the one after the last.
    """

    ids: list[int]
    scores: Tensor
    index: int
    start: int
    end: int
    label: str = field(default="")
    score: float = field(default=0.0)


class TokenClassificationPipeline(Pipeline):
    """Labels the tokens of a text."""

    task = "token-classification"
    opens = LlamaForTokenClassification

    def _chosen(self, options: dict[str, Any]) -> EntityOptions:
        return EntityOptions(**self.defaults | options)

    def __call__(self, inputs: Any, **options: Any) -> list[Any]:
        """Label the tokens of a text, or of each of several.

        Args:
            inputs: a string, or a list of strings.
            options: fields of `EntityOptions`.

        Returns:
            for each text a list of `{"entity", "score", "index", "word", "start", "end"}`, where
            `index` counts what the model sees, and start and end are characters of the text; or,
            joined, of `{"entity_group", "score", "word", "start", "end"}`.

        Raises:
            TypeError: an option that is not supported, by name.
            RequestError: a value that means nothing, or a text that is too long.
            TokenizerError: the tokens spell another text.
        """
        chosen = self._chosen(options)
        if isinstance(inputs, list | tuple):
            return self._entities(list(map(as_text, inputs)), chosen)
        return self._entities([as_text(inputs)], chosen)[0]

    def _entities(self, texts: Sequence[str], chosen: EntityOptions) -> list[list[dict[str, Any]]]:
        """The entities of each text."""
        parts = [self._windows(place_tokens(self.tokenizer, text), chosen) for text in texts]
        build = self.tokenizer.build_inputs_with_special_tokens
        sequences = [build([token.id for token in window]) for part in parts for window in part]
        outputs = self.outputs_for(sequences, chosen.batch_size)
        found = []
        for text, part in zip(texts, parts, strict=True):
            entities = [
                self._entities_of(self._spans(window, logits), text, chosen)
                for window, (logits,) in zip(part, outputs, strict=False)
            ]
            found.append(entities[0] if len(part) == 1 else _without_overlap(chain(*entities)))
        return found

    def _windows(
        self, tokens: Sequence[PlacedToken], chosen: EntityOptions
    ) -> list[Sequence[PlacedToken]]:
        if chosen.stride is None:
            return [tokens]
        context = self.model.config.context_length
        room = min(self.tokenizer.model_max_length or context, context)
        room -= len(self.tokenizer.build_inputs_with_special_tokens([]))
        if not 0 <= chosen.stride < room:
            raise RequestError(f"stride must be 0 or more, and below {room:,}, got {chosen.stride}")
        return windows(tokens, room, chosen.stride)

    def _entities_of(
        self, spans: list[_Span], text: str, chosen: EntityOptions
    ) -> list[dict[str, Any]]:
        strategy, ignored = chosen.aggregation_strategy, chosen.ignore_labels
        if strategy in ("first", "average", "max"):
            spans = [_joined(word, strategy) for word in _words(spans, text)]
        for span in spans:
            best = int(span.scores.argmax())
            span.label = (self.model.config.id2label or {})[best]
            span.score = float(span.scores[best])
        if strategy == "none":
            return [self._entity(span) for span in spans if span.label not in ignored]
        groups = [self._group(group) for group in _groups(spans)]
        return [group for group in groups if group["entity_group"] not in ignored]

    def _spans(self, placed: Sequence[PlacedToken], logits: Tensor) -> list[_Span]:
        """Each token, BOS and EOS left out."""
        scores = logits.float().softmax(dim=-1)  # (T, labels)
        mask = self.tokenizer.get_special_tokens_mask([token.id for token in placed])
        indices = [index for index, special in enumerate(mask) if not special]
        return [
            _Span([token.id], scores[index], index, token.start, token.end)
            for index, token in zip(indices, placed, strict=True)
            if token.id not in self.tokenizer.all_special_ids
        ]

    def _entity(self, span: _Span) -> dict[str, Any]:
        return {
            "entity": span.label,
            "score": span.score,
            "index": span.index,
            "word": self.tokenizer.id_to_token(span.ids[0]),
            "start": span.start,
            "end": span.end,
        }

    def _group(self, spans: Sequence[_Span]) -> dict[str, Any]:
        return {
            "entity_group": spans[0].label.split("-", 1)[-1],
            "score": sum(span.score for span in spans) / len(spans),
            "word": self.tokenizer.decode([i for span in spans for i in span.ids]),
            "start": spans[0].start,
            "end": spans[-1].end,
        }


def _words(spans: Sequence[_Span], text: str) -> list[list[_Span]]:
    """The tokens of each word: one begins where there is a blank."""
    words: list[list[_Span]] = []
    for span in spans:
        begins = not span.start or " " in text[span.start - 1 : span.start + 1]
        if begins or not words:
            words.append([])
        words[-1].append(span)
    return words


def _joined(word: Sequence[_Span], strategy: str) -> _Span:
    scores = word[0].scores
    if strategy == "average":
        scores = torch.stack([span.scores for span in word]).mean(dim=0)
    if strategy == "max":
        scores = max((span.scores for span in word), key=lambda scores: float(scores.max()))
    ids = [token_id for span in word for token_id in span.ids]
    return _Span(ids, scores, word[0].index, word[0].start, word[-1].end)


def _groups(spans: Sequence[_Span]) -> list[list[_Span]]:
    """Neighbors of one label; a label that begins with B- begins a group."""
    number, previous = 0, None

    def group_of(span: _Span) -> int:
        nonlocal number, previous
        begins, tag = span.label.startswith("B-"), span.label.removeprefix("B-").removeprefix("I-")
        number += begins or tag != previous
        previous = tag
        return number

    return [list(group) for _, group in groupby(spans, group_of)]


def _without_overlap(entities: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of entities that overlap the longest, and of these the one with the best score."""
    kept: list[dict[str, Any]] = []
    for entity in sorted(entities, key=lambda entity: int(entity["start"])):
        if not kept or entity["start"] >= kept[-1]["end"]:
            kept.append(entity)
        else:
            kept[-1] = max(kept[-1], entity, key=lambda e: (e["end"] - e["start"], e["score"]))
    return kept
