"""`llamacli run`: where the prompt comes from, chats, damaged models."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llamacli.cli.prompt_encoder import PromptEncoder
from llamacli.context_window import Side
from llamacli.hub import Snapshot
from llamacli.kernels import native
from llamacli.model_folder import ModelFolder
from llamacli.request import GenerationRequest, Message
from llamacli.tokenizer_fast import load_tokenizer
from tests.command_line import greedy, here, prompt_length, record, refused, run

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def chat(noise: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The noise with a chat template."""
    folder = Path(shutil.copytree(noise, tmp_path_factory.mktemp("models") / "chat"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


# ------------------------------------------------------------------------------------ the prompt


def test_stdin_arguments_and_files_give_the_same_prompt(noise: Path, tmp_path: Path) -> None:
    expected = greedy(noise, "The sun\nThe moon")
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"The sun\nThe moon\n")
    first_line = tmp_path / "first.txt"
    first_line.write_bytes(b"The sun")
    assert greedy(noise, stdin=b"The sun\nThe moon") == expected
    assert greedy(noise, stdin=b"The sun\nThe moon\n") == expected
    assert greedy(noise, stdin=b"The sun\nThe moon\r\n") == expected
    assert greedy(noise, "The moon", stdin=b"The sun\n") == expected
    assert greedy(noise, "The", "moon", stdin=b"The sun") == expected
    assert greedy(noise, "--prompt-file", file) == expected
    assert greedy(noise, "-f", first_line, "The moon") == expected
    assert greedy(noise, "-f", "-", "The moon", stdin=b"The sun") == expected
    assert greedy(noise, "-", "The moon", stdin=b"The sun") == expected
    assert greedy(noise, "The moon The sun") != expected


def test_only_one_newline_at_the_end_is_not_part_of_the_prompt(noise: Path) -> None:
    one = prompt_length(noise, stdin=b"The sun\n")
    two = prompt_length(noise, stdin=b"The sun\n\n")
    assert two > one
    assert prompt_length(noise, stdin=b"\n The sun\n") > one


def test_the_first_blank_of_a_continuation_is_kept(tale: Path) -> None:
    assert run(tale, "The").text == " moon sees river. The bird follows sun\n"


def test_an_answer_starts_without_a_blank(changed: Path) -> None:
    (changed / "chat_template.jinja").write_text(TEMPLATE)
    assert run(changed, "The").text == "moon sees river. The bird follows sun\n"
    assert run(changed, "The", "--prefill", "A").text == " moon sees river. The bird follows sun\n"


def test_a_terminal_is_read_only_when_asked_to(noise: Path) -> None:
    def prompt_tokens(*args: object) -> object:
        done = here("run", "-m", noise, *args, "-n", 1, "--json", stdin=b"The sun", tty=["stdin"])
        return done.records[0]["usage"]["prompt_tokens"]

    assert prompt_tokens("The") == 2
    assert prompt_tokens("-") == prompt_tokens("--prompt-file", "-") == 3


@pytest.mark.parametrize("stdin", [b"", b"\n", b" \t\r\n", "\ufeff".encode()])
def test_fault_055_an_empty_or_blank_prompt_is_refused(noise: Path, stdin: bytes) -> None:
    refused(run(noise, stdin=stdin), "the prompt is empty")
    refused(run(noise, "", stdin=stdin), "the prompt is empty")


def test_fault_058_bad_bytes_are_replaced_with_a_note(noise: Path) -> None:
    done = run(noise, "-n", 1, stdin=b"sun \xff moon")
    assert done.code == 0
    assert done.err == "llamacli: note: stdin is not UTF-8 at byte 4; bad bytes became U+FFFD\n"
    refused(run(noise, stdin="sun".encode("utf-16")), "UTF-16", "iconv")
    with_mark = record(noise, "-n", 1, stdin="\ufeffThe sun".encode())
    assert with_mark["usage"] == record(noise, "-n", 1, stdin=b"The sun")["usage"]
    inside = prompt_length(noise, stdin=b"The sun\r\nThe")
    assert inside == prompt_length(noise, stdin=b"The sun\nThe") + 1


def test_fault_059_nul_bytes_reach_the_tokenizer(noise: Path) -> None:
    plain = prompt_length(noise, stdin=b"The sunThe")
    assert prompt_length(noise, stdin=b"The sun\0The") == plain + 1


def test_fault_060_bytes_of_an_argument_that_are_no_text_are_replaced(noise: Path) -> None:
    done = run(noise, "-n", 1, "sun \udcff")
    assert done.code == 0
    assert "the prompt argument is not UTF-8 at byte 4" in done.err


def test_a_prompt_file_that_cannot_be_read_is_an_error(noise: Path, tmp_path: Path) -> None:
    refused(run(noise, "-f", tmp_path / "absent"), "there is no file", code=6)
    refused(run(noise, "-f", tmp_path), "Is a directory", code=7)


# ----------------------------------------------------------------------------------- the context


def test_fault_061_a_prompt_that_fills_the_context_is_refused_or_cut(noise: Path) -> None:
    long = "sun " * 200
    refused(run(noise, long), "the prompt has 202 tokens", "context 128", "--truncate left")
    for side in ("left", "right", "middle"):
        done = run(noise, long, "--truncate", side, "-n", 8, "--ignore-eos", "--json")
        assert done.err == (
            f"llamacli: note: the prompt is cut from 202 to 120 tokens (--truncate {side})\n"
        )
        assert done.records[0]["usage"]["total_tokens"] == 128
    assert run(noise, "short", "--truncate", "left", "-n", 1).err == ""


@pytest.mark.parametrize(
    ("side", "kept"), [("left", "moon end"), ("right", "start moon"), ("middle", "start moon")]
)
def test_a_chat_that_is_too_long_loses_text_of_its_longest_message(
    chat: Path, side: Side, kept: str
) -> None:
    folder = ModelFolder.open(Snapshot(chat, None))
    encoder = PromptEncoder(folder=folder, template=TEMPLATE, parse_special=False, side=side)
    long: Message = {"role": "user", "content": "start " + "moon " * 200 + "end"}
    request = GenerationRequest(messages=[{"role": "system", "content": "Be brief."}, long])
    (whole,) = encoder.encode(request)
    ids = encoder.fit(request, whole, 8)
    shown = folder.tokenizer.decode(ids, skip_special_tokens=True)
    assert 115 < len(ids) <= 120
    assert shown.startswith("system: Be brief.\nuser: ")
    assert shown.endswith("\nassistant:")
    assert kept in shown
    assert ("start" in shown, "end\n" in shown) == (side != "left", side != "right")


def test_a_chat_that_is_too_long_without_its_longest_message_is_refused(chat: Path) -> None:
    done = run(chat, "hi", "--system", "x" * 90, "--prefill", "y" * 120, "--truncate", "left")
    refused(done, "the chat fills the context without its longest message")
    done = run(chat, "moon " * 200, "--truncate", "left", "-n", 8)
    assert done.code == 0
    assert "the prompt is cut from" in done.err


def test_fault_062_the_end_of_the_context_is_noted(noise: Path) -> None:
    note = "llamacli: note: the text ended at the model's context of 128 tokens\n"
    for asked in (-1, 10**9):
        done = run(noise, "The sun", "--ignore-eos", "--json", "-n", asked)
        assert done.err == note
        assert done.records[0]["usage"]["total_tokens"] == 128
        assert done.records[0]["finish_reason"] == "length"
    several = run(noise, "The sun", "--ignore-eos", "-n", -1, "--num-samples", 3)
    assert "3 of 3 texts ended at" in several.err
    assert run(noise, "The sun", "--ignore-eos", "-n", -1, "--quiet").err == ""


# ------------------------------------------------------------------------------------------ chats


def test_a_model_with_a_template_chats_unless_raw(chat: Path, noise: Path) -> None:
    tokenizer = load_tokenizer(noise)

    def length(text: str) -> int:
        return len(tokenizer.encode(text))

    assert prompt_length(chat, "hi") == length("user: hi\nassistant:")
    assert prompt_length(chat, "hi", "--raw") == length("hi")
    dressed = prompt_length(chat, "hi", "--system", "Be brief.", "--prefill", "Well")
    assert dressed == length("system: Be brief.\nuser: hi\nassistant:Well")
    assert prompt_length(noise, "hi", "--chat-template", "llama2") == length("[INST] hi [/INST]")
    assert greedy(chat, "--raw", "hi") == greedy(noise, "hi")


def test_messages_need_a_template(noise: Path, chat: Path, tmp_path: Path) -> None:
    messages = b'{"messages": [{"role": "user", "content": "hi"}]}\n'
    refused(run(noise, "--jsonl", stdin=messages), "line 1 of stdin: messages need a chat template")
    refused(run(chat, "--jsonl", "--raw", stdin=messages), "(--raw)")
    refused(run(noise, "hi", "--system", "x"), "no chat template", "--chat-template")
    refused(run(noise, "hi", "--chat-template", tmp_path / "absent"), "llama2, llama3", code=6)
    refused(run(noise, "hi", "--chat-template", tmp_path), "cannot read", code=7)


def test_fault_047_special_tokens_that_a_user_types_are_plain_text(noise: Path, chat: Path) -> None:
    typed = "sun</s><s>"
    plain = load_tokenizer(noise).encode(typed, split_special_tokens=True)
    assert prompt_length(noise, typed) == len(plain) > 6
    assert prompt_length(noise, typed, "--parse-special") == 4  # <s> ▁sun </s> <s>
    assert prompt_length(chat, typed) == prompt_length(chat, "sun") + len(plain) - 2
    refused(run(chat, "x", "--parse-special"), "--parse-special", "--raw")


# -------------------------------------------------------------------------------- damaged models


def damage(folder: Path, *, after: str | None) -> None:
    """Put NaN where the token `after` leads, or everywhere."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if after is None:
        tensors["model.norm.weight"][:] = torch.nan
    else:
        (token,) = load_tokenizer(folder).convert_tokens_to_ids([after])
        tensors["model.embed_tokens.weight"][token] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})


def test_fault_072_nan_logits_end_the_text_so_far_with_an_error(changed: Path) -> None:
    damage(changed, after="▁river")
    done = run(changed, "The")
    assert (done.code, done.out) == (3, b" moon sees river\n")
    assert done.err.startswith("llamacli: error: the model produced NaN logits")
    as_json = run(changed, "The", "--json")
    assert (as_json.code, as_json.out) == (3, b"")
    damage(changed, after=None)
    refused(run(changed, "The"), "NaN", code=3)


def test_fault_014_check_tensors_finds_nan_before_the_first_token(changed: Path) -> None:
    assert run(changed, "The", "--check-tensors", "-n", 1).code == 0
    damage(changed, after="▁river")
    refused(
        run(changed, "The", "--check-tensors"), "model.embed_tokens.weight", "not finite", code=3
    )


def test_a_name_that_is_no_model_is_not_found(tmp_path: Path) -> None:
    for name in ("", tmp_path / "absent"):
        refused(here("run", "-m", name, "--offline", "hello"), "there is no folder", code=6)


def test_offline_a_model_that_is_not_cached_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    done = here("run", "-m", "nobody/no-such-model", "--offline", "hello")
    refused(done, "nobody/no-such-model is not", "offline", code=6)


# -------------------------------------------------------------------------------------- the model


def test_dtype_cache_and_attention_can_be_chosen(noise: Path) -> None:
    expected = greedy(noise, "The sun")
    assert greedy(noise, "The sun", "--cache-implementation", "static") == expected
    assert greedy(noise, "The sun", "--attn-implementation", "eager") == expected
    assert record(noise, "x", "-n", 1, "--dtype", "bfloat16")["dtype"] == "bfloat16"
    refused(run(noise, "x", "--device", "gpu"), "device must be", "cpu")


@pytest.mark.skipif(native.kernels() is None, reason="no C kernels here")
def test_activations_are_rounded_where_that_is_asked_for() -> None:
    args = ["run", "--quantize", "int4", "--greedy", "-n", "8", "--stats", "The sun"]
    exact, rounded = here(*args), here(*args, "--activations", "int8")
    assert (exact.code, rounded.code) == (0, 0)
    assert " int8 kernels)" in rounded.err
    assert " int8 kernels)" not in exact.err
    assert rounded.out.strip()
    refused(
        here("run", "--quiet", "--activations", "int8", "The sun"),
        "int4 weights",
        "quantize",
        code=2,
    )
