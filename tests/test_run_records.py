"""`llamacli run` with many prompts, and what it writes as JSON."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import Done, here, write_chain

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PROMPTS = ["The sun", "The moon finds the river", "a", "The bird. The stone", "light winter"]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    r"""A model that says " moon\n\ river", the lines of which are two."""
    folder = tmp_path_factory.mktemp("models") / "lines"
    write_chain(folder, ["▁moon", "<0x0A>", "<0x5C>", "▁river", "<0x0D>"])
    return folder


def run(model: Path, *args: object, stdin: bytes | list[object] = b"") -> Done:
    data = stdin if isinstance(stdin, bytes) else "\n".join(map(json.dumps, stdin)).encode()
    return here("run", "-m", model, *args, stdin=data)


def alone(model: Path, *args: object) -> Iterator[str]:
    for prompt in PROMPTS:
        (found,) = run(model, *args, "--json", stdin=prompt.encode()).records
        yield found["text"]


def refused(done: Done, *words: str) -> None:
    assert (done.code, done.out) == (2, b"")
    assert all(word in done.err for word in words), done.err


# ---------------------------------------------------------------------------- cutting the input


def test_each_line_is_a_prompt_and_answers_keep_the_order(noise: Path, tmp_path: Path) -> None:
    settings = ("--greedy", "-n", 9, "--lines")
    expected = list(alone(noise, *settings[:-1]))
    stdin = "\n".join(PROMPTS).encode()
    assert run(noise, *settings, "--json", stdin=stdin).records[3]["text"] == expected[3]
    found = run(noise, *settings, stdin=stdin).text.splitlines(keepends=True)
    assert len(found) == len(PROMPTS)
    assert run(noise, *settings, stdin=stdin + b"\n").text == "".join(found)
    assert run(noise, *settings, stdin=stdin.replace(b"\n", b"\r\n")).text == "".join(found)
    file = tmp_path / "prompts.txt"
    file.write_bytes(stdin[: stdin.rindex(b"\n") + 1])
    assert run(noise, *settings, "-f", file, stdin=b"light winter").text == "".join(
        found[4:] + found[:4]
    )


@pytest.mark.parametrize("sampling", [("--greedy",), ("--temperature", 2, "--seed", 3)])
def test_a_batch_never_changes_an_answer(noise: Path, sampling: tuple[object, ...]) -> None:
    stdin = "\n".join(PROMPTS).encode()
    settings = ("--lines", "-n", 12, "--json", "--num-samples", 2, *sampling)

    def texts(size: int) -> list[str]:
        found = run(noise, *settings, "--batch-size", size, stdin=stdin).records
        assert [(r["index"], r["sample"]) for r in found] == [(i, i % 2) for i in range(10)]
        return [record["text"] for record in found]

    assert texts(1) == texts(3) == texts(16)


def test_arguments_end_every_prompt(noise: Path) -> None:
    found = run(noise, "--lines", "-n", 1, "--json", "the end", stdin=b"The sun\nThe moon").records
    expected = [run(noise, "-n", 1, "--json", f"{p}\nthe end").records[0] for p in PROMPTS[:1]]
    assert found[0]["usage"] == expected[0]["usage"]
    assert len(found) == 2


def test_null_ends_prompts_and_answers_and_keeps_every_byte(noise: Path, lines: Path) -> None:
    settings = ("-0", "-n", 1, "--json")
    found = run(noise, *settings, stdin=b"The sun\n\0The moon\r\0The").records
    lengths = [record["usage"]["prompt_tokens"] for record in found]
    assert lengths == [4, 4, 2]
    assert run(noise, *settings, stdin=b"The\0").records[0]["usage"]["prompt_tokens"] == 2
    assert run(lines, "-0", stdin=b"a\0b").out == b" moon\n\\ river\r\0" * 2
    assert run(lines, "-0", "-n", 0, stdin=b"a\0b").out == b"\0\0"


def test_lines_write_each_answer_on_one_line(lines: Path) -> None:
    assert run(lines, "--lines", stdin=b"a\nb").out == b" moon\\n\\\\ river\\r\n" * 2
    assert run(lines, "--lines", "-n", 0, stdin=b"a\nb").out == b"\n\n"
    assert run(lines, stdin=b"a\nb").out == b" moon\n\\ river\r\n"


@pytest.mark.parametrize("option", ["--lines", "--null", "--jsonl"])
def test_fault_055_no_records_are_refused(noise: Path, option: str) -> None:
    refused(run(noise, option), f"{option} takes its prompts from stdin or a file")
    if option != "--jsonl":
        refused(run(noise, option, "words"), "got none")


def test_an_empty_record_is_named(noise: Path) -> None:
    refused(run(noise, "--lines", stdin=b"a\n\nb"), "line 2 of stdin is empty")
    refused(run(noise, "-0", stdin=b"a\0b\0 \0"), "record 3 of stdin is empty")
    refused(run(noise, "--jsonl", stdin=[{"prompt": " "}]), "line 1 of stdin is empty")


def test_a_long_prompt_among_many_is_named(noise: Path) -> None:
    stdin = b"a\n" + b"sun " * 200 + b"\n"
    refused(run(noise, "--lines", stdin=stdin), "line 2 of stdin: the prompt has", "context 128")
    cut = run(noise, "--lines", "--truncate", "right", "-n", 1, stdin=stdin)
    assert cut.code == 0
    assert cut.err.startswith("llamacli: note: line 2 of stdin is cut from")


# --------------------------------------------------------------------------------------- requests


def test_requests_carry_their_own_id_and_sampling_parameters(noise: Path) -> None:
    stdin: list[object] = [
        {"prompt": "The sun", "id": {"any": ["json", 1]}, "max_new_tokens": 2},
        {"prompt": "The sun", "seed": 7, "temperature": 2},
        {"prompt": "The sun", "stop": ["e", "a"], "temperature": None},
        {"prompt": "The sun", "logprobs": 1, "max_new_tokens": None},
    ]
    found = run(noise, "--jsonl", "-n", 9, "--greedy", stdin=stdin).records
    assert [record["id"] for record in found] == [{"any": ["json", 1]}, None, None, None]
    assert [len(record["token_ids"]) for record in found[::3]] == [2, 9]
    seeded = run(noise, "-n", 9, "--temperature", 2, "--seed", 7, "--json", "The sun").records[0]
    assert (found[1]["seed"], found[1]["text"]) == (7, seeded["text"])
    assert found[0]["token_ids"] == found[3]["token_ids"][:2]
    assert "e" not in found[2]["text"]
    assert found[3]["logprobs"] is not None
    assert found[0]["logprobs"] is None


def test_requests_may_hold_messages(noise: Path) -> None:
    chat = ("--chat-template", "llama2", "-n", 1)
    user, system = ({"role": role, "content": "hi"} for role in ("user", "system"))
    expected = run(noise, *chat, "--json", "hi").records[0]["usage"]
    request = json.dumps({"messages": [user]}).encode()
    (found,) = run(noise, *chat, "--jsonl", stdin=request + b"\n\n \n").records
    assert found["usage"] == expected
    own = {"messages": [system, user]}  # wins over the option
    (with_own,) = run(noise, *chat, "--jsonl", "--system", "x" * 20, stdin=[own]).records
    (with_option,) = run(noise, *chat, "--json", "--system", "hi", "hi").records
    assert with_own["usage"] == with_option["usage"]
    done = run(noise, *chat, "--jsonl", stdin=[{"messages": [system]}])
    assert done.code == 3
    assert "A user message must follow" in done.err


BAD_REQUESTS = {
    '{"prompt": "a"} x': "line 2 of stdin is not valid JSON: Extra data (column 17)",
    "[1]": "line 2 of stdin must be a JSON object, got [1]",
    "{}": 'line 2 of stdin needs either "prompt" or "messages"',
    '{"prompt": "a", "messages": []}': 'line 2 of stdin needs either "prompt" or "messages"',
    '{"prompt": ["a"]}': 'line 2 of stdin: "prompt" must be a string',
    '{"messages": 5}': 'line 2 of stdin: "messages" must be a list',
    '{"messages": ["hi"]}': "line 2 of stdin: messages[0] must be",
    '{"prompt": "a", "temp": 1}': "line 2 of stdin has an unknown key 'temp'",
    '{"prompt": "a", "logit_bias": {}}': "unknown key 'logit_bias'",
    '{"prompt": "a", "\\u001b[2J": 1}': "unknown key '\\\\x1b[2J'",
    '{"prompt": "a", "top_p": 2}': "line 2 of stdin: top_p must be",
    '{"prompt": "a", "top_k": true}': "line 2 of stdin: top_k must be",
    '{"prompt": "a", "stop": "x"}': "line 2 of stdin: stop must be a sequence",
    '{"prompt": "a", "id": NaN}': "line 2 of stdin is refused: NaN",
    '{"prompt": "a", "prompt": "b"}': "line 2 of stdin is refused: key 'prompt' occurs twice",
    '{"prompt": ' + "[" * 100_000: "line 2 of stdin is refused",
}


@pytest.mark.parametrize(("line", "words"), BAD_REQUESTS.items(), ids=range(len(BAD_REQUESTS)))
def test_a_bad_request_is_refused_with_its_line(noise: Path, line: str, words: str) -> None:
    template = ("--chat-template", "llama2") if "hi" in line else ()
    done = run(noise, "--jsonl", *template, stdin=b'{"prompt": "a"}\n' + line.encode())
    refused(done, words)
    assert len(done.err.splitlines()) <= 2


def test_requests_take_no_arguments(noise: Path) -> None:
    refused(run(noise, "--jsonl", "words", stdin=[{"prompt": "a"}]), "not from arguments")


# ------------------------------------------------------------------------------------ the results


def documented_keys() -> set[str]:
    table = README.split("## JSON", 1)[1].split("## Exit codes", 1)[0]
    first_cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    return {key for cell in first_cells for key in re.findall(r"`(\w+)`", cell)}


def test_every_documented_key_is_there(noise: Path) -> None:
    (found,) = run(noise, "The sun", "-n", 4, "--json", "--logprobs", 2, "--seed", 5).records
    assert found.keys() == documented_keys()
    constant: dict[str, Any] = {
        "schema_version": 1,
        "index": 0,
        "sample": 0,
        "id": None,
        "finish_reason": "length",
        "stop_string": None,
        "stop_token_id": None,
        "seed": 5,
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        "model": str(noise),
        "revision": None,
        "device": "cpu",
        "dtype": "float32",
    }
    assert constant.items() <= found.items()
    timings = found["timings"]
    assert all(timings[f"{part}_s"] > 0 for part in ("load", "prefill", "decode"))
    assert timings["time_to_first_token_s"] >= timings["prefill_s"]
    assert timings["prefill_tokens_per_second"] > 0
    assert timings["decode_tokens_per_second"] > 0
    assert len(found["logprobs"]) == len(found["token_ids"]) == 4
    assert all(len(shown["top"]) == 2 for shown in found["logprobs"])


def test_json_is_one_line_of_utf8_a_result(lines: Path) -> None:
    done = run(lines, "--json", "--num-samples", 3, "--seed", 1, stdin="é".encode())
    assert done.out.count(b"\n") == 3
    assert [record["text"] for record in done.records] == [" moon\n\\ river\r"] * 3
    assert [record["seed"] for record in done.records] == [1, 2, 3]
    assert [record["stop_token_id"] for record in done.records] == [2, 2, 2]
    assert done.err == ""


def test_zero_logprobs_tell_only_the_chosen_tokens(noise: Path) -> None:
    (found,) = run(noise, "The sun", "-n", 3, "--json", "--logprobs", 0).records
    assert [shown["top"] for shown in found["logprobs"]] == [[], [], []]


def test_logprobs_in_a_pipe_are_plain_text_with_a_note(noise: Path) -> None:
    plain = run(noise, "The sun", "-n", 5, "--greedy")
    with_logprobs = run(noise, "The sun", "-n", 5, "--greedy", "--logprobs", 2)
    assert with_logprobs.out == plain.out
    assert "log-probabilities are shown in color on a terminal, or with --json" in with_logprobs.err
    colored = run(noise, "The sun", "-n", 5, "--greedy", "--logprobs", 2, "--color", "always")
    assert re.sub(rb"\x1b\[[0-9;]*m", b"", colored.out) == plain.out != colored.out
    assert colored.err == ""


def test_stats_go_to_stderr(noise: Path) -> None:
    done = run(noise, "The sun", "-n", 5, "--seed", 3, "--stats", "--greedy")
    assert done.out == run(noise, "The sun", "-n", 5, "--greedy").out
    rows = dict(re.split(r" {2,}| (?=\d)", line, maxsplit=1) for line in done.err.splitlines())
    assert list(rows) == [
        *("load", "prefill", "first token", "decode", "peak memory", "seed", "finished by")
    ]
    assert rows["prefill"].startswith("3 tokens in ")
    assert rows["decode"].startswith("4 tokens in ")
    assert rows["peak memory"].endswith(" GB")
    assert rows["seed"] == "3"
    assert rows["finished by"] == "length"


def test_stats_tell_what_ended_the_texts(lines: Path) -> None:
    done = run(lines, "The sun", "--stats", "--num-samples", 2)
    assert "finished by  eos:2 </s> (2)" in done.err
    stopped = run(lines, "The sun", "--stats", "--stop", "river")
    assert "finished by  stop:'river'" in stopped.err
