"""AutoConfig, AutoTokenizer, AutoModel…: the names by which `transformers` opens a model.

There is one architecture here, so each gives the class of Llama with that task.
"""

from typing import Any, ClassVar

import torch

from llamacli import hub
from llamacli.config import LlamaConfig
from llamacli.errors import RequestError
from llamacli.heads import (
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)
from llamacli.loading import ModelName, PreTrainedModel
from llamacli.model import LlamaForCausalLM, LlamaModel
from llamacli.model_folder import read_config
from llamacli.tokenizer import Tokenizer
from llamacli.tokenizer_fast import load_tokenizer


class AutoConfig:
    """Opens the config of a model."""

    @staticmethod
    def from_pretrained(model: ModelName, *, revision: str | None = None) -> LlamaConfig:
        """The config of a folder or hub name.

        Raises:
            LlamacliError: as `hub.resolve` and `read_config`.
        """
        return read_config(hub.resolve(model, revision=revision, weights=False).path)


class AutoTokenizer:
    """Opens the tokenizer of a model."""

    @staticmethod
    def from_pretrained(
        model: ModelName, *, revision: str | None = None, **settings: Any
    ) -> Tokenizer:
        """The tokenizer of a folder or hub name.

        Args:
            model: a folder or hub name.
            revision: branch, tag or commit of a hub model.
            settings: fields of `TokenizerConfig`, which overrule the files.

        Raises:
            TypeError: a setting that does not exist, by name.
            LlamacliError: as `hub.resolve` and `load_tokenizer`.
        """
        folder = hub.resolve(model, revision=revision, weights=False).path
        return load_tokenizer(folder, **settings)


class AutoModel:
    """Opens a model without a head. The classes below open those with one."""

    _opens: ClassVar[type[PreTrainedModel]] = LlamaModel

    @classmethod
    def from_pretrained(cls, model: ModelName, **options: Any) -> Any:
        """Read a model from a folder or the hub; options and errors as `open_model`."""
        return open_model(cls._opens, model, **options)


class AutoModelForCausalLM(AutoModel):
    """Opens a model that continues texts."""

    _opens = LlamaForCausalLM


class AutoModelForSequenceClassification(AutoModel):
    """Opens a model that gives each text a label."""

    _opens = LlamaForSequenceClassification


class AutoModelForTokenClassification(AutoModel):
    """Opens a model that gives each token a label."""

    _opens = LlamaForTokenClassification


class AutoModelForQuestionAnswering(AutoModel):
    """Opens a model that finds answers in a text."""

    _opens = LlamaForQuestionAnswering


def open_model(
    opens: type[PreTrainedModel],
    model: ModelName,
    *,
    torch_dtype: str | torch.dtype | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Read a model of this class from a folder or the hub.

    Args:
        opens: the class.
        model: a folder or hub name.
        torch_dtype: the old name of `dtype`.
        options: as `PreTrainedModel.from_pretrained`.

    Raises:
        TypeError: an option that is not supported, by name.
        RequestError: the same is said twice.
        LlamacliError: as `PreTrainedModel.from_pretrained`.
    """
    if torch_dtype is not None:
        if "dtype" in options:
            raise RequestError("dtype and torch_dtype mean the same: give one of them")
        options["dtype"] = torch_dtype
    return opens.from_pretrained(model, **options)
