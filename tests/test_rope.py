import math

import pytest
import torch
from transformers import LlamaConfig as Reference
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llamacli.config import LlamaConfig
from llamacli.rope import rope_frequencies

SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn-mscale": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024,
        "mscale": 0.7, "mscale_all_dim": 0.5, "truncate": False,
        "beta_fast": 16.0, "beta_slow": 2.0,
    },
    "llama-3.1": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "llama-3.2": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip


def test_default_frequencies_by_hand() -> None:
    config = LlamaConfig(hidden_size=8, num_attention_heads=2, rope_theta=100.0)
    assert rope_frequencies(config) == ([1.0, pytest.approx(0.1)], 1.0)


def test_linear_scaling_divides_by_the_factor() -> None:
    config = LlamaConfig(
        hidden_size=8, num_attention_heads=2, rope_scaling={"type": "linear", "factor": 4.0}
    )
    assert rope_frequencies(config)[0][0] == 0.25


def test_factor_32_and_8_differ_where_the_wavelength_is_long() -> None:
    slowest = [
        rope_frequencies(LlamaConfig(rope_theta=5e5, rope_scaling=SCALINGS[name]))[0][-1]
        for name in ("llama-3.1", "llama-3.2")
    ]
    assert slowest[0] == pytest.approx(4 * slowest[1])
    assert 2 * math.pi / slowest[0] > 8192


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("seq_len", [10, 5000])
def test_frequencies_equal_those_of_transformers(name: str, seq_len: int) -> None:
    theirs = Reference(rope_theta=5e5, rope_scaling=dict(SCALINGS[name]), head_dim=64)
    compute = ROPE_INIT_FUNCTIONS[theirs.rope_parameters["rope_type"]]
    expected, expected_factor = compute(theirs, seq_len=seq_len)
    ours, factor = rope_frequencies(LlamaConfig.from_dict(theirs.to_dict()), seq_len)
    torch.testing.assert_close(torch.tensor(ours), expected, rtol=2e-5, atol=0)
    assert factor == pytest.approx(expected_factor)
