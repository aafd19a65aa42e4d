"""What the user asked for, validated once: SamplingParams and GenerationRequest."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from llamacli.errors import RequestError, printable

MAX_SEED = 2**63 - 1

# Type, inclusive bounds, and the words for them. Beyond 1e6 a number has no use here, and may
# overflow float32.
_BOUNDS = {
    "max_new_tokens": (int, 0, math.inf, "an integer of 0 or more"),
    "min_new_tokens": (int, 0, math.inf, "an integer of 0 or more"),
    "temperature": (int | float, 0, 1e6, "a number from 0 to 1e6"),
    "top_k": (int, 0, math.inf, "an integer of 0 or more"),
    "top_p": (int | float, math.ulp(0), 1, "a number above 0 and at most 1"),
    "min_p": (int | float, 0, 1, "a number from 0 to 1"),
    "typical_p": (int | float, math.ulp(0), 1, "a number above 0 and at most 1"),
    "repetition_penalty": (int | float, 1e-6, 1e6, "a number from 1e-6 to 1e6"),
    "presence_penalty": (int | float, -1e6, 1e6, "a number from -1e6 to 1e6"),
    "frequency_penalty": (int | float, -1e6, 1e6, "a number from -1e6 to 1e6"),
    "no_repeat_ngram_size": (int, 0, math.inf, "an integer of 0 or more"),
    "seed": (int, 0, MAX_SEED, f"an integer from 0 to {MAX_SEED}"),
    "ignore_eos": (bool, False, True, "true or false"),
    "logprobs": (int, 0, 100, "an integer from 0 to 100"),
}
_MAY_BE_NONE = ("max_new_tokens", "seed", "logprobs")


class Message(TypedDict):
    """One turn of a chat: role is system, user, assistant or what the model's template knows."""

    role: str
    content: str


def _error(name: str, expected: str, got: object) -> RequestError:
    return RequestError(f"{name} must be {expected}, got {printable(repr(got))}")


def _is_token_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_bias(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and (-1e6 <= value <= 1e6 or value == -math.inf)


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
        for name in _BOUNDS:
            self._check_bounds(name)
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            expected = f"at most max_new_tokens ({self.max_new_tokens})"
            raise _error("min_new_tokens", expected, self.min_new_tokens)
        self._check_stop()
        self._check_biases()

    def _check_bounds(self, name: str) -> None:
        kind, low, high, expected = _BOUNDS[name]
        value = getattr(self, name)
        if value is None and name in _MAY_BE_NONE:
            return
        # bool is a subclass of int, but True is no number.
        fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        if not (fits and low <= value <= high):
            raise _error(name, expected, value)

    def _check_stop(self) -> None:
        sequence = isinstance(self.stop, Sequence) and not isinstance(self.stop, str)
        if not (sequence and all(isinstance(s, str) and s for s in self.stop)):
            raise _error("stop", "a sequence of non-empty strings", self.stop)
        object.__setattr__(self, "stop", tuple(self.stop))

    def _check_biases(self) -> None:
        for name in ("logit_bias", "sequence_bias"):
            biases = getattr(self, name)
            if not isinstance(biases, Mapping):
                raise _error(name, "a mapping", biases)
            for bias in biases.values():
                if not _is_bias(bias):
                    raise _error(f"a value of {name}", "a number from -1e6 to 1e6 or -inf", bias)
            object.__setattr__(self, name, dict(biases))  # a copy that the caller cannot change
        for token_id in self.logit_bias:
            if not _is_token_id(token_id):
                raise _error("a key of logit_bias", "a token id", token_id)
        for ids in self.sequence_bias:
            if not (isinstance(ids, tuple) and ids and all(map(_is_token_id, ids))):
                raise _error("a key of sequence_bias", "a tuple of token ids", ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt as the user gave it.

    Exactly one of `prompt` (continued as it is) and `messages` (rendered by the chat template)
    is given. `prefill` starts the assistant's answer to the messages.

    Raises:
        RequestError: both or none of prompt and messages, or a prefill without messages.
    """

    prompt: str | None = None
    messages: Sequence[Message] | None = None
    prefill: str = ""

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("a request needs either a prompt or messages")
        if self.prefill and self.messages is None:
            raise RequestError("a prefill starts the answer to messages, but there are none")
        if self.messages is not None:
            object.__setattr__(self, "messages", tuple(self.messages))
            check_messages(self.messages)


def check_messages(messages: Sequence[object]) -> None:
    """Each message must be an object with at least the texts role and content.

    Raises:
        RequestError: names the first that is not, or says that there is none.
    """
    if not messages:
        raise RequestError("there are no messages")
    for index, message in enumerate(messages):
        texts = (
            [message.get(k) for k in ("role", "content")] if isinstance(message, Mapping) else []
        )
        if not (texts and all(isinstance(text, str) for text in texts)):
            raise _error(f"messages[{index}]", "an object with the texts role and content", message)
