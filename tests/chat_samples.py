"""Chat templates as they are published, chats, and a small tokenizer with their tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from llamacli.prompts import encode_prompts, render_chats
from llamacli.request import GenerationRequest, Message
from llamacli.tokenizer import Tokenizer
from llamacli.tokenizer_added import AddedToken
from llamacli.tokenizer_config import TokenizerConfig
from llamacli.tokenizer_sentencepiece import LlamaTokenizer
from tests.tokenizer_samples import sentencepiece_model

# Templates as they are published, or in the words of published ones.
LLAMA2_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
LLAMA3_INSTRUCT = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
PHI = (  # builds its tokens from the role
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content']"
    " + '<|end|>\\n' }}{% endfor %}"
)
CHATML = """{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {% generation %}{{ message.content }}{% endgeneration %}
    {{- '<|im_end|>\\n' -}}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
REASONING = (  # as DeepSeek-R1-Distill-Llama and Qwen3 cut earlier thoughts
    "{% for message in messages %}{% set content = message['content'] | trim %}"
    "{% if message['role'] == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "<|im_start|>{{ content }}<|im_end|>{% endfor %}"
)
DATES = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%b %Y') %}{% endif %}"
    "{{ bos_token }}Today is {{ date_string }}. {{ messages | length }}{{ pad_token }}"
)
JSON = (
    "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ tools is none }}"
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}"
    "{% set ns = namespace(self='a', n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.self }}{{ ns.n }}"
)
TEMPLATES = {
    "llama2": LLAMA2_CHAT,
    "llama3": LLAMA3_INSTRUCT,
    "zephyr": ZEPHYR,
    "phi": PHI,
    "chatml": CHATML,
    "reasoning": REASONING,
    "dates": DATES,
    "json": JSON,
}

HELLO = [{"role": "user", "content": "Hello, is <b>é</b> 漢字 \"quoted\" & 'so'? {{ 7*7 }}"}]
LONG = [
    {"role": "system", "content": "  Answer in verse.\n"},
    {"role": "user", "content": "\n One\n\nline "},
    {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nRoses "},
    {"role": "user", "content": "Two: 🦙\u00a0"},
]

# Every template's markers, most of them special; one has a single character.
MARKERS = [
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<|im_start|>", "<|im_end|>", "<|user|>", "<|system|>", "<|assistant|>", "<|end|>", "§"),
]


def build(path: Path, **settings: Any) -> LlamaTokenizer:
    """A small tokenizer like Llama 2's with the markers of all templates."""
    path.write_bytes(sentencepiece_model())
    size = LlamaTokenizer(path).vocab_size
    added = {size + i: AddedToken(content=text) for i, text in enumerate(MARKERS)}
    for i, text in enumerate(["<think>", "</think>"]):
        added[size + len(MARKERS) + i] = AddedToken(content=text, special=False)
    return LlamaTokenizer(path, TokenizerConfig(added_tokens=added, **settings))


def text_of(segments: Sequence[str | int], tokenizer: LlamaTokenizer) -> str:
    return "".join(s if isinstance(s, str) else tokenizer.id_to_token(s) for s in segments)


def tokens_of(segments: Sequence[str | int], tokenizer: LlamaTokenizer) -> list[str]:
    return tokenizer.convert_ids_to_tokens([s for s in segments if isinstance(s, int)])


def reference(template: str, messages: Any, *, add_generation_prompt: bool = True) -> str:
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    rendered, _ = render_jinja_template(
        [messages],
        chat_template=template,
        add_generation_prompt=add_generation_prompt,
        **special,
    )
    return str(rendered[0])


def chat(*contents: str) -> list[Any]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def render_chat(
    messages: Sequence[Message], tokenizer: Tokenizer, *, prefill: str = "", **settings: Any
) -> list[str | int]:
    """Segments of one chat."""
    return next(render_chats([messages], tokenizer, prefills=[prefill], **settings))


def encode_prompt(
    request: GenerationRequest, tokenizer: Tokenizer, template: str | None, **settings: Any
) -> list[int]:
    """The ids of one prompt."""
    return encode_prompts([request], tokenizer, template, **settings)[0]
