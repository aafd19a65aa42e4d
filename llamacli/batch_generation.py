"""A batch of ids in, a batch of longer rows out: `generate` as `transformers` has it."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llamacli.config import LlamaConfig
from llamacli.errors import RequestError, check_choice, printable
from llamacli.generation import CausalLM, Token, TokenStream, stream_text
from llamacli.generation_config import GenerationConfig
from llamacli.request import MAX_SEED, SamplingParams
from llamacli.run_ahead import token_stream
from llamacli.tokenizer import Tokenizer

# What `transformers` takes where neither the caller nor the model says anything.
MAX_NEW_TOKENS = 20
TOP_K = 50

STATIC_CACHE = {"dynamic": False, "static": True}


class Streamer(Protocol):
    """Is given the prompt's ids, then each new id, as `transformers.TextStreamer` is."""

    def put(self, value: Tensor) -> None:
        """(1, T) prompt ids, then (1,) new ids."""

    def end(self) -> None:
        """The last id has been given."""


class Defaults(Protocol):
    """What a model brings of its own: sampling parameters and ids."""

    config: LlamaConfig
    generation_config: GenerationConfig


class CausalLMWithDefaults(CausalLM, Defaults, Protocol):
    """A causal language model that may bring sampling parameters of its own."""


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """What `generate` takes besides sampling parameters.

    Attributes:
        attention_mask: (B, T), 0 where padding stands on the left; None means no padding.
        cache_implementation: "dynamic" or "static".
        do_sample: draw from the distribution, or take the most probable token; None leaves it to
            the model's generation_config.
        num_return_sequences: rows of the result for each row of the prompt.
        max_length: the most tokens of prompt and text together.
        stop_strings: texts that end a row; they stay in it.
        tokenizer: finds them.
        streamer: is given the ids of the only row.
        eos_token_id, pad_token_id: in place of the model's.
    """

    attention_mask: Tensor | None = None
    cache_implementation: str = "dynamic"
    do_sample: bool | None = None
    num_return_sequences: int = 1
    max_length: int | None = None
    stop_strings: str | Iterable[str] | None = None
    tokenizer: Tokenizer | None = None
    streamer: Streamer | None = None
    eos_token_id: int | Iterable[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        check_choice("cache_implementation", self.cache_implementation, STATIC_CACHE)
        if self.stop_strings is not None and self.tokenizer is None:
            raise RequestError("stop_strings are found in text: give generate the tokenizer, too")
        if self.num_return_sequences < 1:
            count = self.num_return_sequences
            raise RequestError(f"num_return_sequences must be 1 or more, got {count}")


def generate_batch(model: CausalLMWithDefaults, input_ids: Tensor, **options: Any) -> Tensor:
    """Continue each row of a batch.

    Args:
        model: the language model.
        input_ids: (B, T), int64, padded on the left where the attention mask is 0.
        options: fields of `BatchOptions` and `SamplingParams`. Where they say nothing, the model's
            generation_config counts, then what `transformers` takes: 20 new tokens, and the 50
            most probable ones to draw from. A seed counts for each row of the prompt alone.

    Returns:
        (B · num_return_sequences, T + the longest row's new tokens): prompt and new ids, padded on
        the right with the pad id, else the first end-of-sequence id.

    Raises:
        TypeError: an option that is not supported, by name.
        RequestError: a value outside its range, or a prompt that fills the context.
    """
    chosen, params = read_options(model, input_ids.shape[1], options)
    rows = _rows(model, input_ids, chosen, params)
    pad = pad_id(model, chosen, eos_ids(model, chosen))
    new_ids = pad_sequence([input_ids.new_tensor(row) for row in rows], True, pad)
    prompts = input_ids.repeat_interleave(chosen.num_return_sequences, dim=0)
    return torch.cat((prompts, new_ids), dim=1)


def generate_rows(
    model: CausalLMWithDefaults, input_ids: Tensor, **options: Any
) -> list[list[int]]:
    """The new ids of each row alone, without padding; arguments and errors as `generate_batch`."""
    return _rows(model, input_ids, *read_options(model, input_ids.shape[1], options))


def _rows(
    model: CausalLMWithDefaults, input_ids: Tensor, chosen: BatchOptions, params: SamplingParams
) -> list[list[int]]:
    count = chosen.num_return_sequences
    prompts = [prompt for prompt in _prompts(input_ids, chosen) for _ in range(count)]
    tokens = token_stream(
        model,
        prompts,
        [replace(params, seed=seed_of(params, row % count)) for row in range(len(prompts))],
        eos_token_ids=eos_ids(model, chosen),
        static_cache=STATIC_CACHE[chosen.cache_implementation],
    )
    return _collect(tokens, input_ids, chosen)


def read_options(
    model: Defaults, prompt_length: int, options: dict[str, Any]
) -> tuple[BatchOptions, SamplingParams]:
    """What `generate` was asked for, after prompts of so many tokens; None says nothing.

    Raises:
        TypeError, RequestError: as `generate_batch`.
    """
    options = {name: value for name, value in options.items() if value is not None}
    names = {field.name for field in fields(BatchOptions)}
    chosen = BatchOptions(**{name: options[name] for name in names & options.keys()})
    asked = {name: value for name, value in options.items() if name not in names}
    if unknown := sorted(asked.keys() - {field.name for field in fields(SamplingParams)}):
        raise TypeError(f"generate does not support {', '.join(map(printable, unknown))}")
    return chosen, _params(model, prompt_length, chosen, asked)


def _params(
    model: Defaults, prompt_length: int, chosen: BatchOptions, asked: dict[str, Any]
) -> SamplingParams:
    defaults = model.generation_config.sampling
    values: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "top_k": TOP_K, **defaults}
    if chosen.max_length is not None:
        if "max_new_tokens" in asked:
            raise RequestError("max_length and max_new_tokens contradict each other")
        if chosen.max_length <= prompt_length:
            message = f"max_length must be above the prompt's {prompt_length:,} tokens"
            raise RequestError(f"{message}, got {chosen.max_length}")
        values["max_new_tokens"] = chosen.max_length - prompt_length
    do_sample = chosen.do_sample
    if do_sample is None:
        do_sample = bool(defaults) and defaults.get("temperature", 1) > 0
    if not do_sample and chosen.num_return_sequences > 1:
        raise RequestError("num_return_sequences above 1 are all the same without do_sample=True")
    stops = chosen.stop_strings or ()
    values |= asked | {"stop": (stops,) if isinstance(stops, str) else tuple(stops)}
    return SamplingParams(**values if do_sample else values | {"temperature": 0.0})


def seed_of(params: SamplingParams, sample: int) -> int | None:
    """Of one of several samples: each has the next; None draws one."""
    return None if params.seed is None else (params.seed + sample) % (MAX_SEED + 1)


def _prompts(input_ids: Tensor, chosen: BatchOptions) -> list[list[int]]:
    keep = chosen.attention_mask
    if keep is None:
        return input_ids.tolist()
    return [ids[kept.bool()].tolist() for ids, kept in zip(input_ids, keep, strict=True)]


def eos_ids(model: Defaults, chosen: BatchOptions) -> frozenset[int]:
    """Ids that end a row."""
    ids = chosen.eos_token_id
    if ids is None:
        return model.config.eos_token_ids | model.generation_config.eos_token_ids
    return frozenset((ids,) if isinstance(ids, int) else ids)


def pad_id(model: Defaults, chosen: BatchOptions, eos_token_ids: frozenset[int]) -> int:
    """The id behind the end of a row."""
    pads = (chosen.pad_token_id, model.config.pad_token_id, min(eos_token_ids, default=0))
    return next(pad for pad in pads if pad is not None)


def _collect(tokens: TokenStream, input_ids: Tensor, chosen: BatchOptions) -> list[list[int]]:
    """The new ids of each row; the streamer is given those of the only one."""
    rows: list[list[int]] = [[] for _ in tokens.prompts]
    streamer = chosen.streamer
    if streamer is not None:
        if len(rows) > 1:
            raise RequestError(f"a streamer is given one row, not {len(rows)}")
        streamer.put(input_ids.cpu())
    for token in _until_stop(tokens, chosen.tokenizer):
        rows[token.row].append(token.id)
        if streamer is not None:
            streamer.put(torch.tensor([token.id]))
    if streamer is not None:
        streamer.end()
    return rows


def _until_stop(tokens: TokenStream, tokenizer: Tokenizer | None) -> Iterable[Token]:
    if tokenizer is None:
        return tokens
    return (piece.token for piece in stream_text(tokens, tokenizer))
