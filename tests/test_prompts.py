"""Prompts: the text of transformers, the choice of a template, BOS once."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamacli.errors import RequestError, TemplateError
from llamacli.prompts import (
    BUILTIN_TEMPLATES,
    LLAMA2_TEMPLATE,
    LLAMA3_TEMPLATE,
    choose_template,
    default_template,
    render_chats,
)
from llamacli.request import GenerationRequest
from llamacli.tokenizer_sentencepiece import LlamaTokenizer
from tests.chat_samples import (
    HELLO,
    LONG,
    TEMPLATES,
    build,
    chat,
    encode_prompt,
    reference,
    render_chat,
    text_of,
)
from tests.tokenizer_samples import sentencepiece_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> LlamaTokenizer:
    return build(tmp_path_factory.mktemp("model") / "tokenizer.model")


@pytest.fixture(scope="module")
def base_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> LlamaTokenizer:
    """Without any token but those of the SentencePiece model."""
    path = tmp_path_factory.mktemp("base") / "tokenizer.model"
    path.write_bytes(sentencepiece_model())
    return LlamaTokenizer(path)


# ---- the text is that of transformers


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", [HELLO, LONG], ids=["hello", "long"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_that_of_transformers(
    tokenizer: LlamaTokenizer, name: str, messages: Any, add_generation_prompt: bool
) -> None:
    segments = render_chat(
        messages,
        tokenizer,
        template=TEMPLATES[name],
        add_generation_prompt=add_generation_prompt,
    )
    expected = reference(TEMPLATES[name], messages, add_generation_prompt=add_generation_prompt)
    assert text_of(segments, tokenizer) == expected


@pytest.mark.parametrize("messages", [HELLO, LONG], ids=["hello", "long"])
@pytest.mark.parametrize("builtin", BUILTIN_TEMPLATES)
def test_the_builtin_templates_are_the_published_ones(
    tokenizer: LlamaTokenizer, builtin: str, messages: Any
) -> None:
    ours = render_chat(messages, tokenizer, template=BUILTIN_TEMPLATES[builtin])
    assert ours == render_chat(messages, tokenizer, template=TEMPLATES[builtin])


def test_llama2_renders_by_hand(tokenizer: LlamaTokenizer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *chat("Hi ", "Yes?", "Bye")]
    assert render_chat(messages, tokenizer, template=LLAMA2_TEMPLATE) == [
        *(1, "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Yes? ", 2),
        *(1, "[INST] Bye [/INST]"),
    ]


@pytest.mark.parametrize(
    "roles", [["assistant"], ["user", "user"], ["system"], ["user", "system"], ["user", "tool"]]
)
def test_llama2_refuses_other_orders_of_roles(tokenizer: LlamaTokenizer, roles: list[str]) -> None:
    messages: Any = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(TemplateError, match=r"refuses the messages: .* must "):
        render_chat(messages, tokenizer, template=LLAMA2_TEMPLATE)


def test_the_date_and_unknown_keys_reach_the_template(tokenizer: LlamaTokenizer) -> None:
    messages: Any = [{"role": "user", "content": "x", "mood": {"now": ["<s>", 1.5, None]}}]
    template = "{{ date_string }} {{ messages[0].mood | tojson }}"
    assert render_chat(messages, tokenizer, template=template, date_string="26 Jul 2024") == [
        '26 Jul 2024 {"now": ["<s>", 1.5, null]}'
    ]


# ---- which template


def test_fault_052_a_model_without_template_has_a_default_or_an_error(
    tokenizer: LlamaTokenizer, base_tokenizer: LlamaTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    assert choose_template(base_tokenizer) is None
    assert not caplog.messages
    assert choose_template(tokenizer) == LLAMA3_TEMPLATE == default_template(tokenizer)
    assert "no chat template; using the format of Llama 3" in caplog.messages[0]
    with pytest.raises(TemplateError, match="no chat template") as caught:
        encode_prompt(GenerationRequest(messages=chat("x")), base_tokenizer, None)
    assert caught.value.hint
    assert "--raw" in caught.value.hint
    assert "--chat-template" in caught.value.hint


def test_the_explicit_template_comes_first_then_the_models_own(tmp_path: Path) -> None:
    tokenizer = build(tmp_path / "tokenizer.model", chat_template="own")
    assert choose_template(tokenizer) == "own"
    assert choose_template(tokenizer, "llama2") == LLAMA2_TEMPLATE
    assert choose_template(tokenizer, "{{ text }}") == "{{ text }}"


# ---- from a request to ids


@pytest.mark.parametrize("start", ["", "{{ bos_token }}", "<s>{{ bos_token }}"])
def test_bos_comes_exactly_once(tokenizer: LlamaTokenizer, start: str) -> None:
    request = GenerationRequest(messages=chat("Hello"))
    ids = encode_prompt(request, tokenizer, start + "[{{ messages[0].content }}]")
    assert ids[0] == 1
    assert ids.count(1) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "[Hello]"


def test_bos_between_turns_stays(tokenizer: LlamaTokenizer) -> None:
    request = GenerationRequest(messages=chat("a", "b", "c"))
    assert encode_prompt(request, tokenizer, LLAMA2_TEMPLATE).count(1) == 2


def test_a_tokenizer_that_adds_no_bos_gets_none(tmp_path: Path) -> None:
    tokenizer = build(tmp_path / "tokenizer.model", add_bos_token=False)
    assert 1 not in encode_prompt(GenerationRequest(prompt="Hello"), tokenizer, None)
    assert 1 not in encode_prompt(GenerationRequest(messages=chat("Hello")), tokenizer, "Hello")


def test_a_prompt_is_plain_text_with_bos(tokenizer: LlamaTokenizer) -> None:
    for prompt in ("", "Hello", "<s> Hello</s>", " <|eot_id|>"):
        ids = encode_prompt(GenerationRequest(prompt=prompt), tokenizer, LLAMA3_TEMPLATE)
        assert ids == tokenizer.encode(prompt, split_special_tokens=True)
        assert [i for i in ids if i in tokenizer.added_tokens.values()] == [1]


def test_parse_special_takes_tokens_typed_in_a_prompt(tokenizer: LlamaTokenizer) -> None:
    for prompt in ("Hello</s>", "<s>Hello</s>", "<s><s>Hello</s>"):
        request = GenerationRequest(prompt=prompt)
        ids = encode_prompt(request, tokenizer, None, parse_special=True)
        assert tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == ["<s>", "</s>"]
        assert ids.count(1) == 1


def test_a_prefill_begins_the_answer(tokenizer: LlamaTokenizer) -> None:
    opened = render_chat(chat("Hi"), tokenizer, template=LLAMA3_TEMPLATE)
    request = GenerationRequest(messages=chat("Hi"), prefill="Sure, ")
    ids = encode_prompt(request, tokenizer, LLAMA3_TEMPLATE)
    assert ids == tokenizer.encode_segments([*opened, "Sure, "])


WRONG: list[tuple[Any, str]] = [
    ([], "there are no messages"),
    (["Hello"], "messages\\[0\\] must be an object with the texts role and content, got 'Hello'"),
    ([*HELLO, {"role": "user"}], "messages\\[1\\] must be"),
    ([*HELLO, {"role": 1, "content": "x"}], "messages\\[1\\] must be"),
    ([{"role": "user", "content": ["x"]}], "messages\\[0\\] must be"),
    ([{"role": "user", "content": "x", "when": object()}], "messages\\[0\\] is not JSON"),
]


@pytest.mark.parametrize(("messages", "message"), WRONG)
def test_a_malformed_message_is_named_by_its_index(
    tokenizer: LlamaTokenizer, messages: Any, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        render_chat(messages, tokenizer, template=LLAMA3_TEMPLATE)


def test_the_parent_never_imports_jinja2() -> None:
    program = "import sys, llamacli.prompts; sys.exit('jinja2' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_many_chats_are_rendered_together_and_a_bad_one_is_named(
    tokenizer: LlamaTokenizer,
) -> None:
    template = "{{ bos_token }}{{ messages[0].content if messages[0].role == 'user' else 1 + '' }}"
    chats = [chat(f"number {n}") for n in range(230)]
    rendered = list(render_chats(chats, tokenizer, template=template))
    assert rendered == [[1, f"number {n}"] for n in range(230)]
    chats[209] = [{"role": "other", "content": ""}]
    with pytest.raises(TemplateError, match=r"in chat 210$"):
        list(render_chats(chats, tokenizer, template=template))
