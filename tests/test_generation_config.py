import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig as Reference

from llamacli.errors import RequestError
from llamacli.generation_config import META_DEFAULTS, GenerationConfig
from llamacli.request import SamplingParams


@pytest.fixture(autouse=True)
def _warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "llamacli")


def read(folder: Path, content: object) -> GenerationConfig:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "generation_config.json").write_text(text)
    return GenerationConfig.from_folder(folder)


# ---------------------------------------------------------------------------------------- read


def test_a_llama_3_file_is_read_without_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = {
        "bos_token_id": 128000,
        "do_sample": True,
        "eos_token_id": [128001, 128008, 128009],
        "temperature": 0.6,
        "top_p": 0.9,
        "max_length": 4096,
        "transformers_version": "4.45.0.dev0",
    }
    found = read(tmp_path, content)
    assert found.eos_token_ids == {128001, 128008, 128009}
    assert found.sampling == {"temperature": 0.6, "top_p": 0.9}
    assert caplog.text == ""


@pytest.mark.parametrize("content", [{}, {"eos_token_id": None, "temperature": None}, None])
def test_what_is_not_there_is_left_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: object
) -> None:
    found = GenerationConfig.from_folder(tmp_path) if content is None else read(tmp_path, content)
    assert found == GenerationConfig()
    assert caplog.text == ""


def test_a_model_that_does_not_sample_is_greedy(tmp_path: Path) -> None:
    found = read(tmp_path, {"do_sample": False, "temperature": 0.6, "top_p": 0.9})
    params, _ = found.resolve()
    assert (params.temperature, params.top_p) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("eos", "kept"),
    [
        pytest.param("2", set(), id="fault-040-eos-text"),
        pytest.param(-1, set(), id="fault-040-eos-negative"),
        pytest.param(True, set(), id="fault-040-eos-bool"),
        pytest.param(2.5, set(), id="fault-040-eos-fraction"),
        pytest.param(2**40, set(), id="fault-040-eos-huge"),
        pytest.param({"a": 1}, set(), id="fault-040-eos-object"),
        pytest.param([2, "x", None, 7], {2, 7}, id="fault-040-eos-mixed"),
    ],
)
def test_an_id_that_cannot_end_a_text_is_left_out_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, eos: object, kept: set[int]
) -> None:
    found = read(tmp_path, {"eos_token_id": eos, "top_k": 7})
    assert found == GenerationConfig(eos_token_ids=frozenset(kept), sampling={"top_k": 7})
    assert "eos_token_id" in caplog.text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("temperature", "hot", id="fault-040-temperature-text"),
        pytest.param("temperature", -1, id="fault-040-temperature-negative"),
        pytest.param("temperature", True, id="fault-040-temperature-bool"),
        pytest.param("top_p", 1.5, id="fault-040-top-p"),
        pytest.param("top_k", -1, id="fault-040-top-k"),
        pytest.param("top_k", 5.5, id="fault-040-top-k-fraction"),
        pytest.param("repetition_penalty", 0, id="fault-040-repetition-penalty"),
        pytest.param("min_p", [0.1], id="fault-040-min-p"),
        pytest.param("no_repeat_ngram_size", "\x1b[2J", id="fault-040-escape"),
    ],
)
def test_a_value_that_no_flag_may_have_is_left_out_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, value: object
) -> None:
    found = read(tmp_path, {key: value, "eos_token_id": 5, "typical_p": 0.5})
    assert found == GenerationConfig(eos_token_ids=frozenset({5}), sampling={"typical_p": 0.5})
    assert key in caplog.text
    assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('{"temperature": NaN}', id="fault-040-nan"),
        pytest.param('{"top_k": 1, "top_k": 2}', id="fault-040-twice"),
        pytest.param('{"temperature": 0.6,}', id="fault-040-comma"),  # Llama 3.2 once had this
        pytest.param("[]", id="fault-040-list"),
        pytest.param("", id="fault-040-empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_left_out_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    assert read(tmp_path, text) == GenerationConfig()
    assert "generation_config.json is left out" in caplog.text


# ------------------------------------------------------------------------------------- resolve


def test_the_user_wins_over_the_model_and_the_model_over_meta() -> None:
    model = GenerationConfig(sampling={"temperature": 0.3, "top_k": 20})
    params, origins = model.resolve(top_k=5, seed=1, top_p=None)
    assert params == SamplingParams(temperature=0.3, top_k=5, seed=1)
    assert origins["top_k"] == origins["seed"] == "user"
    assert origins["temperature"] == "generation_config.json"
    assert origins["top_p"] == origins["min_p"] == "default"


def test_a_model_that_names_nothing_is_sampled_as_meta_does() -> None:
    params, origins = GenerationConfig().resolve(top_k=5)
    assert params == SamplingParams(top_k=5, **META_DEFAULTS)
    assert origins["temperature"] == origins["top_p"] == "Meta's reference"


def test_every_parameter_has_an_origin() -> None:
    _, origins = GenerationConfig().resolve()
    assert list(origins) == list(SamplingParams.__dataclass_fields__)


def test_zero_and_false_are_values_that_a_user_gave() -> None:
    model = GenerationConfig(sampling={"temperature": 0.3, "top_k": 20})
    params, origins = model.resolve(temperature=0.0, top_k=0, ignore_eos=False)
    assert (params.temperature, params.top_k) == (0.0, 0)
    assert origins["temperature"] == origins["ignore_eos"] == "user"


def test_what_the_user_gave_is_checked() -> None:
    with pytest.raises(RequestError, match="top_p must be a number above 0"):
        GenerationConfig().resolve(top_p=2)


# ---------------------------------------------------------------------------------------- save

SAVED: list[dict[str, Any]] = [
    {},
    {"eos_token_ids": frozenset({2, 7})},
    {"sampling": {"temperature": 0.6, "top_p": 0.9, "top_k": 5}},
    {"sampling": {"temperature": 0.0}, "eos_token_ids": frozenset({1})},
]


@pytest.mark.parametrize("values", SAVED)
def test_what_is_saved_reads_the_same_here_and_is_valid_in_transformers(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    config = GenerationConfig(**values)
    assert read(tmp_path, config.to_dict()) == config
    theirs = Reference.from_pretrained(tmp_path)
    theirs.validate(strict=True)
    assert bool(theirs.do_sample) == bool(config.sampling.get("temperature"))
