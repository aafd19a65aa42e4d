"""text-classification: a label and its probability for each text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llamacli.errors import RequestError, check_choice, printable
from llamacli.heads import LlamaForSequenceClassification
from llamacli.pipelines.base import Pipeline, PipelineOptions, as_text

FUNCTIONS = ("sigmoid", "softmax", "none")
_BEST = ""  # the default of top_k: the best label alone, not in a list of labels


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelOptions(PipelineOptions):
    """What a call takes.

    Attributes:
        top_k: how many labels, the best first; None is all. By default the best one alone.
        function_to_apply: to the logits: "softmax", "sigmoid" (where several labels can be true,
            or there is one) or "none" (regression); None asks the model's config.
        truncation, max_length: of the tokenizer.
        batch_size: texts at once.

    Raises:
        RequestError: a value that means nothing.
    """

    top_k: int | str | None = _BEST
    function_to_apply: str | None = None
    truncation: bool = False
    max_length: int | None = None

    def __post_init__(self) -> None:
        PipelineOptions.__post_init__(self)
        if self.function_to_apply is not None:
            check_choice("function_to_apply", self.function_to_apply, FUNCTIONS)
        is_count = isinstance(self.top_k, int) and self.top_k > 0
        if not is_count and self.top_k not in (None, _BEST):
            shown = printable(repr(self.top_k))
            raise RequestError(f"top_k must be 1 or more, or None for all, got {shown}")


class TextClassificationPipeline(Pipeline):
    """Gives each text a label."""

    task = "text-classification"
    opens = LlamaForSequenceClassification

    def _chosen(self, options: dict[str, Any]) -> LabelOptions:
        return LabelOptions(**self.defaults | options)

    def __call__(self, inputs: Any, **options: Any) -> list[Any]:
        """Classify a text, or each of several.

        Args:
            inputs: a string, `{"text": …, "text_pair": …}`, or a list of these.
            options: fields of `LabelOptions`.

        Returns:
            `{"label": …, "score": …}` of each text, in a list; with `top_k` a list of these for
            each text, which of one string stands alone.

        Raises:
            TypeError: an option that is not supported, by name.
            RequestError: a value that means nothing, or a text that is too long.
        """
        chosen = self._chosen(options)
        if isinstance(inputs, list | tuple):
            return self._labels(inputs, chosen)
        [labels] = self._labels([inputs], chosen)
        return [labels] if isinstance(labels, dict) and isinstance(inputs, str) else labels

    def _labels(self, texts: Sequence[Any], chosen: LabelOptions) -> list[Any]:
        """The label, or the labels, of each text."""
        encoded = [self._encode(text, chosen) for text in texts]
        names = self.model.config.id2label or {}
        found: list[Any] = []
        for (logits,) in self.outputs_for(encoded, chosen.batch_size):
            scores = self._scores(logits.float(), chosen.function_to_apply).tolist()
            labels = [{"label": names[index], "score": score} for index, score in enumerate(scores)]
            labels.sort(key=lambda label: -label["score"])
            found.append(labels[0] if isinstance(chosen.top_k, str) else labels[: chosen.top_k])
        return found

    def _encode(self, text: Any, chosen: LabelOptions) -> list[int]:
        texts = text if isinstance(text, Mapping) else {"text": as_text(text)}
        encoding = self.tokenizer(
            **texts, truncation=chosen.truncation, max_length=chosen.max_length
        )
        ids: list[int] = encoding.input_ids
        return ids

    def _scores(self, logits: Tensor, function: str | None) -> Tensor:
        config = self.model.config
        if function is None:
            several = config.problem_type == "multi_label_classification" or config.num_labels == 1
            function = "sigmoid" if several else "softmax"
            function = "none" if config.problem_type == "regression" else function
        if function == "softmax":
            return logits.softmax(dim=-1)
        return logits.sigmoid() if function == "sigmoid" else logits
