"""LlamaConfig: config.json in, validated, derived sizes.

Both dialects of config.json are read: `rope_theta` + `rope_scaling` + `torch_dtype`
(transformers 4) and `rope_parameters` + `dtype` (transformers 5). The older one is written,
which both read. Every number is checked against bounds before anything is allocated.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from llamacli.errors import ConfigError, first_five, printable
from llamacli.json_files import read_json_object
from llamacli.labels import PROBLEM_TYPES, labels_by_id

logger = logging.getLogger(__name__)

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
DTYPES = ("float32", "bfloat16", "float16", "float64")

# Inclusive bounds of the integers: far above every published Llama, far below trouble.
_INTEGER_BOUNDS = {
    "vocab_size": (1, 2**24),
    "hidden_size": (1, 2**17),
    "intermediate_size": (1, 2**20),
    "num_hidden_layers": (1, 512),
    "num_attention_heads": (1, 4096),
    "num_key_value_heads": (1, 4096),
    "head_dim": (2, 4096),
    "max_position_embeddings": (1, 2**63),
}

# Keys of config.json that say nothing about the computation, or must not be obeyed (auto_map).
_IGNORED_KEYS = frozenset(
    """_attn_implementation_autoset _attn_implementation_internal _name_or_path
    add_cross_attention architectures attn_implementation auto_map bad_words_ids
    begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id is_decoder is_encoder_decoder label2id
    length_penalty max_length max_new_tokens min_length model_type no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores prefix pruned_heads remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k
    top_p torchscript transformers_version trust_remote_code typical_p use_bfloat16
    unsloth_version unsloth_fixed chat_template""".split()
)


def _fail(key: str, expected: str, value: object) -> ConfigError:
    return ConfigError(f"config: {key} must be {expected}, got {printable(repr(value))}")


def _check_number(key: str, value: Any, expected: str, low: float, high: float) -> None:
    """Refuse all but a finite number in the open interval (low, high)."""
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    if not (usable and math.isfinite(value) and low < value < high):
        raise _fail(key, expected, value)


def _check_integer(key: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _fail(key, f"an integer from {low} to {high}", value)


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are changed for contexts longer than the original one.

    The formulas are in `rope.py`. A field that the type does not use stays None.

    Raises:
        ConfigError: an unknown type, or a number missing or out of its range.
    """

    rope_type: str = "default"
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise _fail("rope_type", "one of " + ", ".join(ROPE_TYPES), self.rope_type)
        if self.rope_type in ("linear", "dynamic", "llama3"):
            _check_number("rope_scaling.factor", self.factor, "a number above 0", 0, math.inf)
        for name in ("factor", "beta_fast", "beta_slow", "attention_factor"):
            if (value := getattr(self, name)) is not None:
                _check_number(f"rope_scaling.{name}", value, "a number above 0", 0, math.inf)
        for name in ("mscale", "mscale_all_dim"):
            if (value := getattr(self, name)) is not None:
                _check_number(f"rope_scaling.{name}", value, "a number of 0 or more", -1e-9, 1e9)
        if (length := self.original_max_position_embeddings) is not None:
            _check_integer("rope_scaling.original_max_position_embeddings", length, 1, 2**63)
        if not isinstance(self.truncate, bool):
            raise _fail("rope_scaling.truncate", "true or false", self.truncate)
        if self.rope_type == "llama3":
            self._check_frequency_factors()

    def _check_frequency_factors(self) -> None:
        # Meta's own code has 1 and 4 as constants.
        low = 1.0 if self.low_freq_factor is None else self.low_freq_factor
        high = 4.0 if self.high_freq_factor is None else self.high_freq_factor
        _check_number("rope_scaling.low_freq_factor", low, "a number above 0", 0, math.inf)
        expected = f"a number above low_freq_factor {low}"
        _check_number("rope_scaling.high_freq_factor", high, expected, low, math.inf)

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Read `rope_scaling` or `rope_parameters`; `type` is the old name of `rope_type`."""
        if not isinstance(values, Mapping):
            raise _fail("rope_scaling", "an object or null", values)
        known = dict(values)
        known.setdefault("rope_type", known.pop("type", "default"))
        known.pop("type", None)
        known.pop("rope_theta", None)
        if known.pop("partial_rotary_factor", 1.0) not in (None, 1):
            raise _fail("partial_rotary_factor", "1", values["partial_rotary_factor"])
        names = {field.name for field in dataclasses.fields(cls)}
        _report_unknown("rope_scaling", known.keys() - names)
        return cls(**{key: value for key, value in known.items() if key in names})


def _report_unknown(where: str, keys: set[str]) -> None:
    if keys:
        logger.warning("%s: unknown keys are ignored: %s", where, first_five(sorted(keys)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """The sizes and constants of one Llama, named as in config.json.

    Args:
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        num_hidden_layers: decoder layers.
        num_attention_heads: query heads.
        num_key_value_heads: key/value heads (GQA, arXiv:2305.13245); None means one a query head.
        head_dim: width of a head; None means hidden_size / num_attention_heads.
        hidden_act: activation of the MLP's gate.
        max_position_embeddings: context length in tokens.
        initializer_range: standard deviation of random weights.
        rms_norm_eps: added to the mean square in RMSNorm.
        use_cache: give a cache where a call does not say. pretraining_tp: for other tools.
        pad_token_id, bos_token_id, eos_token_id: special ids; several EOS ids are allowed.
        tie_word_embeddings: lm_head is the embedding.
        rope_theta: base of the rotary frequencies.
        rope_scaling: a mapping or RopeScaling; None means the default frequencies.
        attention_bias, mlp_bias: whether the projections have biases.
        attention_dropout: dropout of attention weights in training.
        dtype: type of the weights on disk.
        quantization_config: how the weights on disk are quantized.
        num_labels, id2label: how many labels a classifier has, and their names.
        problem_type, classifier_dropout: of a classifier in training, see `heads.py`.

    Raises:
        ConfigError: a value of the wrong type, out of bounds, or in conflict with another.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pretraining_tp: int | None = 1
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    dtype: str | None = None
    quantization_config: Mapping[str, object] | None = None
    num_labels: int | None = None
    id2label: Mapping[int, str] | None = None
    problem_type: str | None = None
    classifier_dropout: float | None = None

    def __post_init__(self) -> None:
        self._normalize()
        self._check_sizes()
        self._check_rest()

    @property
    def kv_heads(self) -> int:
        """num_key_value_heads, filled in where config.json leaves it out."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """head_dim, filled in where config.json leaves it out."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def context_length(self) -> int:
        """Tokens that the model can hold: linear and dynamic scaling extend the trained length."""
        scaling = self.rope_scaling
        if scaling is not None and scaling.rope_type in ("linear", "dynamic"):
            return int(self.max_position_embeddings * max(scaling.factor or 1.0, 1.0))
        return self.max_position_embeddings

    @property
    def rope_follows_length(self) -> bool:
        """Whether rotary frequencies follow the length of the text, so that tables do not last."""
        return self.rope_scaling is not None and self.rope_scaling.rope_type == "dynamic"

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Every end-of-sequence id that the config names."""
        ids = self.eos_token_id
        if ids is None:
            return frozenset()
        return frozenset((ids,) if isinstance(ids, int) else ids)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _normalize(self) -> None:
        if isinstance(self.rope_scaling, Mapping):
            self._set("rope_scaling", RopeScaling.from_dict(self.rope_scaling))
        if self.rope_scaling is not None and self.rope_scaling.rope_type == "default":
            self._set("rope_scaling", None)
        if isinstance(self.eos_token_id, list | tuple):
            self._set("eos_token_id", tuple(self.eos_token_id))
        if isinstance(self.dtype, str):
            self._set("dtype", self.dtype.removeprefix("torch."))
        self._set("id2label", labels_by_id(self.id2label, self.num_labels))
        self._set("num_labels", len(self.id2label or ()))

    def _check_sizes(self) -> None:
        for key, (low, high) in _INTEGER_BOUNDS.items():
            value = getattr(self, key)
            if value is None and key in ("num_key_value_heads", "head_dim"):
                continue
            _check_integer(key, value, low, high)
        hidden, heads = self.hidden_size, self.num_attention_heads
        if hidden % heads and self.head_dim is None:
            raise _fail("hidden_size", f"a multiple of num_attention_heads ({heads})", hidden)
        if heads % self.kv_heads:
            raise _fail("num_key_value_heads", f"a divisor of {heads} query heads", self.kv_heads)
        if self.head_size % 2:
            raise _fail("head_dim", "even (rotary halves)", self.head_size)
        self._set("num_key_value_heads", self.kv_heads)
        self._set("head_dim", self.head_size)

    def _check_rest(self) -> None:
        _check_number("rms_norm_eps", self.rms_norm_eps, "a number above 0 and below 1", 0, 1)
        _check_number("rope_theta", self.rope_theta, "a number above 0", 0, math.inf)
        _check_number("initializer_range", self.initializer_range, "from 0 to 1", -1e-9, 1.0001)
        _check_number("attention_dropout", self.attention_dropout, "in [0, 1)", -1e-9, 1)
        for key in ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_cache"):
            if not isinstance(getattr(self, key), bool):
                raise _fail(key, "true or false", getattr(self, key))
        if self.hidden_act not in ACTIVATIONS:
            raise _fail("hidden_act", "one of " + ", ".join(ACTIVATIONS), self.hidden_act)
        for key, known in (("dtype", DTYPES), ("problem_type", PROBLEM_TYPES)):
            if getattr(self, key) not in (None, *known):
                raise _fail(key, "one of " + ", ".join(known), getattr(self, key))
        if self.classifier_dropout is not None:
            _check_number("classifier_dropout", self.classifier_dropout, "in [0, 1)", -1e-9, 1)
        for key in ("pad_token_id", "bos_token_id"):
            if (value := getattr(self, key)) is not None:
                _check_integer(key, value, -1, self.vocab_size - 1)
        eos = self.eos_token_id
        for value in eos if isinstance(eos, tuple) else (eos,) if eos is not None else ():
            _check_integer("eos_token_id", value, -1, self.vocab_size - 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from the content of config.json, in either dialect.

        Unknown keys are logged. Keys that would run code of the model's folder are ignored.

        Raises:
            ConfigError: not a Llama, or as the class.
        """
        _require_llama(values)
        known = dict(values)
        rope = known.pop("rope_parameters", None) or known.get("rope_scaling")
        if isinstance(rope, Mapping) and rope.get("rope_theta") is not None:
            known["rope_theta"] = rope["rope_theta"]
        known["rope_scaling"] = None if rope is None else RopeScaling.from_dict(rope)
        new, old = known.pop("dtype", None), known.pop("torch_dtype", None)
        names = {field.name for field in dataclasses.fields(cls)}
        _report_unknown("config", known.keys() - names - _IGNORED_KEYS)
        fields = {key: value for key, value in known.items() if key in names}
        return cls(**fields, dtype=new or old)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a config.json.

        Raises:
            NotFoundError, LocalIOError, ConfigError: as `read_json_object` and `from_dict`.
        """
        return cls.from_dict(read_json_object(path, error=ConfigError))

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json, in the dialect that every transformers reads."""
        values = dataclasses.asdict(self)
        values["torch_dtype"] = values.pop("dtype")
        if self.rope_scaling is not None:
            scaling = values["rope_scaling"]
            defaults = dataclasses.asdict(RopeScaling())
            kept = {k: v for k, v in scaling.items() if v != defaults[k]}
            values["rope_scaling"] = kept
        if isinstance(self.eos_token_id, tuple):
            values["eos_token_id"] = list(self.eos_token_id)
        del values["num_labels"]  # follows from the names
        if self.id2label == labels_by_id(None, None):
            del values["id2label"]
        # null is left out only where that means null, too: no eos_token_id would mean 2.
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        given = {k: v for k, v in values.items() if v is not None or defaults.get(k) is not None}
        return {"model_type": "llama", **given}


def _require_llama(values: Mapping[str, Any]) -> None:
    model_type = values.get("model_type")
    architectures = values.get("architectures") or []
    if not isinstance(architectures, list):
        raise _fail("architectures", "a list", architectures)
    if model_type is None and not architectures:
        raise ConfigError("config: neither model_type nor architectures says that this is a Llama")
    for name in [model_type] * (model_type is not None) + architectures:
        if not (isinstance(name, str) and name.lower().startswith("llama")):
            raise ConfigError(f"only Llama models are supported; the config says {printable(name)}")
