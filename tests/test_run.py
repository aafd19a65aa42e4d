"""`llamacli run`: where the prompt comes from, how the text is chosen, where it ends."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llamacli.cli.prompt_encoder import PromptEncoder
from llamacli.context_window import Side
from llamacli.hub import Snapshot
from llamacli.model import LlamaForCausalLM
from llamacli.model_folder import ModelFolder
from llamacli.request import GenerationRequest, Message
from llamacli.tokenizer import Tokenizer
from llamacli.tokenizer_fast import load_tokenizer
from tests.command_line import Done, here, write_chain
from tests.tiny import write_model

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TALE = ["▁moon", "▁sees", "▁river", ".", "▁T", "he", "▁bird", "▁follows", "▁sun"]


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model: its text is noise, and depends on every token of the prompt."""
    folder = tmp_path_factory.mktemp("models") / "noise"
    write_model(folder, max_position_embeddings=128)
    return folder


@pytest.fixture(scope="module")
def tale(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that always says " moon sees river. The bird follows sun" and ends."""
    folder = tmp_path_factory.mktemp("models") / "tale"
    write_chain(folder, TALE)
    return folder


@pytest.fixture(scope="module")
def chat(noise: Path) -> Path:
    """The noise with a chat template."""
    folder = Path(shutil.copytree(noise, noise.with_name("chat")))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def copy(tale: Path, tmp_path: Path) -> Path:
    """The tale, for a test that changes its files."""
    return Path(shutil.copytree(tale, tmp_path / "copy"))


def run(model: Path, *args: object, stdin: bytes = b"") -> Done:
    return here("run", "-m", model, *args, stdin=stdin)


def greedy(model: Path, *args: object, stdin: bytes = b"") -> bytes:
    done = run(model, "--greedy", "-n", 12, *args, stdin=stdin)
    assert (done.code, done.err) == (0, "")
    return done.out


def record(model: Path, *args: object, stdin: bytes = b"") -> dict[str, Any]:
    (found,) = run(model, "--json", *args, stdin=stdin).records
    return found


def prompt_length(model: Path, *args: object, stdin: bytes = b"") -> int:
    found = record(model, "-n", 1, *args, stdin=stdin)
    return int(found["usage"]["prompt_tokens"])


def refused(done: Done, *words: str, code: int = 2) -> None:
    """One line of error with these words, at most one hint, and no output."""
    assert (done.code, done.out) == (code, b"")
    lines = done.err.splitlines()
    assert lines[0].startswith("llamacli: error: ")
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: "))
    for word in words:
        assert word in done.err


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


def test_an_answer_starts_without_a_blank(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    assert run(copy, "The").text == "moon sees river. The bird follows sun\n"
    assert run(copy, "The", "--prefill", "A").text == " moon sees river. The bird follows sun\n"


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
    refused(run(noise, "-f", tmp_path / "absent"), "there is no prompt file", code=6)
    refused(run(noise, "-f", tmp_path), "Is a directory", code=7)


# ----------------------------------------------------------------------------------- the context


def test_fault_061_a_prompt_that_fills_the_context_is_refused_or_cut(noise: Path) -> None:
    long = "sun " * 200
    refused(run(noise, long), "the prompt has 202 tokens", "context 128", "--truncate left")
    for side in ("left", "right", "middle"):
        done = run(noise, long, "--truncate", side, "-n", 8, "--json")
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


# --------------------------------------------------------------------------------------- sampling


def test_greedy_is_repeatable_and_a_seed_gives_its_text_again(noise: Path) -> None:
    assert greedy(noise, "The sun") == greedy(noise, "The sun", "--seed", 5)
    hot = ("The sun", "-n", 12, "--temperature", 2)
    first = record(noise, *hot)
    assert record(noise, *hot, "--seed", first["seed"])["text"] == first["text"]
    texts = {record(noise, *hot, "--seed", seed)["text"] for seed in range(5)}
    assert len(texts) == 5


BAD_VALUES = {
    "fault-064": ("--temperature", "nan -1 inf hot"),
    "fault-065-top-p": ("--top-p", "0 -0.1 1.1 nan"),
    "fault-065-min-p": ("--min-p", "-0.1 1.1 nan"),
    "fault-065-typical-p": ("--typical-p", "0 1.1"),
    "fault-065-top-k": ("--top-k", "-1 1.5"),
    "fault-066": ("--max-new-tokens", "-5 1e3"),
    "fault-066-min": ("--min-new-tokens", "-1 300"),
    "fault-067": ("--seed", f"-1 {2**64} abc"),
    "logprobs": ("--logprobs", "-1 101"),
    "counts": ("--num-samples", "0 many"),
    "batches": ("--batch-size", "0"),
    "choices": ("--dtype", "int8"),
}


@pytest.mark.parametrize(("option", "values"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_value_out_of_range_is_refused_by_name(noise: Path, option: str, values: str) -> None:
    for value in values.split():
        refused(run(noise, "x", option, value), option)


def test_fault_064_a_tiny_temperature_is_greedy(noise: Path) -> None:
    expected = greedy(noise, "The sun")
    for temperature in ("0", "1e-45"):
        assert run(noise, "The sun", "-n", 12, "--temperature", temperature).out == expected


def test_fault_065_filters_at_their_limits_leave_a_token(noise: Path) -> None:
    expected = greedy(noise, "The sun")
    for options in (("--top-p", "1e-300"), ("--top-k", 1), ("--min-p", 1)):
        assert run(noise, "The sun", "-n", 12, *options).out == expected
    assert run(noise, "The sun", "-n", 3, "--top-k", 10**6).code == 0


def test_fault_066_no_new_tokens_print_nothing(noise: Path) -> None:
    assert run(noise, "The sun", "-n", 0).text == ""
    nothing = record(noise, "The sun", "-n", 0)
    assert (nothing["text"], nothing["token_ids"], nothing["finish_reason"]) == ("", [], "length")


def test_fault_071_a_bad_variable_is_named(noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TEMPERATURE": "-1", "TOP_K": "many", "GREEDY": "maybe"}.items():
        with monkeypatch.context() as patch:
            patch.setenv(f"LLAMACLI_{name}", value)
            refused(run(noise, "x"), f"LLAMACLI_{name}")


def test_an_option_beats_the_variable_that_contradicts_it(
    noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = greedy(noise, "The sun")
    monkeypatch.setenv("LLAMACLI_TEMPERATURE", "1.5")
    monkeypatch.setenv("LLAMACLI_MAX_NEW_TOKENS", "12")
    assert run(noise, "The sun", "--greedy").out == expected
    monkeypatch.setenv("LLAMACLI_GREEDY", "1")
    refused(run(noise, "x"), "LLAMACLI_GREEDY and LLAMACLI_TEMPERATURE contradict")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("--greedy",), ("--temperature", 1)),
        (("--raw",), ("--system", "x")),
        (("--raw",), ("--prefill", "x")),
        (("--raw",), ("--chat-template", "llama2")),
        (("--lines",), ("--jsonl",)),
        (("--lines",), ("--null",)),
        (("--jsonl",), ("--null",)),
    ],
    ids=lambda words: f"fault-070-{words[0]}",
)
def test_contradictions_are_refused(noise: Path, one: tuple[str], other: tuple[object]) -> None:
    refused(run(noise, "x", *one, *other), f"{one[0]} and {other[0]} contradict each other")


def test_fault_069_an_unknown_option_or_command_gets_a_suggestion(noise: Path) -> None:
    refused(run(noise, "x", "--temprature", 1), "--temperature", "llamacli run --help")
    refused(here("rnu", "x"), "rnu", "run")


def test_logit_biases_choose_and_ban_by_id_and_by_word(noise: Path, tale: Path) -> None:
    tokenizer = load_tokenizer(noise)
    (bread,) = tokenizer.convert_tokens_to_ids(["▁bread"])
    assert greedy(noise, "The", "--logit-bias", f"{bread}=100") == b" bread" * 12 + b"\n"
    assert greedy(noise, "The", "--logit-bias", "bread=100").count(b"bread") == 12
    hot = ("The", "-n", 100, "--temperature", 1, "--seed", 1, "--ignore-eos", "--num-samples", 2)
    free = "".join(found["text"] for found in run(noise, *hot, "--json").records)
    banned = [word for word in ("bread", "garden", "river") if word in free]
    biases = [word for name in banned for word in ("--logit-bias", f"{name}=-inf")]
    bound = run(noise, *hot, *biases, "--json").records
    assert banned
    assert sum(len(found["token_ids"]) for found in bound) == 200
    assert not any(word in found["text"] for found in bound for word in banned)
    for bad in ("moon", "=1", "moon=much", "99999=1"):
        refused(run(noise, "x", "--logit-bias", bad), "logit bias")


# ---------------------------------------------------------------------------- where a text ends


def test_fault_068_a_stop_string_is_cut_exactly_across_tokens(tale: Path) -> None:
    for stop, text in {
        "ver. Th": " moon sees ri",
        " moon": "",
        "sun": " moon sees river. The bird follows ",
        "never": " moon sees river. The bird follows sun",
    }.items():
        found = record(tale, "The", "--stop", stop)
        assert found["text"] == text
        assert found["finish_reason"] == "stop"
        assert found["stop_string"] == (None if stop == "never" else stop)
        assert found["stop_token_id"] == (2 if stop == "never" else None)
    refused(run(tale, "The", "--stop", ""), "--stop must be")
    both = record(tale, "The", "--stop", "bird", "--stop", "river")
    assert (both["text"], both["stop_string"]) == (" moon sees ", "river")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_every_end_of_sequence_id_ends_the_text(copy: Path, file: str) -> None:
    river, dot = load_tokenizer(copy).convert_tokens_to_ids(["▁river", "."])
    settings = json.loads((copy / file).read_text()) if (copy / file).exists() else {}
    end = {"eos_token": "▁river"} if file.startswith("tok") else {"eos_token_id": [dot, river]}
    (copy / file).write_text(json.dumps(settings | end))
    found = record(copy, "The")
    assert (found["text"], found["finish_reason"]) == (" moon sees", "stop")
    assert found["stop_token_id"] == river


def test_the_end_can_be_ignored_or_put_off(tale: Path) -> None:
    ended = record(tale, "The", "-n", 30)
    assert ended["usage"]["completion_tokens"] == len(TALE) + 1
    ignored = record(tale, "The", "-n", 30, "--ignore-eos")
    assert ignored["usage"]["completion_tokens"] == 30
    late = record(tale, "The", "-n", 30, "--min-new-tokens", 15)
    assert 15 <= late["usage"]["completion_tokens"] <= 30
    assert 2 not in late["token_ids"][:15]


# ---------------------------------------------------------------------- where the values come from


def shown(model: Path, *args: object) -> dict[str, tuple[object, str]]:
    done = run(model, "--show-config", "--json", *args)
    assert (done.code, done.err) == (0, "")
    settings = json.loads(done.out)["settings"]
    return {name: (setting["value"], setting["from"]) for name, setting in settings.items()}


def test_the_config_shows_where_each_value_came_from(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(copy)["temperature"] == (0.6, "Meta's reference")
    assert shown(copy)["top_p"] == (0.9, "Meta's reference")
    (copy / "generation_config.json").write_text('{"temperature": 0.8, "top_k": 40}')
    monkeypatch.setenv("LLAMACLI_MIN_P", "0.1")
    found = shown(copy, "--seed", 7, "--stop", "\n", "--logit-bias", "moon=-inf")
    assert found["temperature"] == (0.8, "generation_config.json")
    assert found["top_k"] == (40, "generation_config.json")
    assert found["top_p"] == (1.0, "default")
    assert found["min_p"] == (0.1, "LLAMACLI_MIN_P")
    assert found["seed"] == (7, "--seed")
    assert found["stop"] == (["\n"], "--stop")
    assert found["logit_bias"] == (["moon=-inf"], "--logit-bias")
    assert found["max_new_tokens"] == (256, "default")
    assert shown(copy, "--greedy")["temperature"] == (0.0, "--greedy")
    assert shown(copy, "-n", -1)["max_new_tokens"] == (64, "--max-new-tokens")
    text = run(copy, "--show-config").text
    assert "temperature           0.8         generation_config.json\n" in text


def test_the_models_defaults_are_what_is_sampled_with(copy: Path) -> None:
    (copy / "generation_config.json").write_text('{"do_sample": false}')
    assert shown(copy)["temperature"] == (0.0, "generation_config.json")
    assert record(copy, "The")["token_ids"] == record(copy, "The", "--greedy")["token_ids"]


@pytest.mark.parametrize("text", ["{", "[]", '{"temperature": -1}', '{"eos_token_id": ["x"]}'])
def test_fault_040_a_bad_generation_config_is_left_out_with_a_note(copy: Path, text: str) -> None:
    (copy / "generation_config.json").write_text(text)
    done = run(copy, "The", "--stop", "sees")
    assert (done.code, done.out) == (0, b" moon \n")
    (line,) = done.err.splitlines()
    assert line.startswith("llamacli: note: generation_config.json")
    assert "left out" in line


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


def test_fault_072_nan_logits_end_the_text_so_far_with_an_error(copy: Path) -> None:
    damage(copy, after="▁river")
    done = run(copy, "The")
    assert (done.code, done.out) == (3, b" moon sees river\n")
    assert done.err.startswith("llamacli: error: the model produced NaN logits")
    as_json = run(copy, "The", "--json")
    assert (as_json.code, as_json.out) == (3, b"")
    damage(copy, after=None)
    refused(run(copy, "The"), "NaN", code=3)


def test_fault_014_check_tensors_finds_nan_before_the_first_token(copy: Path) -> None:
    assert run(copy, "The", "--check-tensors", "-n", 1).code == 0
    damage(copy, after="▁river")
    refused(run(copy, "The", "--check-tensors"), "model.embed_tokens.weight", "not finite", code=3)


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


def test_logprobs_are_those_of_the_model_itself(noise: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(noise)
    tokenizer: Tokenizer = load_tokenizer(noise)
    found = record(noise, "The sun", "-n", 6, "--logprobs", 3, "--temperature", 2, "--top-k", 9)
    prompt = tokenizer.encode("The sun")
    ids = torch.tensor([prompt + found["token_ids"]])
    with torch.no_grad():
        logprobs = model(ids)[0, len(prompt) - 1 : -1].log_softmax(-1)  # (T, V)
    for row, (token_id, shown) in enumerate(
        zip(found["token_ids"], found["logprobs"], strict=True)
    ):
        assert shown["id"] == token_id
        assert shown["logprob"] == pytest.approx(logprobs[row, token_id].item(), abs=1e-4)
        best = logprobs[row].topk(3)
        assert [other["id"] for other in shown["top"]] == best.indices.tolist()
        assert [other["logprob"] for other in shown["top"]] == pytest.approx(
            best.values.tolist(), abs=1e-4
        )
