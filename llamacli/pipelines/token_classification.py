"""token-classification: a label for each token, or for the words and names that they make."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from llamacli.errors import check_choice
from llamacli.heads import LlamaForTokenClassification
from llamacli.pipelines.base import Pipeline, as_text
from llamacli.tokenizer_offsets import place_tokens

STRATEGIES = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityOptions:
    """What a call takes.

    Attributes:
        aggregation_strategy: "none" labels each token; "simple" joins neighbors of one label, after
            B- and I-; "first", "average" and "max" before that give each word (the tokens between
            blanks) the label of its first token, of the mean probabilities, or of the token that
            is most certain.
        ignore_labels: these are left out of the result.

    Raises:
        RequestError: an unknown strategy.
    """

    aggregation_strategy: str = "none"
    ignore_labels: Sequence[str] = ("O",)

    def __post_init__(self) -> None:
        check_choice("aggregation_strategy", self.aggregation_strategy, STRATEGIES)


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
            return [self._entities(as_text(text), chosen) for text in inputs]
        return self._entities(as_text(inputs), chosen)

    def _entities(self, text: str, chosen: EntityOptions) -> list[dict[str, Any]]:
        spans, strategy = self._spans(text), chosen.aggregation_strategy
        if strategy in ("first", "average", "max"):
            spans = [_joined(word, strategy) for word in _words(spans, text)]
        for span in spans:
            best = int(span.scores.argmax())
            span.label = (self.model.config.id2label or {})[best]
            span.score = float(span.scores[best])
        ignored = chosen.ignore_labels
        if strategy == "none":
            return [self._entity(span) for span in spans if span.label not in ignored]
        groups = [self._group(group) for group in _groups(spans)]
        return [group for group in groups if group["entity_group"] not in ignored]

    def _spans(self, text: str) -> list[_Span]:
        """Each token of the text, BOS and EOS left out."""
        placed = place_tokens(self.tokenizer, text)
        ids = [token.id for token in placed]
        logits = self.outputs_for(self.tokenizer.build_inputs_with_special_tokens(ids)).logits[0]
        scores = logits.float().softmax(dim=-1)  # (T, labels)
        mask = self.tokenizer.get_special_tokens_mask(ids)
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
