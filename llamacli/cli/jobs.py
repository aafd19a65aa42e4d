"""From prompts to jobs: chat template, special tokens, seeds, and room in the context."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamacli.cli.console import Terminal
from llamacli.cli.prompt_encoder import PromptEncoder
from llamacli.cli.prompt_sources import PromptRecord
from llamacli.context_window import Side
from llamacli.errors import LlamacliError, LocalIOError, NotFoundError, RequestError, printable
from llamacli.logit_bias import parse_biases
from llamacli.model_folder import ModelFolder
from llamacli.prompts import BUILTIN_TEMPLATES, choose_template
from llamacli.request import MAX_SEED, GenerationRequest, Message, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """How a prompt is dressed before the model sees it.

    Attributes:
        raw: the model continues the prompt as it is.
        template: a built-in template's name, or a file with one; None takes the model's own.
        system: the system message.
        prefill: the beginning of the answer.
        parse_special: special tokens typed in a raw prompt count as such.
        side: where a prompt that is too long may be cut; None refuses it.
    """

    raw: bool = False
    template: str | None = None
    system: str | None = None
    prefill: str = ""
    parse_special: bool = False
    side: Side | None = None


@dataclass(frozen=True, slots=True)
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
    options: PromptOptions,
    asked: Mapping[str, Any],
    *,
    logit_bias: Sequence[str],
    num_samples: int,
    seed: int,
    terminal: Terminal,
) -> list[Job]:
    """Every job, in order: the samples of a prompt stand together, each with the next seed."""
    template = _chat_template(options, folder)
    biases = parse_biases(logit_bias, folder.tokenizer)
    bias = {"logit_bias": biases.tokens, "sequence_bias": biases.sequences}
    encoder = PromptEncoder(
        folder=folder,
        template=template,
        parse_special=options.parse_special,
        side=options.side,
    )
    plans = []
    for record in records:
        with named(record):
            params, _ = folder.generation_config.resolve(**{**asked, **bias, **record.overrides})
            plans.append((record, params, _request(record, options, template)))
    encoded = encoder.encode(*(request for _, _, request in plans))
    jobs: list[Job] = []
    for (record, params, request), whole in zip(plans, encoded, strict=True):
        with named(record):
            prompt_ids = encoder.fit(request, whole, params.max_new_tokens)
        if len(prompt_ids) < len(whole):
            change = f"{len(whole):,} to {len(prompt_ids):,} tokens (--truncate {options.side})"
            terminal.note(f"{record.where or 'the prompt'} is cut from {change}")
        continues = request.prompt is not None or bool(request.prefill)
        for sample in range(num_samples):
            first = seed + len(jobs) if params.seed is None else params.seed + sample
            seeded = replace(params, seed=first % (MAX_SEED + 1))
            jobs.append(Job(record, sample, prompt_ids, continues, seeded))
    return jobs


@contextmanager
def named(record: PromptRecord) -> Iterator[None]:
    """Errors within it tell which of many records they are about."""
    try:
        yield
    except LlamacliError as problem:
        if not record.where:
            raise
        raise type(problem)(f"{record.where}: {problem}", hint=problem.hint) from problem


def _chat_template(options: PromptOptions, folder: ModelFolder) -> str | None:
    """The template's text; None for a model that continues prompts as they are."""
    if options.raw:
        return None
    explicit = options.template
    if explicit is not None and explicit not in BUILTIN_TEMPLATES:
        explicit = _read_template(Path(explicit))
    template = choose_template(folder.tokenizer, explicit)
    if template is None and (options.system or options.prefill):
        raise RequestError(
            "the model has no chat template, so it takes no --system and no --prefill",
            hint="name one with --chat-template llama2, llama3 or a file",
        )
    if template is not None and options.parse_special:
        raise RequestError(
            "--parse-special has no effect in a chat, and the model has a chat template",
            hint="add --raw to continue the prompt as it is",
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


def _request(
    record: PromptRecord, options: PromptOptions, template: str | None
) -> GenerationRequest:
    """A plain prompt becomes the user's message where the model has a chat template."""
    if record.messages is None and template is None:
        return GenerationRequest(prompt=record.prompt)
    if template is None:
        reason = "--raw" if options.raw else "the model has no chat template"
        raise RequestError(
            f"messages need a chat template ({reason})",
            hint="name one with --chat-template llama2, llama3 or a file",
        )
    turns = record.messages
    if turns is None:
        turns = [Message(role="user", content=record.prompt or "")]
    request = GenerationRequest(messages=turns, prefill=options.prefill)
    if options.system is None or any(turn["role"] == "system" for turn in turns):
        return request
    return replace(request, messages=[Message(role="system", content=options.system), *turns])
