"""What the user asked for, validated once: SamplingParams and GenerationRequest."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from llamacli.errors import RequestError

MAX_SEED = 2**63 - 1


class Message(TypedDict):
    """One turn of a chat: role is system, user, assistant or what the model's template knows."""

    role: str
    content: str


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise RequestError(f"{name} must be {expected}, got {got!r}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen and when to stop. The values that mean "off" are the defaults.

    The names are Hugging Face's. The order in which they act is written in `sampling.py`.

    Attributes:
        max_new_tokens: upper bound of generated tokens; None means up to the model's context.
        min_new_tokens: no end-of-sequence token before so many tokens.
        temperature: divides the logits; 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set with probability mass p (arXiv:1904.09751).
        min_p: drop tokens below p times the best probability (arXiv:2407.01082).
        typical_p: keep the locally typical set with mass p (arXiv:2202.00666).
        repetition_penalty: divides positive, multiplies negative logits of tokens seen in prompt
            and output (arXiv:1909.05858).
        presence_penalty: subtracted once from logits of generated tokens.
        frequency_penalty: subtracted once per occurrence among generated tokens.
        no_repeat_ngram_size: no n-gram of this size occurs twice; 0 is off.
        logit_bias: added to the logits, by token id; -inf bans the token.
        sequence_bias: added to the logit of a sequence's last token where the others precede it.
        seed: of this request's own random generator; None draws one.
        stop: strings that end the text; they are cut from it.
        ignore_eos: end-of-sequence tokens are never chosen.
        logprobs: number of alternatives to report beside each chosen token; None reports nothing.

    Raises:
        RequestError: a value outside its range.
    """

    max_new_tokens: int | None = 256
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    sequence_bias: Mapping[tuple[int, ...], float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name in ("min_new_tokens", "top_k", "no_repeat_ngram_size"):
            value = getattr(self, name)
            _require(_is_int(value) and value >= 0, name, "an integer of 0 or more", value)
        for name, limit in (("max_new_tokens", None), ("logprobs", 100), ("seed", MAX_SEED)):
            value = getattr(self, name)
            inside = value is None or (
                _is_int(value) and value >= 0 and (limit is None or value <= limit)
            )
            expected = "an integer of 0 or more" if limit is None else f"from 0 to {limit}"
            _require(inside, name, expected, value)
        self._check_numbers()
        self._check_collections()

    def _check_numbers(self) -> None:
        for name in ("temperature", "min_p"):
            value = getattr(self, name)
            _require(_is_finite(value) and value >= 0, name, "a number of 0 or more", value)
        for name in ("top_p", "typical_p"):
            value = getattr(self, name)
            _require(_is_finite(value) and 0 < value <= 1, name, "in (0, 1]", value)
        _require(self.min_p <= 1, "min_p", "in [0, 1]", self.min_p)
        penalty = self.repetition_penalty
        _require(_is_finite(penalty) and penalty > 0, "repetition_penalty", "above 0", penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _require(_is_finite(value), name, "a finite number", value)

    def _check_collections(self) -> None:
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise RequestError(f"stop must be a sequence of non-empty strings, got {self.stop!r}")
        object.__setattr__(self, "stop", tuple(self.stop))
        for bias in (*self.logit_bias.values(), *self.sequence_bias.values()):
            usable = isinstance(bias, int | float) and not math.isnan(bias) and bias != math.inf
            _require(usable, "a logit bias", "a finite number or -inf", bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt as the user gave it, and how to continue it.

    Exactly one of `prompt` (continued as it is) and `messages` (rendered by the chat template)
    is given. `prefill` starts the assistant's answer.

    Raises:
        RequestError: both or none of prompt and messages.
    """

    prompt: str | None = None
    messages: Sequence[Message] | None = None
    prefill: str = ""
    sampling: SamplingParams = field(default_factory=SamplingParams)

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("a request needs either a prompt or messages")
