"""question-answering: the part of a context that answers a question."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llamacli.errors import RequestError, printable
from llamacli.heads import LlamaForQuestionAnswering
from llamacli.pipelines.base import Pipeline, PipelineOptions, as_text, windows
from llamacli.tokenizer_offsets import PlacedToken, place_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions(PipelineOptions):
    """What a call takes.

    Attributes:
        top_k: answers, the best first.
        doc_stride: tokens that two neighboring windows of a long context share.
        max_answer_len: tokens of an answer at most.
        max_seq_len: tokens that the model sees at once, question included.
        batch_size: windows of a context at once.

    Raises:
        RequestError: a number below its range.
    """

    top_k: int = 1
    doc_stride: int = 128
    max_answer_len: int = 15
    max_seq_len: int = 384

    def __post_init__(self) -> None:
        PipelineOptions.__post_init__(self)
        for name, low in (("top_k", 1), ("doc_stride", 0), ("max_answer_len", 1)):
            if getattr(self, name) < low:
                raise RequestError(f"{name} must be {low} or more, got {getattr(self, name)}")


class QuestionAnsweringPipeline(Pipeline):
    """Finds answers in a context; a long one is read in windows that overlap."""

    task = "question-answering"
    opens = LlamaForQuestionAnswering

    def _chosen(self, options: dict[str, Any]) -> AnswerOptions:
        return AnswerOptions(**self.defaults | options)

    def __call__(
        self, inputs: Any = None, *, question: Any = None, context: Any = None, **options: Any
    ) -> Any:
        """Answer a question, or each of several.

        The score of an answer is the probability of its first token times that of its last one,
        both among the context's tokens in one window.

        Args:
            inputs: `{"question": …, "context": …}`, or a list of these.
            question, context: the same for one question, without a mapping.
            options: fields of `AnswerOptions`.

        Returns:
            `{"score", "start", "end", "answer"}`, where start and end are characters of the
            context; with `top_k` above 1 a list of these; of several questions a list.

        Raises:
            TypeError: an option that is not supported, by name.
            RequestError: no question, no context, or no room for the context beside the question.
            TokenizerError: the tokens spell another text.
        """
        chosen = self._chosen(options)
        if inputs is None:
            inputs = {"question": question, "context": context}
        if isinstance(inputs, list | tuple):
            return [self._answer(example, chosen) for example in inputs]
        return self._answer(inputs, chosen)

    def _answer(self, example: Any, chosen: AnswerOptions) -> Any:
        if not isinstance(example, Mapping) or set(example) != {"question", "context"}:
            shown = printable(repr(example))
            raise RequestError(f"an example must have a question and a context, got {shown}")
        question, context = as_text(example["question"]), as_text(example["context"])
        tokens = place_tokens(self.tokenizer, context)
        if not question.strip() or not tokens:
            raise RequestError("an example must have a question and a context, one is empty")
        limit = min(chosen.max_seq_len, self.model.config.context_length)
        chosen = replace(chosen, max_seq_len=limit)
        question_ids = self.tokenizer.encode(question, add_special_tokens=False)
        best: dict[tuple[int, int], float] = {}  # in the overlap of windows an answer occurs twice
        parts = self._windows(tokens, question_ids, chosen)
        pairs = [self._pair(window, question_ids) for window in parts]
        build = self.tokenizer.build_inputs_with_special_tokens
        outputs = self.outputs_for([build(*pair) for pair in pairs], chosen.batch_size)
        for window, pair, logits in zip(parts, pairs, outputs, strict=True):
            for score, start, end in self._spans(window, pair, logits, chosen):
                start = end - len(context[start:end].lstrip())  # a token has the blank before it
                best[start, end] = max(score, best.get((start, end), 0.0))
        ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))[: chosen.top_k]
        answers = [
            {"score": score, "start": start, "end": end, "answer": context[start:end]}
            for (start, end), score in ranked
        ]
        return answers[0] if chosen.top_k == 1 else answers

    def _windows(
        self, tokens: Sequence[PlacedToken], question_ids: list[int], chosen: AnswerOptions
    ) -> list[Sequence[PlacedToken]]:
        around = len(self.tokenizer.build_inputs_with_special_tokens(question_ids, []))
        room = chosen.max_seq_len - around
        stride = min(chosen.doc_stride, room // 2)
        if room < 1:
            message = f"the question takes {around:,} of {chosen.max_seq_len:,} tokens"
            raise RequestError(f"{message}: there is no room for the context")
        return windows(tokens, room, stride)

    @property
    def _question_first(self) -> bool:
        """As in transformers: the context comes last where padding would stand on the right."""
        return self.tokenizer.padding_side == "right"

    def _pair(self, window: Sequence[PlacedToken], question_ids: list[int]) -> list[list[int]]:
        """What the model sees: question and context, in their order."""
        pair = [question_ids, [token.id for token in window]]
        return pair if self._question_first else pair[::-1]

    def _spans(
        self,
        window: Sequence[PlacedToken],
        pair: list[list[int]],
        logits: tuple[Tensor, ...],
        chosen: AnswerOptions,
    ) -> Iterator[tuple[float, int, int]]:
        """(score, start, end) of the best spans in a window of the context."""
        mask = self.tokenizer.get_special_tokens_mask(*pair)  # type: ignore[arg-type]
        plain = [index for index, special in enumerate(mask) if not special]
        count = len(window)
        places = plain[-count:] if self._question_first else plain[:count]
        start, end = (values[places].float().softmax(dim=-1) for values in logits)  # (T,) each
        scores = torch.outer(start, end).triu().tril(chosen.max_answer_len - 1)  # (T, T)
        best = scores.flatten().topk(min(chosen.top_k, count))
        for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            first, last = window[index // count], window[index % count]
            yield score, first.start, last.end
