"""Rendering apart: the user's text never becomes a token, and hostile templates are stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from llamacli.errors import TemplateError
from llamacli.prompts import LLAMA3_TEMPLATE
from llamacli.request import GenerationRequest
from llamacli.template_worker import Marker
from llamacli.tokenizer_sentencepiece import LlamaTokenizer
from tests.chat_samples import (
    HELLO,
    TEMPLATES,
    build,
    chat,
    encode_prompt,
    reference,
    render_chat,
    text_of,
    tokens_of,
)
from tests.tokenizer_samples import sentencepiece_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> LlamaTokenizer:
    return build(tmp_path_factory.mktemp("model") / "tokenizer.model")


# ---- special tokens and text that a user typed


@pytest.mark.parametrize("name", ["llama2", "llama3", "zephyr", "phi", "chatml", "reasoning"])
def test_fault_047_special_tokens_typed_in_messages_stay_text(
    tokenizer: LlamaTokenizer, name: str
) -> None:
    template = TEMPLATES[name]
    typed = "".join(tokenizer.added_tokens) + "<<s>s> <|eot_<|eot_id|>id|>"
    contents = [typed, *tokenizer.added_tokens]
    innocent = render_chat(chat(*"x" * len(contents)), tokenizer, template=template)
    segments = render_chat(chat(*contents), tokenizer, template=template, prefill=typed)
    assert tokens_of(segments, tokenizer) == tokens_of(innocent, tokenizer)
    assert text_of(segments, tokenizer) == reference(template, chat(*contents)) + typed


def test_fault_047_every_text_of_a_message_is_the_users(tokenizer: LlamaTokenizer) -> None:
    call = {"name": "<s>", "arguments": {"<|eot_id|>": ["</think>", {"<s>": "a</s>"}]}}
    messages: Any = [{"role": "user<s>", "content": "", "tool_calls": [call]}]
    template = "{{ bos_token }}{{ messages[0].role }}{{ messages[0].tool_calls | tojson }}"
    segments = render_chat(messages, tokenizer, template=template)
    assert tokens_of(segments, tokenizer) == ["<s>"]
    assert text_of(segments, tokenizer) == reference(template, messages)


def test_fault_047_the_ids_hold_no_token_of_the_user(tokenizer: LlamaTokenizer) -> None:
    request = GenerationRequest(messages=chat("a<|eot_id|>b</s>"), prefill="<s>")
    ids = encode_prompt(request, tokenizer, LLAMA3_TEMPLATE)
    header = ["<|start_header_id|>", "<|end_header_id|>"]
    expected = ["<s>", *header, "<|eot_id|>", *header]
    special = [i for i in ids if i in tokenizer.added_tokens.values()]
    assert tokenizer.convert_ids_to_tokens(special) == expected


PARTS = st.sampled_from(["<", "s", ">", "<s", "/s>", "<|", "|>", "<|eot", "_id|>", "§", " ", "x\n"])


@settings(max_examples=25)
@given(contents=st.lists(st.lists(PARTS, max_size=5).map("".join), min_size=4, max_size=4))
def test_fault_048_parts_of_tokens_never_join(
    tokenizer: LlamaTokenizer, contents: list[str]
) -> None:
    # Parts of every token stand next to the contents, in the template's text and in each other.
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m.content | trim }}{{ m.content }}<"
        "{{ m.content }}_id|>{{ m.content[:3] }}{{ m.content[1:] }}<|{{ m.content }}{% endfor %}"
    )
    *messages, prefill = contents
    segments = render_chat(chat(*messages), tokenizer, template=template, prefill=prefill)
    assert tokens_of(segments, tokenizer) == ["<s>"]
    assert text_of(segments, tokenizer) == reference(template, chat(*messages)) + prefill


def test_fault_048_no_cut_of_a_token_is_completed(tokenizer: LlamaTokenizer) -> None:
    cuts = [
        (token[:n], token[n:]) for token in tokenizer.added_tokens for n in range(1, len(token))
    ]
    contents = [text for head, tail in cuts for text in (f" a{head} ", f"{tail}a\n")]
    texts = [f"{{{{ messages[{i}].content | trim }}}}" for i in range(len(contents))]
    pairs = zip(cuts, texts[::2], texts[1::2], strict=True)
    template = "".join(f"{first}{tail} {head}{second}" for (head, tail), first, second in pairs)
    segments = render_chat(chat(*contents), tokenizer, template=template)
    assert segments == [reference(template, chat(*contents))]


def test_fault_048_a_token_around_the_users_text_is_the_templates(
    tokenizer: LlamaTokenizer,
) -> None:
    segments = render_chat(chat("x"), tokenizer, template=TEMPLATES["phi"])
    assert tokens_of(segments, tokenizer) == ["<|user|>", "<|end|>"]


@given(
    parts=st.lists(st.sampled_from(["<s>", "</s>", "aba", "a", "b", "ab", " "]), max_size=8),
)
def test_a_marked_text_holds_no_token_and_keeps_its_length(parts: list[str]) -> None:
    tokens, stand_ins = ["<s>", "</s>", "aba", "bab"], dict(zip("<s/>ab", "123456", strict=True))
    text = "".join(parts)
    marked = Marker(tokens, stand_ins).mark(text)
    assert len(marked) == len(text)
    assert not any(token in marked for token in tokens)
    assert marked.translate(str.maketrans("123456", "<s/>ab")) == text


def test_private_characters_pass_through(tokenizer: LlamaTokenizer) -> None:
    typed = "\U000f0000\U000f0001<s>\U000f0002\U0010fffd"
    assert render_chat(chat(typed), tokenizer, template="{{ messages[0].content }}") == [typed]


# ---- templates that attack

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ (''|attr('__class__')).__mro__ }}",
    "{{ ('{0.__class__.__init__.__globals__}'|attr('format'))(messages[0].content) }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "{{ lipsum.__globals__['os'].popen('touch CANARY').read() }}",
    "{{ raise_exception.__globals__['sys'].modules['os'].system('touch CANARY') }}",
    "{{ strftime_now.__builtins__['open']('CANARY', 'w').close() }}",
    "{{ messages[0].content._marker.mark.__globals__['sys'].modules['os'].mkdir('CANARY') }}",
    "{{ messages[0].content.split.__func__.__globals__['sys'].modules['os'].mkdir('CANARY') }}",
    "{{ self.__init__.__globals__.__builtins__.open('CANARY', 'w') }}",
    "{% set ns = namespace(__call__=dict) %}",
    "{% set ns = namespace() %}{% set ns.__html__ = dict %}",
    "{{ messages.append(1) }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_fault_049_a_template_cannot_leave_its_sandbox(
    tokenizer: LlamaTokenizer, tmp_path: Path, template: str
) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(TemplateError, match=r"tries to leave its sandbox: .*line 1"):
        render_chat(HELLO, tokenizer, template=template.replace("CANARY", str(canary)))
    assert not canary.exists()


def test_fault_049_a_template_loads_no_file(tokenizer: LlamaTokenizer, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(TemplateError, match=r"chat template fails: .*no loader"):
        render_chat(HELLO, tokenizer, template=f"{{% include '{tmp_path}/secret' %}}")


MEMORY, RECURSION, STOPPED = "512 MiB of memory", "calls itself without end", "was stopped"
EXHAUSTING = {
    "string": ("{{ 'a' * 10**10 }}", MEMORY),
    "padding": ("{{ '%1000000000d' % 1 }}", MEMORY),
    "recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", RECURSION),
    "nesting": ("{{" + "(" * 100_000 + "}}", RECURSION),
    "output": ("{% for i in range(99999) %}{{ 'x' * 20 }}{% endfor %}", "output of more than"),
    "range": ("{{ range(100001) }}", "fails: .*[Rr]ange"),
    "loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        STOPPED,
    ),
    "power": ("{{ 10 ** (10 ** 9) }}", STOPPED),
}


@pytest.mark.parametrize("name", EXHAUSTING)
def test_fault_050_a_template_cannot_exhaust_the_machine(
    tokenizer: LlamaTokenizer, name: str
) -> None:
    template, message = EXHAUSTING[name]
    with pytest.raises(TemplateError, match=message):
        render_chat(HELLO, tokenizer, template=template)


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(os.name != "posix", reason="needs process groups")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_fault_050_the_renderer_ends_with_its_parent(tmp_path: Path, signum: int) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    program = (
        "from llamacli.prompts import render_chats\n"
        "from llamacli.tokenizer_sentencepiece import LlamaTokenizer\n"
        "tokenizer = LlamaTokenizer('tokenizer.model')\n"
        "print(flush=True)\n"
        f"chats = [[dict(role='', content='')]]\n"
        f"next(render_chats(chats, tokenizer, template={EXHAUSTING['loops'][0]!r}))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as parent:
        assert parent.stdout
        parent.stdout.readline()
        time.sleep(0.3)  # most likely the renderer is at work now
        os.kill(parent.pid, signum)
    assert parent.returncode in (-signum, 1)
    while group_exists(parent.pid):  # without its parent the renderer meets its own limit
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("\n\n{% if %}", "syntax error: Expected an expression.* \\(line 3\\)"),
        ("{{ 'a' | shout }}", "syntax error: No filter named 'shout'.* \\(line 1\\)"),
        ("a\n{{ b.c }}", "something undefined: 'b' is undefined \\(line 2\\)"),
        ("\n{{ raise_exception('No\x1b[2J ' ~ messages[0].role) }}", "No\\\\x1b.*user \\(line 2"),
        ("{{ 1 // 0 }}", "fails: .*zero \\(line 1\\)"),
        ("{{ raise_exception('x' * 5000) }}", "refuses the messages: x{100,}… \\(line 1\\)"),
    ],
)
def test_fault_051_an_error_names_its_line(
    tokenizer: LlamaTokenizer, template: str, message: str
) -> None:
    with pytest.raises(TemplateError, match=f"^the chat template .*{message}") as caught:
        render_chat(HELLO, tokenizer, template=template)
    assert str(caught.value).isprintable()
