"""`llamacli run`: how the text is chosen, where it ends, where the values come from."""

import json
import re
from pathlib import Path

import pytest
import torch

from llamacli.model import LlamaForCausalLM
from llamacli.tokenizer import Tokenizer
from llamacli.tokenizer_fast import load_tokenizer
from tests.command_line import TALE, greedy, here, record, refused, run, write_chain

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
    "lookup": ("--lookup", "-1 many"),
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
def test_every_end_of_sequence_id_ends_the_text(changed: Path, file: str) -> None:
    river, dot = load_tokenizer(changed).convert_tokens_to_ids(["▁river", "."])
    settings = json.loads((changed / file).read_text()) if (changed / file).exists() else {}
    end = {"eos_token": "▁river"} if file.startswith("tok") else {"eos_token_id": [dot, river]}
    (changed / file).write_text(json.dumps(settings | end))
    found = record(changed, "The")
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


# ---------------------------------------------------------------------------------------- lookup


@pytest.fixture(scope="module")
def refrain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says the tale again and again."""
    folder = tmp_path_factory.mktemp("models") / "refrain"
    write_chain(folder, TALE, loop=True, max_position_embeddings=256)
    return folder


@pytest.mark.parametrize("limits", [("-n", 100), ("-n", -1), ("--stop", "follows sun mo")], ids=str)
def test_lookup_changes_the_timings_alone(refrain: Path, limits: tuple[object, ...]) -> None:
    told = "The moon sees river. The bird follows sun moon sees river. The"
    asked = (told, "--logprobs", 1, "--seed", 3, *limits)
    plain, drafted = record(refrain, *asked), record(refrain, *asked, "--lookup", 8)
    timings, others = drafted.pop("timings"), plain.pop("timings")
    assert drafted == plain
    assert timings.keys() == others.keys()
    assert timings["drafted_tokens"] >= timings["accepted_tokens"] > 0
    assert others["drafted_tokens"] == others["accepted_tokens"] == 0


def test_stats_tell_how_many_drafted_tokens_were_accepted(refrain: Path) -> None:
    asked = ("-n", 30, "--greedy", "--stats", "--lookup", 4)
    row = r"lookup {7}(\d+) of \1 drafted tokens accepted, 100%"
    assert re.search(row, run(refrain, "The", *asked).err)
    nothing = run(refrain, "The", "-n", 3, "--stats", "--lookup", 4)
    assert "lookup       0 of 0 drafted tokens accepted, 0%" in nothing.err


def test_one_note_tells_that_a_batch_has_no_lookup(refrain: Path) -> None:
    several = ("The", "-n", 2, "--greedy", "--num-samples", 3, "--lookup", 4)
    (line,) = run(refrain, *several, "--batch-size", 2).err.splitlines()
    assert line.startswith("llamacli: note: --lookup")
    assert "--batch-size 1" in line
    assert run(refrain, *several, "--batch-size", 1).err == ""
    assert run(refrain, *several[:4], "--lookup", 4).err == ""


# ---------------------------------------------------------------------- where the values come from


def shown(model: Path, *args: object) -> dict[str, tuple[object, str]]:
    done = run(model, "--show-config", "--json", *args)
    assert (done.code, done.err) == (0, "")
    settings = json.loads(done.out)["settings"]
    return {name: (setting["value"], setting["from"]) for name, setting in settings.items()}


def test_the_config_shows_where_each_value_came_from(
    changed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(changed)["temperature"] == (0.6, "Meta's reference")
    assert shown(changed)["top_p"] == (0.9, "Meta's reference")
    (changed / "generation_config.json").write_text('{"temperature": 0.8, "top_k": 40}')
    monkeypatch.setenv("LLAMACLI_MIN_P", "0.1")
    found = shown(changed, "--seed", 7, "--stop", "\n", "--logit-bias", "moon=-inf")
    assert found["temperature"] == (0.8, "generation_config.json")
    assert found["top_k"] == (40, "generation_config.json")
    assert found["top_p"] == (1.0, "default")
    assert found["min_p"] == (0.1, "LLAMACLI_MIN_P")
    assert found["seed"] == (7, "--seed")
    assert found["stop"] == (["\n"], "--stop")
    assert found["logit_bias"] == (["moon=-inf"], "--logit-bias")
    assert found["max_new_tokens"] == (256, "default")
    assert shown(changed, "--greedy")["temperature"] == (0.0, "--greedy")
    assert shown(changed, "-n", -1)["max_new_tokens"] == (64, "--max-new-tokens")
    text = run(changed, "--show-config").text
    assert "temperature           0.8         generation_config.json\n" in text


def test_the_models_defaults_are_what_is_sampled_with(changed: Path) -> None:
    (changed / "generation_config.json").write_text('{"do_sample": false}')
    assert shown(changed)["temperature"] == (0.0, "generation_config.json")
    assert record(changed, "The")["token_ids"] == record(changed, "The", "--greedy")["token_ids"]


@pytest.mark.parametrize("text", ["{", "[]", '{"temperature": -1}', '{"eos_token_id": ["x"]}'])
def test_fault_040_a_bad_generation_config_is_noted(changed: Path, text: str) -> None:
    (changed / "generation_config.json").write_text(text)
    done = run(changed, "The", "--stop", "sees")
    assert (done.code, done.out) == (0, b" moon \n")
    (line,) = done.err.splitlines()
    assert line.startswith("llamacli: note: generation_config.json")
    assert "left out" in line


def test_logprobs_are_those_of_the_model_itself(noise: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(noise)
    tokenizer: Tokenizer = load_tokenizer(noise)
    found = record(noise, "The sun", "-n", 6, "--logprobs", 3, "--temperature", 2, "--top-k", 9)
    prompt = tokenizer.encode("The sun")
    ids = torch.tensor([prompt + found["token_ids"]])
    with torch.no_grad():
        logprobs = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)  # (T, V)
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
