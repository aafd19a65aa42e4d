"""Rotary frequencies of every kind that Llama checkpoints use, in plain numbers.

RoPE (arXiv:2104.09864) turns the pair i of a head's D dimensions by position · frequency[i]
radians. The default frequency is theta^(-2i/D); `rope_scaling` changes it for longer contexts.
"""

import math

from llamacli.config import LlamaConfig, RopeScaling


def rope_frequencies(config: LlamaConfig, seq_len: int = 0) -> tuple[list[float], float]:
    """Angular frequency of each pair of a head's dimensions, in radians per position.

    Args:
        config: its `rope_scaling` chooses the formula.
        seq_len: tokens in the sequence so far; only the dynamic type looks at it.

    Returns:
        D/2 frequencies, and the factor that cos and sin are multiplied with.
    """
    scaling = config.rope_scaling or RopeScaling()
    theta, dim, length = config.rope_theta, config.head_size, config.max_position_embeddings
    factor = scaling.factor or 1.0
    if scaling.rope_type == "dynamic" and seq_len > length and dim > 2:
        # NTK-aware scaling: the base grows with the length (arXiv:2309.00071, section 3.1).
        theta *= (factor * seq_len / length - (factor - 1)) ** (dim / (dim - 2))
    frequencies = [theta ** (-i / dim) for i in range(0, dim, 2)]
    if scaling.rope_type == "linear":  # position interpolation, arXiv:2306.15595
        return [f / factor for f in frequencies], 1.0
    if scaling.rope_type == "llama3":
        return _llama3(frequencies, scaling, length), 1.0
    if scaling.rope_type == "yarn":
        return _yarn(frequencies, scaling, config)
    return frequencies, 1.0


def _clamp(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _blend(frequencies: list[float], keep: list[float], factor: float) -> list[float]:
    """Each frequency as it is where keep = 1, divided by the factor where keep = 0."""
    return [k * f + (1 - k) * f / factor for k, f in zip(keep, frequencies, strict=True)]


def _llama3(frequencies: list[float], scaling: RopeScaling, length: int) -> list[float]:
    """Keep the short wavelengths, divide the long ones (Llama 3.1, `apply_scaling`)."""
    low, high = scaling.low_freq_factor or 1.0, scaling.high_freq_factor or 4.0
    original = scaling.original_max_position_embeddings or length
    turns = [original * f / (2 * math.pi) for f in frequencies]
    keep = [_clamp((turn - low) / (high - low)) for turn in turns]
    return _blend(frequencies, keep, scaling.factor or 1.0)


def _yarn(
    frequencies: list[float], scaling: RopeScaling, config: LlamaConfig
) -> tuple[list[float], float]:
    """Interpolate by the turns made within the original context (arXiv:2309.00071, 3.2)."""
    dim, context = config.head_size, config.max_position_embeddings
    original = scaling.original_max_position_embeddings or context
    factor = scaling.factor or context / original

    def dimension_of(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = dimension_of(scaling.beta_fast or 32), dimension_of(scaling.beta_slow or 1)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    keep = [1 - _clamp((i - low) / (high - low or 0.001)) for i in range(dim // 2)]
    return _blend(frequencies, keep, factor), _yarn_attention_factor(scaling, factor)


def _yarn_attention_factor(scaling: RopeScaling, factor: float) -> float:
    """The softmax temperature, moved into cos and sin (arXiv:2309.00071, section 3.3)."""

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)
