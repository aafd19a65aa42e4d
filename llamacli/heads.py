"""Heads that classify: whole sequences, tokens, and where an answer begins and ends.

Each is one linear layer over the hidden states of a `LlamaModel`, with the names of the weights,
the pooling and the losses of `transformers`.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamacli.config import LlamaConfig
from llamacli.errors import RequestError
from llamacli.loading import PreTrainedModel
from llamacli.model import LlamaModel, initialize
from llamacli.outputs import ClassifierOutput, QuestionAnsweringOutput

IGNORED_LABEL = -100  # of a token that does not count in the loss, as in torch
NO_CACHE = {"use_cache": False}  # nothing follows what is classified


class LlamaForSequenceClassification(PreTrainedModel):
    """A label, or a number, for each whole sequence."""

    def __init__(self, config: LlamaConfig, *, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config, attn_implementation=attn_implementation)
        self.score = nn.Linear(config.hidden_size, len(config.id2label or ()), bias=False)
        initialize(self.score, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> ClassifierOutput:
        """(B, T) ids → logits (B, labels) at the right-most token that is not the padding token.

        Args:
            input_ids: padded on either side with `config.pad_token_id`; with `inputs_embeds` in
                their place the last token counts.
            attention_mask, inputs: as `LlamaModel.forward`.
            labels: (B,) int64 labels; numbers where there is one label only; or float (B, labels),
                0 or 1, where several can be true. `config.problem_type` decides, if it is set.

        Raises:
            RequestError: several sequences, and no padding token.
        """
        outputs = self.model(input_ids, attention_mask, **NO_CACHE | inputs)
        x = outputs.last_hidden_state
        last = -1 if input_ids is None else self._last_tokens(input_ids)
        logits = self.score(x[torch.arange(len(x), device=x.device), last])  # (B, labels)
        loss = None if labels is None else sequence_loss(logits, labels, self.config.problem_type)
        return ClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)

    def _last_tokens(self, input_ids: Tensor) -> Tensor:
        """(B,) indices; 0 for a row of padding alone."""
        batch, length = input_ids.shape
        pad = self.config.pad_token_id
        if pad is None and batch > 1:
            message = "several sequences are told from their padding by config.pad_token_id: set it"
            raise RequestError(message)
        is_token = torch.ones_like(input_ids) if pad is None else (input_ids != pad).long()
        return (torch.arange(length, device=input_ids.device) * is_token).argmax(dim=-1)


def sequence_loss(logits: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    """Mean squared error, cross-entropy or binary cross-entropy of logits (B, labels).

    Without a `problem_type` one label means a number, integers mean one label of many, and other
    labels mean that several can be true.
    """
    if problem_type is None:
        one_of_many = labels.dtype in (torch.int64, torch.int32)
        problem_type = "single_label_classification" if one_of_many else "multi"
        problem_type = "regression" if logits.shape[-1] == 1 else problem_type
    if problem_type == "regression":
        return F.mse_loss(logits, labels.view_as(logits))
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits, labels.flatten())
    return F.binary_cross_entropy_with_logits(logits, labels)


class LlamaForTokenClassification(PreTrainedModel):
    """A label for each token."""

    def __init__(self, config: LlamaConfig, *, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config, attn_implementation=attn_implementation)
        rate = 0.1 if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(rate)
        self.score = nn.Linear(config.hidden_size, len(config.id2label or ()))
        initialize(self.score, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> ClassifierOutput:
        """(B, T) ids → logits (B, T, labels).

        Args:
            input_ids, attention_mask, inputs: as `LlamaModel.forward`.
            labels: (B, T) int64; -100 where a token does not count in the mean cross-entropy.
        """
        outputs = self.model(input_ids, attention_mask, **NO_CACHE | inputs)
        logits = self.score(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            flat = logits.float().flatten(0, 1)  # (B · T, labels)
            loss = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED_LABEL)
        return ClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class LlamaForQuestionAnswering(PreTrainedModel):
    """Where in a text the answer to a question begins and ends."""

    base_model_prefix: ClassVar[str] = "transformer"

    def __init__(self, config: LlamaConfig, *, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.transformer = LlamaModel(config, attn_implementation=attn_implementation)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        initialize(self.qa_outputs, config.initializer_range)

    @property
    def model(self) -> LlamaModel:
        """`transformer`, by the name that it has under the other heads."""
        return self.transformer

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **inputs: Any,
    ) -> QuestionAnsweringOutput:
        """(B, T) ids → logits of each token to be the first, and to be the last of the answer.

        Args:
            input_ids, attention_mask, inputs: as `LlamaModel.forward`.
            start_positions, end_positions: (B,) int64; with both there is a loss, the mean
                cross-entropy of the two. A position beyond the sequence does not count.
        """
        outputs = self.transformer(input_ids, attention_mask, **NO_CACHE | inputs)
        logits = self.qa_outputs(outputs.last_hidden_state)
        start_logits, end_logits = logits.unbind(dim=-1)  # (B, T) each
        loss = None
        if start_positions is not None and end_positions is not None:
            start_loss = _position_loss(start_logits, start_positions)
            loss = (start_loss + _position_loss(end_logits, end_positions)) / 2
        return QuestionAnsweringOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
        )


def _position_loss(logits: Tensor, positions: Tensor) -> Tensor:
    """Cross-entropy over the T positions of (B, T)."""
    beyond = logits.shape[1]
    return F.cross_entropy(logits, positions.flatten().clamp(0, beyond), ignore_index=beyond)
