"""question-answering: the part of a context that answers a question."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from llamacli.errors import RequestError, printable
from llamacli.heads import LlamaForQuestionAnswering
from llamacli.pipelines.base import Pipeline, as_text
from llamacli.tokenizer_offsets import PlacedToken, place_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """What a call takes.

    Attributes:
        top_k: answers, the best first.
        doc_stride: tokens that two neighboring windows of a long context share.
        max_answer_len: tokens of an answer at most.
        max_seq_len: tokens that the model sees at once, question included.

    Raises:
        RequestError: a number below its range.
    """

    top_k: int = 1
    doc_stride: int = 128
    max_answer_len: int = 15
    max_seq_len: int = 384

    def __post_init__(self) -> None:
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
        for window in self._windows(tokens, question_ids, chosen):
            for score, start, end in self._spans(window, question_ids, chosen):
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
    ) -> Iterator[Sequence[PlacedToken]]:
        around = len(self.tokenizer.build_inputs_with_special_tokens(question_ids, []))
        room = chosen.max_seq_len - around
        stride = min(chosen.doc_stride, room // 2)
        if room < 1:
            message = f"the question takes {around:,} of {chosen.max_seq_len:,} tokens"
            raise RequestError(f"{message}: there is no room for the context")
        for start in range(0, max(len(tokens) - stride, 1), room - stride):
            yield tokens[start : start + room]

    def _spans(
        self, window: Sequence[PlacedToken], question_ids: list[int], chosen: AnswerOptions
    ) -> Iterator[tuple[float, int, int]]:
        """(score, start, end) of the best spans in a window of the context."""
        ids = [token.id for token in window]
        # As in transformers: the context comes last where padding would stand on the right.
        question_first = self.tokenizer.padding_side == "right"
        pair = (question_ids, ids) if question_first else (ids, question_ids)
        outputs = self.outputs_for(self.tokenizer.build_inputs_with_special_tokens(*pair))
        mask = self.tokenizer.get_special_tokens_mask(*pair)
        plain = [index for index, special in enumerate(mask) if not special]
        places = plain[-len(ids) :] if question_first else plain[: len(ids)]
        start, end = (
            logits[0, places].float().softmax(dim=-1)  # (T,)
            for logits in (outputs.start_logits, outputs.end_logits)
        )
        scores = torch.outer(start, end).triu().tril(chosen.max_answer_len - 1)  # (T, T)
        best = scores.flatten().topk(min(chosen.top_k, len(ids)))
        for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            first, last = window[index // len(ids)], window[index % len(ids)]
            yield score, first.start, last.end
