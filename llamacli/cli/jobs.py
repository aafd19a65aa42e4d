"""From prompts to jobs: chat template, special tokens, seeds, and room in the context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamacli.cli.console import Terminal
from llamacli.cli.prompt_sources import PromptRecord
from llamacli.context_window import Side, token_budget, truncate
from llamacli.errors import LocalIOError, NotFoundError, RequestError, printable
from llamacli.logit_bias import parse_biases
from llamacli.model_folder import ModelFolder
from llamacli.prompts import BUILTIN_TEMPLATES, choose_template, encode_prompt
from llamacli.request import MAX_SEED, GenerationRequest, Message, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How a prompt is dressed before the model sees it.

    Attributes:
        raw: the model continues the prompt as it is.
        template: a built-in template's name, or a file with one; None takes the model's own.
        system: the system message.
        prefill: the beginning of the answer.
        parse_special: special tokens typed in a raw prompt count as such.
    """

    raw: bool = False
    template: str | None = None
    system: str | None = None
    prefill: str = ""
    parse_special: bool = False

    def __post_init__(self) -> None:
        for name in ("template", "system", "prefill"):
            if self.raw and getattr(self, name):
                flag = "--chat-template" if name == "template" else f"--{name}"
                raise RequestError(f"--raw and {flag} contradict each other")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One text to generate.

    Attributes:
        prompt_ids: what the model sees.
        continues: the text continues the prompt; otherwise it is an answer.
    """

    record: PromptRecord
    sample: int
    prompt_ids: Sequence[int]
    continues: bool
    params: SamplingParams


def make_jobs(
    records: Sequence[PromptRecord],
    folder: ModelFolder,
    chat: ChatOptions,
    asked: Mapping[str, Any],
    *,
    logit_bias: Sequence[str],
    num_samples: int,
    seed: int,
    side: Side | None,
    terminal: Terminal,
) -> list[Job]:
    """Every job, in order: the samples of a prompt stand together, each with the next seed."""
    template = _chat_template(chat, folder)
    biases = parse_biases(logit_bias, folder.tokenizer)
    bias = {"logit_bias": biases.tokens, "sequence_bias": biases.sequences}
    jobs: list[Job] = []
    for record in records:
        params, _ = folder.generation_config.resolve(**{**asked, **bias, **record.overrides})
        request = _request(record, chat, template)
        prompt_ids = encode_prompt(
            request, folder.tokenizer, template, parse_special=chat.parse_special
        )
        prompt_ids = _fit(prompt_ids, folder, params, side, record, terminal)
        for sample in range(num_samples):
            first = seed + len(jobs) if params.seed is None else params.seed + sample
            jobs.append(
                Job(
                    record=record,
                    sample=sample,
                    prompt_ids=prompt_ids,
                    continues=request.prompt is not None or bool(request.prefill),
                    params=replace(params, seed=first % (MAX_SEED + 1)),
                )
            )
    return jobs


def _chat_template(chat: ChatOptions, folder: ModelFolder) -> str | None:
    """The template's text; None for a model that continues prompts as they are."""
    if chat.raw:
        return None
    explicit = chat.template
    if explicit is not None and explicit not in BUILTIN_TEMPLATES:
        explicit = _read_template(Path(explicit))
    template = choose_template(folder.tokenizer, explicit)
    if template is None and (chat.system or chat.prefill):
        raise RequestError(
            "the model has no chat template, so it takes no --system and no --prefill",
            hint="name one with --chat-template llama2, llama3 or a file",
        )
    return template


def _read_template(path: Path) -> str:
    names = ", ".join(BUILTIN_TEMPLATES)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no chat template {printable(path)}", hint=f"built in are {names}"
        ) from None
    except UnicodeDecodeError:
        raise RequestError(f"{printable(path)} is not UTF-8 text") from None
    except OSError as problem:
        raise LocalIOError(f"cannot read {printable(path)}: {problem.strerror}") from problem


def _request(record: PromptRecord, chat: ChatOptions, template: str | None) -> GenerationRequest:
    """A plain prompt becomes the user's message where the model has a chat template."""
    if template is None and record.messages is None:
        return GenerationRequest(prompt=record.prompt)
    messages: list[Message] = []
    if chat.system is not None:
        messages.append({"role": "system", "content": chat.system})
    if record.messages is not None:
        messages.extend(record.messages)
    else:
        messages.append({"role": "user", "content": record.prompt or ""})
    return GenerationRequest(messages=messages, prefill=chat.prefill)


def _fit(
    prompt_ids: list[int],
    folder: ModelFolder,
    params: SamplingParams,
    side: Side | None,
    record: PromptRecord,
    terminal: Terminal,
) -> list[int]:
    """The prompt, cut where the user allows it.

    Raises:
        RequestError: it fills the context, and may not be cut.
    """
    context = folder.config.context_length
    if side is not None and len(prompt_ids) >= context:
        cut = truncate(prompt_ids, context, params.max_new_tokens, side)
        change = f"{len(prompt_ids):,} to {len(cut):,} tokens"
        terminal.note(f"{record.where} is cut from {change} (--truncate {side})")
        return cut
    try:
        token_budget(context, len(prompt_ids), params.max_new_tokens)
    except RequestError as problem:
        hint = "shorten it, or cut it with --truncate left, right or middle"
        raise RequestError(f"{record.where}: {problem}", hint=hint) from None
    return prompt_ids
