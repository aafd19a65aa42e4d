"""`pipeline`: the name of a task and of a model → a pipeline."""

import os
from typing import Any

from llamacli.auto import AutoTokenizer, open_model
from llamacli.errors import RequestError
from llamacli.loading import PreTrainedModel, choose
from llamacli.pipelines.base import Pipeline
from llamacli.pipelines.question_answering import QuestionAnsweringPipeline
from llamacli.pipelines.text_classification import TextClassificationPipeline
from llamacli.pipelines.text_generation import TextGenerationPipeline
from llamacli.pipelines.token_classification import TokenClassificationPipeline
from llamacli.tokenizer import Tokenizer

PIPELINES: dict[str, type[Pipeline]] = {
    "text-generation": TextGenerationPipeline,
    "text-classification": TextClassificationPipeline,
    "token-classification": TokenClassificationPipeline,
    "question-answering": QuestionAnsweringPipeline,
    "sentiment-analysis": TextClassificationPipeline,  # other names of the same
    "ner": TokenClassificationPipeline,
}

_LOADING = """
    dtype torch_dtype device_map max_memory offload_folder attn_implementation quantization_config
""".split()


def pipeline(
    task: str,
    model: str | os.PathLike[str] | PreTrainedModel,
    *,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    revision: str | None = None,
    device: object = None,
    **options: Any,
) -> Any:
    """A pipeline for a task: the class that `PIPELINES` names, whose call tells what it gives.

    Args:
        task: "text-generation", "text-classification", "token-classification" or
            "question-answering".
        model: a folder, a hub name, or a model that is already there.
        tokenizer: None takes that of the folder or hub name.
        revision: branch, tag or commit of a hub model.
        device: "cpu" or -1, 0 for the first GPU, "cuda:1", …; None takes the best there is.
        options: `dtype` or `torch_dtype`, `device_map`, `max_memory`, `offload_folder`,
            `attn_implementation` and `quantization_config` of the model; the others are defaults
            of the calls.

    Raises:
        TypeError: an option that is not supported, by name.
        RequestError: an unknown task, or a model that does another one.
        LlamacliError: as `open_model` and `AutoTokenizer.from_pretrained`.
    """
    opened = choose("task", task, PIPELINES)
    loading = {name: options.pop(name) for name in _LOADING if name in options}
    if device is not None:
        loading["device"] = device
    if revision is not None:
        loading["revision"] = revision
    if tokenizer is None and not isinstance(model, PreTrainedModel):
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
    elif isinstance(tokenizer, str | os.PathLike):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    if not isinstance(tokenizer, Tokenizer):
        raise RequestError("a model that is already there needs its tokenizer")
    if not isinstance(model, PreTrainedModel):
        model = open_model(opened.opens, model, **loading)
    elif loading:
        raise RequestError(f"{', '.join(loading)}: the model is already there, and stays as it is")
    return opened(model, tokenizer, **options)
