import json
import logging
import math
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from llamacli.config import LlamaConfig, RopeScaling
from llamacli.errors import ConfigError, NotFoundError

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def config(**values: object) -> LlamaConfig:
    return LlamaConfig.from_dict({"model_type": "llama", **values})


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_defaults_are_those_of_the_documentation_page() -> None:
    made = LlamaConfig()
    assert (made.vocab_size, made.hidden_size, made.intermediate_size) == (32000, 4096, 11008)
    assert (made.num_hidden_layers, made.kv_heads, made.head_size) == (32, 32, 128)
    assert made.rms_norm_eps == 1e-6
    assert made.rope_theta == 10000.0


def test_both_dialects_mean_the_same() -> None:
    old = config(rope_theta=5e5, rope_scaling=LLAMA3_ROPE, torch_dtype="bfloat16")
    new = config(rope_parameters={**LLAMA3_ROPE, "rope_theta": 5e5}, dtype="bfloat16")
    assert old == new
    assert old.rope_scaling is not None
    assert (old.rope_theta, old.rope_scaling.factor, old.dtype) == (5e5, 8.0, "bfloat16")


def test_type_is_the_old_name_of_rope_type() -> None:
    assert config(rope_scaling={"type": "linear", "factor": 2.0}).rope_scaling == RopeScaling(
        rope_type="linear", factor=2.0
    )


def test_what_is_written_reads_back_equal() -> None:
    made = config(rope_scaling=LLAMA3_ROPE, eos_token_id=[1, 2], num_key_value_heads=8)
    assert LlamaConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_transformers_reads_what_is_written() -> None:
    from transformers import LlamaConfig as Reference

    made = config(rope_theta=5e5, rope_scaling=LLAMA3_ROPE, num_key_value_heads=8)
    theirs = Reference.from_dict(made.to_dict())
    assert theirs.num_key_value_heads == 8
    assert theirs.rope_parameters["rope_theta"] == 5e5
    assert theirs.rope_parameters["factor"] == 8.0
    assert LlamaConfig.from_dict(theirs.to_dict()) == LlamaConfig.from_dict(made.to_dict())


def test_linear_scaling_extends_the_context() -> None:
    scaled = config(max_position_embeddings=2048, rope_scaling={"type": "linear", "factor": 4.0})
    assert scaled.context_length == 8192
    assert config(max_position_embeddings=131072, rope_scaling=LLAMA3_ROPE).context_length == 131072


def test_unknown_keys_are_reported_and_not_fatal(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config(surprise=1, rope_scaling={"rope_type": "linear", "factor": 2.0, "extra\x1b": 3})
    assert "surprise" in caplog.text
    assert "extra\\x1b" in caplog.text


def test_fault_029_missing_empty_broken_or_huge(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"config\.json does not exist"):
        LlamaConfig.from_file(tmp_path / "config.json")
    for content in ("", "{", '{"vocab_size": 1,}', b"\xff\xfe{}", "[]", "3"):
        with pytest.raises(ConfigError, match="config"):
            LlamaConfig.from_file(write(tmp_path, content))
    with pytest.raises(ConfigError, match="line 2, column 1"):
        LlamaConfig.from_file(write(tmp_path, "{\n]"))
    path = write(tmp_path, "{")
    with path.open("r+b") as file:
        file.truncate(10**9)  # sparse
    with pytest.raises(ConfigError, match="larger than 10,000,000 bytes"):
        LlamaConfig.from_file(path)


def test_fault_029_a_byte_order_mark_is_tolerated(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeff{"model_type": "llama", "vocab_size": 7, "eos_token_id": 2}')
    assert LlamaConfig.from_file(path).vocab_size == 7


NUMBERS = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps"]


@given(
    key=st.sampled_from([*NUMBERS, "rope_theta", "max_position_embeddings", "attention_bias"]),
    value=st.sampled_from(["32", "", [], {}, [1], -0.5, -1e9]),
)
def test_fault_030_wrong_types_name_key_and_value(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        config(**{key: value})


@pytest.mark.parametrize("value", [True, 4.0, None])
def test_fault_030_near_integers_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="num_hidden_layers must be an integer"):
        config(num_hidden_layers=value)


@pytest.mark.parametrize("value", [0, -1, 513, 10**9])
def test_fault_031_layers_are_bounded(value: int) -> None:
    with pytest.raises(ConfigError, match=f"num_hidden_layers must be .* got {value}"):
        config(num_hidden_layers=value)


@given(heads=st.integers(1, 64), kv=st.integers(1, 64), hidden=st.integers(1, 512))
def test_fault_032_heads_must_divide(heads: int, kv: int, hidden: int) -> None:
    legal = hidden % heads == 0 and heads % kv == 0 and (hidden // heads) % 2 == 0
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv, "hidden_size": hidden}
    if legal:
        assert config(**sizes).head_size == hidden // heads
    else:
        with pytest.raises(ConfigError):
            config(**sizes)


def test_fault_032_an_odd_head_dim_is_refused() -> None:
    with pytest.raises(ConfigError, match="head_dim must be even"):
        config(head_dim=7)


@pytest.mark.parametrize("value", [0, 2**40])
def test_fault_033_vocabulary_is_bounded(value: int) -> None:
    with pytest.raises(ConfigError, match="vocab_size"):
        config(vocab_size=value)


@pytest.mark.parametrize(
    "text",
    ['{"rope_theta": NaN}', '{"rope_theta": Infinity}', '{"rope_theta": 1e400}',
     '{"vocab_size": ' + "9" * 5000 + "}", '{"vocab_size": 1, "vocab_size": 2}',
     '{"a":' * 100_000],
    ids=["nan", "infinity", "overflow", "digits", "twice", "deep"],
)  # fmt: skip
def test_fault_034_numbers_are_finite_and_keys_unique(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"refused|not valid JSON"):
        LlamaConfig.from_file(write(tmp_path, text))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_theta": math.nan}, "rope_theta"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_scaling": {"type": "magic", "factor": 2.0}}, "default, linear, dynamic"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": -1.0}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": math.nan}}, "factor"),
        ({"rope_scaling": LLAMA3_ROPE | {"low_freq_factor": 9.0}}, "high_freq_factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}, "part"),
    ],
)
def test_fault_035_rope_is_checked(values: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config(**values)


def test_fault_036_context_is_positive_and_may_be_vast() -> None:
    with pytest.raises(ConfigError, match="max_position_embeddings"):
        config(max_position_embeddings=0)
    assert config(max_position_embeddings=2**60).context_length == 2**60


@pytest.mark.parametrize(
    "values",
    [{"rms_norm_eps": 0}, {"rms_norm_eps": -1e-5}, {"hidden_act": "magic"}, {"mlp_bias": "yes"}],
)
def test_fault_037_constants_are_checked(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        config(**values)


@pytest.mark.parametrize(
    "values",
    [{"model_type": "qwen3"}, {"model_type": "llama", "architectures": ["Qwen3ForCausalLM"]}, {}],
)
def test_fault_038_only_llama(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="Llama"):
        LlamaConfig.from_dict(values)


def test_fault_039_code_of_the_folder_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    made = config(
        auto_map={"AutoModel": "evil.Model"},
        trust_remote_code=True,
        _attn_implementation_internal="evil/kernel",
    )
    assert made == config()
    assert not caplog.text


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id", "pad_token_id"])
def test_fault_045_special_ids_are_inside_the_vocabulary(key: str) -> None:
    for value in (32000, "2", 1.5, [-2]):
        with pytest.raises(ConfigError, match=key):
            config(**{key: value})
