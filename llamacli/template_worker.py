"""Renders a chat template in a process of its own: a job as JSON on stdin, an answer on stdout.

A template comes from the network, so it runs in jinja2's sandbox, and in a process that holds no
secrets and whose time and memory are limited. `prompts.py` starts this file by its path; it imports
nothing of llamacli, and finds jinja2 in the folders of its arguments.

Job: template, chats (each with messages and prefill), variables, tokens (texts of the added tokens)
and stand_ins (for every character of the tokens, a character that occurs nowhere else).
Answer: {"texts"}, one for each chat, or {"problem", "detail", "line", "chat"}.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

if __name__ == "__main__":
    sys.path.extend(sys.argv[1:])

import jinja2
import jinja2.ext
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 2
MEMORY_BYTES = 512 * 2**20
OUTPUT_CHARACTERS = 1_000_000  # on top of the job's own length


class Marker:
    """Marks added tokens in what the user wrote, so that they are not taken for the template's.

    A mark is a stand-in in place of one character: lengths and the blanks around a text stay as
    they are, and a marked token stays harmless however the template cuts the text.
    """

    def __init__(self, tokens: Sequence[str], stand_ins: Mapping[str, str]) -> None:
        self._tokens = tokens
        self._stand_ins = stand_ins
        self._heads = tuple({token[:n] for token in tokens for n in range(1, len(token))})
        self._tails = tuple({token[n:] for token in tokens for n in range(1, len(token))})

    def mark_tokens(self, text: str) -> str:
        """Break every whole token."""
        for token in self._tokens:
            while token in text:  # once more for a token that overlaps itself
                text = text.replace(token, self._stand_ins[token[0]] + token[1:])
        return text

    def mark(self, text: str) -> str:
        """Break every whole token, and the part of one at an end, which a neighbor could complete.

        The ends are those without blanks, since templates trim.
        """
        text = self.mark_tokens(text)
        if text.rstrip().endswith(self._heads):
            text = self._replace(text, len(text.rstrip()) - 1)
        if text.lstrip().startswith(self._tails):
            text = self._replace(text, len(text) - len(text.lstrip()))
        return text

    def _replace(self, text: str, index: int) -> str:
        return text[:index] + self._stand_ins[text[index]] + text[index + 1 :]


class UserText(str):
    """Marked text, in which a template finds a token that it looks for, as if it were unmarked.

    Templates of reasoning models cut `</think>` and what stands before it from earlier answers.
    """

    _marker: Marker


def _marking_first_argument(name: str) -> Callable[..., Any]:
    method = getattr(str, name)

    def call(self: UserText, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], str):
            args = (self._marker.mark_tokens(args[0]), *args[1:])
        return _user_text(method(self, *args, **kwargs), self._marker)

    return call


for _name in (
    *("__contains__", "__getitem__", "count", "find", "index", "startswith", "endswith", "replace"),
    *("split", "rsplit", "partition", "rpartition", "strip", "lstrip", "rstrip"),
    *("removeprefix", "removesuffix"),
):
    setattr(UserText, _name, _marking_first_argument(_name))


def _user_text(value: Any, marker: Marker) -> Any:
    """The value with its texts, which are marked already, as UserText."""
    if isinstance(value, str):
        text = UserText(value)
        text._marker = marker
        return text
    if isinstance(value, list | tuple):
        return type(value)(_user_text(item, marker) for item in value)
    return value


def _marked(value: Any, marker: Marker) -> Any:
    """The value with all texts in it marked."""
    if isinstance(value, str):
        return _user_text(marker.mark(value), marker)
    if isinstance(value, list):
        return [_marked(item, marker) for item in value]
    if isinstance(value, dict):
        return {_marked(key, marker): _marked(item, marker) for key, item in value.items()}
    return value


class Refusal(jinja2.TemplateError):
    """The template called raise_exception."""


class ChatError(Exception):
    """Rendering failed at the chat with this index; the cause says why."""


class Namespace(jinja2.utils.Namespace):
    """jinja2's namespace without the names that Python itself looks up, a way out of the sandbox.

    The same restriction as in transformers.utils.chat_template_utils.
    """

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may call an attribute "self"
        self, values = args[0], dict(*args[1:], **kwargs)
        jinja2.utils.Namespace.__init__(self)
        for name, value in values.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"namespace attribute {name!r}")
        super().__setitem__(name, value)


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` … `{% endgeneration %}` marks answers for training: no effect here."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Keep the body, in a scope of its own as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _raise_exception(message: str) -> None:
    raise Refusal(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def environment() -> ImmutableSandboxedEnvironment:
    """The sandbox with the conventions of transformers' apply_chat_template."""
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    sandbox.filters["tojson"] = _to_json
    sandbox.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "namespace": Namespace,
    }
    return sandbox


def render(job: dict[str, Any], *, limit: int) -> list[str]:
    """The rendered chats, at most `limit` characters each; what the user wrote is marked.

    Raises:
        ChatError: a chat cannot be rendered.
    """
    marker = Marker(job["tokens"], job["stand_ins"])
    template = environment().from_string(job["template"])
    texts = []
    for index, chat in enumerate(job["chats"]):
        messages = [
            {key: _marked(value, marker) for key, value in message.items()}
            for message in chat["messages"]
        ]
        try:
            text = _render_one(template, messages, job["variables"], limit)
        except Exception as error:
            raise ChatError(index) from error
        texts.append(text + marker.mark(chat["prefill"]))
    return texts


def _render_one(
    template: jinja2.Template, messages: list[Any], variables: dict[str, Any], limit: int
) -> str:
    pieces, length = [], 0
    for piece in template.generate(messages=messages, **variables):
        length += len(piece)
        if length > limit:
            raise jinja2.TemplateRuntimeError(f"output of more than {limit} characters")
        pieces.append(piece)
    return "".join(pieces)


def explain(error: BaseException) -> dict[str, Any]:
    """What went wrong in plain words, in which line of the template, and with which chat."""
    if isinstance(error, ChatError) and error.__cause__ is not None:
        return explain(error.__cause__) | {"chat": error.args[0]}
    problems = {
        jinja2.TemplateSyntaxError: "has a syntax error",
        SecurityError: "tries to leave its sandbox",
        jinja2.UndefinedError: "uses something undefined",
        Refusal: "refuses the messages",
        MemoryError: f"needs more than {MEMORY_BYTES // 2**20} MiB of memory",
        RecursionError: "calls itself without end",
    }
    problem = next((text for kind, text in problems.items() if isinstance(error, kind)), "fails")
    return {"problem": problem, "detail": str(error), "line": _template_line(error), "chat": 0}


def _template_line(error: BaseException) -> int | None:
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno
    line = None
    frame = error.__traceback__
    while frame:  # jinja2 rewrites tracebacks to the lines of the template
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return line


def _limit_resources() -> None:
    if sys.platform == "win32":
        return  # the caller's time limit alone holds
    import contextlib
    import resource

    limits = {
        resource.RLIMIT_CPU: (CPU_SECONDS, CPU_SECONDS + 1),
        resource.RLIMIT_AS: (MEMORY_BYTES, MEMORY_BYTES),
        resource.RLIMIT_CORE: (0, 0),
    }
    for limit, values in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a stricter limit holds already
            resource.setrlimit(limit, values)


def main() -> None:
    """Answer the job on stdin."""
    _limit_resources()
    job = sys.stdin.read()
    try:
        answer: dict[str, Any] = {
            "texts": render(json.loads(job), limit=OUTPUT_CHARACTERS + len(job))
        }
    except Exception as error:
        answer = explain(error)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
