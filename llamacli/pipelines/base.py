"""What the pipelines of all tasks share: a model, its tokenizer, and options with defaults."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from llamacli.errors import RequestError, printable
from llamacli.loading import PreTrainedModel
from llamacli.tokenizer import Tokenizer


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

    @torch.inference_mode()
    def outputs_for(self, token_ids: Sequence[int]) -> Any:
        """What the model says of one sequence.

        Raises:
            RequestError: it is empty, or longer than the model's context.
        """
        context = self.model.config.context_length
        if not 0 < len(token_ids) <= context:
            message = f"the text has {len(token_ids):,} tokens, the model takes 1 to {context:,}"
            raise RequestError(message)
        return self.model(torch.tensor([[*token_ids]], device=self.device))


def as_text(value: object) -> str:
    """A text that was given.

    Raises:
        RequestError: it is none.
    """
    if not isinstance(value, str):
        raise RequestError(f"a text must be a string, got {printable(repr(value))}")
    return value
