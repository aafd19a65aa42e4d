"""What a request says → the ids of its prompt; chats go through the model's template.

A chat template is a program from the network, and its output mixes special tokens with text of the
user. So it is rendered by `template_worker.py` in a process of its own, and what comes back keeps
both apart: ids for the tokens that the template wrote, str for text.
"""

import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamacli.errors import RequestError, TemplateError, printable
from llamacli.request import GenerationRequest, Message, check_messages

if TYPE_CHECKING:
    from llamacli.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# The format of Llama 2's chat models, after `chat_completion` in meta-llama/llama.
LLAMA2_TEMPLATE = r"""{% if messages[0].role == "system" %}
    {% set system = "<<SYS>>\n" + messages[0].content + "\n<</SYS>>\n\n" %}
    {% set turns = messages[1:] %}
{% else %}
    {% set system = "" %}
    {% set turns = messages %}
{% endif %}
{% if not turns %}
    {{ raise_exception("A user message must follow the system message.") }}
{% endif %}
{% for message in turns %}
    {% if message.role != ("user", "assistant")[loop.index0 % 2] %}
        {{ raise_exception("Roles must alternate: an optional system, then user, assistant, …") }}
    {% endif %}
    {% if message.role == "user" %}
        {% set text = (system if loop.first else "") + message.content %}
        {{- bos_token + "[INST] " + text.strip() + " [/INST]" -}}
    {% else %}
        {{- " " + message.content.strip() + " " + eos_token -}}
    {% endif %}
{% endfor %}"""

# The format of Llama 3's instruct models, after `ChatFormat` in meta-llama/llama3.
LLAMA3_TEMPLATE = r"""{{- bos_token -}}
{% for message in messages %}
    {{- "<|start_header_id|>" + message.role + "<|end_header_id|>\n\n" -}}
    {{- message.content.strip() + "<|eot_id|>" -}}
{% endfor %}
{% if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\n\n" -}}
{% endif %}"""

BUILTIN_TEMPLATES = {"llama2": LLAMA2_TEMPLATE, "llama3": LLAMA3_TEMPLATE}

# Those that a tokenizer lacks stay undefined in the template, as in transformers.
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")

_WORKER = Path(__file__).with_name("template_worker.py")
# The worker limits its own CPU time. This is for a disk that is slow to give it its modules, and
# for systems without that limit.
_WORKER_SECONDS = 10
# A start costs as much as rendering a hundred chats; their CPU time is limited together.
_CHATS_PER_WORKER = 100
# What Python itself and strftime need; no token or password reaches the worker.
_WORKER_VARIABLES = ("LD_LIBRARY_PATH", "SYSTEMROOT", "TZ")
_STOPPED = "the chat template was stopped: it takes more time or memory than a template may"


def choose_template(tokenizer: "Tokenizer", explicit: str | None = None) -> str | None:
    """The chat template to use: the explicit one, else the model's own, else the default.

    Args:
        tokenizer: of the model.
        explicit: a name in BUILTIN_TEMPLATES, or the text of a template.
    """
    if explicit is not None:
        return BUILTIN_TEMPLATES.get(explicit, explicit)
    own = tokenizer.config.chat_template
    return own if own is not None else default_template(tokenizer)


def default_template(tokenizer: "Tokenizer") -> str | None:
    """The template for a model that brings none, as far as its added tokens tell.

    A chat model of Llama 2 looks like a base model, so there is none for it.
    """
    if not {"<|start_header_id|>", "<|eot_id|>"} <= tokenizer.added_tokens.keys():
        return None
    logger.warning("the model has no chat template; using the format of Llama 3")
    return LLAMA3_TEMPLATE


def encode_prompts(
    requests: Sequence[GenerationRequest],
    tokenizer: "Tokenizer",
    template: str | None,
    *,
    parse_special: bool = False,
) -> list[list[int]]:
    """The ids of each request's prompt, with BOS once if the tokenizer or the template puts one.

    Args:
        requests: prompts, or messages.
        tokenizer: of the model.
        template: the chat template for messages.
        parse_special: added tokens typed in the prompt are tokens, not text. Messages never
            hold any.

    Raises:
        RequestError: a message has the wrong form.
        TemplateError: there is no template for messages, or it fails.
    """
    chats = [request for request in requests if request.messages is not None]
    if chats and template is None:
        raise TemplateError(
            "the model has no chat template",
            hint="use --raw for plain text, or --chat-template llama2, llama3 or a file",
        )
    rendered = iter(
        render_chats(
            [request.messages or () for request in chats],
            tokenizer,
            template=template or "",
            prefills=[request.prefill for request in chats],
        )
    )

    def segments(request: GenerationRequest) -> Sequence[str | int]:
        if request.prompt is None:
            return next(rendered)
        return tokenizer.split(request.prompt) if parse_special else [request.prompt]

    return [_with_bos_once(segments(request), tokenizer) for request in requests]


def _with_bos_once(segments: Sequence[str | int], tokenizer: "Tokenizer") -> list[int]:
    ids = tokenizer.encode_segments(segments)
    if ids[:2] == [tokenizer.bos_token_id] * 2:
        ids = ids[1:]
    return tokenizer.with_bos_once(ids)


def render_chats(
    chats: Sequence[Sequence[Message]],
    tokenizer: "Tokenizer",
    *,
    template: str,
    prefills: Sequence[str] | None = None,
    add_generation_prompt: bool = True,
    date_string: str | None = None,
) -> Iterator[list[str | int]]:
    """Segments for `encode_segments`: text, and the ids of added tokens that the template wrote.

    Every added token begins and ends in the template's own text. What the user wrote never becomes
    one, whole or in parts, unless the template edits it (lower case, characters taken out). The
    text is the one that `apply_chat_template` of transformers renders.

    Args:
        chats: the messages of each. Keys besides role and content are passed to the template.
        tokenizer: its added tokens are looked for.
        template: jinja text.
        prefills: the beginning of the assistant's answer in each chat.
        add_generation_prompt: end with what opens the assistant's turn.
        date_string: the date that some templates show instead of today's.

    Raises:
        RequestError: a message has the wrong form.
        TemplateError: the template fails, or takes too long or too much memory.
    """
    special = {name: getattr(tokenizer, name) for name in _SPECIAL_TOKENS}
    variables = {"add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
    optional = special | {"date_string": date_string}
    common: dict[str, Any] = {
        "template": template,
        "variables": variables | {k: v for k, v in optional.items() if v is not None},
        "tokens": list(tokenizer.added_tokens),
    }
    jobs = [
        {"messages": _checked(messages), "prefill": prefill}
        for messages, prefill in zip(chats, prefills or [""] * len(chats), strict=True)
    ]
    for first in range(0, len(jobs), _CHATS_PER_WORKER):
        job = common | {"chats": jobs[first : first + _CHATS_PER_WORKER]}
        stand_ins = _stand_ins(job)
        originals = str.maketrans({stand_in: char for char, stand_in in stand_ins.items()})
        for text in _run_worker(job | {"stand_ins": stand_ins}, first):
            yield [
                segment.translate(originals) if isinstance(segment, str) else segment
                for segment in tokenizer.split(text)
            ]


def _checked(messages: Sequence[Message]) -> list[dict[str, object]]:
    """The messages as JSON objects, with role and content."""
    check_messages(messages)
    for index, message in enumerate(messages):
        try:
            json.dumps(message)
        except (TypeError, ValueError, RecursionError) as problem:
            raise RequestError(f"messages[{index}] is not JSON: {printable(problem)}") from problem
    return [dict(message) for message in messages]


def _stand_ins(job: Mapping[str, Any]) -> dict[str, str]:
    """For each character of the added tokens a private one that the job does not hold."""
    taken = set(json.dumps(job, ensure_ascii=False))
    free = (chr(code) for code in range(0xF0000, 0x110000) if chr(code) not in taken)
    return dict(zip(sorted(set("".join(job["tokens"]))), free, strict=False))


def _run_worker(job: Mapping[str, Any], first: int) -> list[str]:
    """Render in a child process, which never outlives this call; `first` numbers the chats."""
    specs = map(importlib.util.find_spec, ("jinja2", "markupsafe"))
    folders = [str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin]
    try:
        # Isolated, and without `site`: its start-up takes as long as the rendering.
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(_WORKER), *folders],
            input=json.dumps(job).encode(),
            capture_output=True,
            timeout=_WORKER_SECONDS,
            env={name: os.environ[name] for name in _WORKER_VARIABLES if name in os.environ},
            cwd=os.path.abspath(os.sep),
        )
    except subprocess.TimeoutExpired as problem:
        raise TemplateError(_STOPPED) from problem
    if done.returncode < 0:
        raise TemplateError(_STOPPED)
    if done.returncode > 0:
        last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise TemplateError(f"the chat template cannot be rendered: {printable(last_line)}")
    return _texts(json.loads(done.stdout), first)


def _texts(answer: Mapping[str, Any], first: int) -> list[str]:
    if "texts" in answer:
        return list(answer["texts"])
    parts = [f"the chat template {answer['problem']}", printable(answer["detail"])]
    where = f" (line {answer['line']})" if answer["line"] else ""
    chat = first + answer["chat"]
    which = f" in chat {chat + 1}" if chat else ""
    raise TemplateError(": ".join(filter(None, parts)) + where + which)
