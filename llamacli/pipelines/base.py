"""What the pipelines of all tasks share: a model, its tokenizer, and options with defaults."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llamacli.errors import RequestError, printable
from llamacli.loading import PreTrainedModel
from llamacli.tokenizer import Tokenizer

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineOptions:
    """What a call of every pipeline takes.

    Attributes:
        batch_size: rows that the model reads at once, padded to one length.

    Raises:
        RequestError: it is below 1.
    """

    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise RequestError(f"batch_size must be 1 or more, got {self.batch_size}")


class Pipeline(ABC):
    """A model and its tokenizer, that do one task.

    Args:
        model: of the class `opens`.
        tokenizer: of the same model.
        defaults: options of the calls.

    Attributes:
        task: its name.
        opens: the class of the model.

    Raises:
        TypeError: an option that the task does not know, by name.
        RequestError: the model is of another class.
    """

    task: ClassVar[str]
    opens: ClassVar[type[PreTrainedModel]]

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, **defaults: Any) -> None:
        if not isinstance(model, self.opens):
            found, wanted = type(model).__name__, self.opens.__name__
            raise RequestError(f"{self.task} needs a {wanted}, got a {found}")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.defaults = defaults
        self._chosen({})

    @abstractmethod
    def _chosen(self, options: dict[str, Any]) -> Any:
        """The options of a call and the defaults together, checked."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def outputs_for(
        self, sequences: Sequence[Sequence[int]], batch_size: int
    ) -> Iterator[tuple[Tensor, ...]]:
        """What the model says of each sequence: its row of each tensor of the output.

        Raises:
            RequestError: one is empty, or longer than the model's context.
        """
        context = self.model.config.context_length
        for ids in sequences:
            if not 0 < len(ids) <= context:
                message = f"the text has {len(ids):,} tokens, the model takes 1 to {context:,}"
                raise RequestError(message)
        for batch in batches(sequences, batch_size):
            input_ids, mask = self.padded(batch, "right")
            with torch.inference_mode():
                outputs = self.model(input_ids, None if mask.all() else mask)
            yield from zip(*outputs.to_tuple(), strict=True)

    def padded(self, rows: Sequence[Sequence[int]], side: str) -> tuple[Tensor, Tensor]:
        """Ids and attention mask (B, T), int64, with padding on this side."""
        ids = [torch.tensor(row, device=self.device) for row in rows]
        pad = self.model.config.pad_token_id or 0
        mask = pad_sequence([torch.ones_like(row) for row in ids], True, 0, side)
        return pad_sequence(ids, True, pad, side), mask


def batches(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    """The items in order, so many at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


def windows(items: Sequence[ItemT], room: int, stride: int) -> list[Sequence[ItemT]]:
    """Cut into parts of at most `room` items, of which neighbors share `stride`."""
    starts = range(0, max(len(items) - stride, 1), room - stride)
    return [items[start : start + room] for start in starts]


def as_text(value: object) -> str:
    """A text that was given.

    Raises:
        RequestError: it is none.
    """
    if not isinstance(value, str):
        raise RequestError(f"a text must be a string, got {printable(repr(value))}")
    return value
