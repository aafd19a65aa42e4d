"""A batch of ids in, a batch of longer rows out: the whole loop of `generate` as one program.

XLA compiles a program for each shape. So prompts are padded on the left, and the room for new
tokens is rounded up, to one of few lengths: what differs within these is not compiled again, nor
are other sampling parameters. Rows never influence each other: each has its own random numbers.
"""

import secrets
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from llamacli.batch_generation import (
    BatchOptions,
    Defaults,
    eos_ids,
    pad_id,
    read_options,
    seed_of,
)
from llamacli.context_window import token_budget
from llamacli.errors import CheckpointError, printable
from llamacli.flax_cache import FlaxKVCache
from llamacli.flax_outputs import FlaxGenerateOutput
from llamacli.logits_filters import GREEDY_TEMPERATURE
from llamacli.request import SamplingParams

Array = np.ndarray[Any, Any]

SMALLEST_BUCKET = 16

# What the loop can do; all other options must be left alone.
_SUPPORTED = frozenset(
    """attention_mask cache_implementation do_sample num_return_sequences max_length eos_token_id
    pad_token_id max_new_tokens min_new_tokens temperature top_k top_p min_p repetition_penalty
    seed ignore_eos""".split()
)
_PLAIN = SamplingParams()
_OTHERS = SamplingParams.__dataclass_fields__.keys() - _SUPPORTED


class FlaxCausalLM(Defaults, Protocol):
    """A Flax language model with its parameters, and its `compiled_loop`."""

    params: Any
    loop: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class _Choice:
    """How tokens are chosen: numbers that may differ from call to call.

    Attributes:
        keys: (B, 2) uint32, of each row's random numbers.
        budgets: (B,) new tokens of each row.
        is_eos: (V,) whether an id ends a row.
        min_new_tokens: before so many none is chosen.
    """

    keys: Any
    budgets: Any
    is_eos: Any
    min_new_tokens: Any
    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any
    repetition_penalty: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class _State:
    """Of the loop, with `count` tokens chosen.

    Attributes:
        last: (B,) ids chosen last.
        new_ids: (B, steps).
        lengths: (B,) new ids of each row.
        going_on: (B,).
        seen: (B, V) whether an id stands in the prompt or in what was chosen.
        is_finite: whether all logits were.
    """

    count: jax.Array
    cache: FlaxKVCache
    last: jax.Array
    new_ids: jax.Array
    lengths: jax.Array
    going_on: jax.Array
    seen: jax.Array
    is_finite: jax.Array


def generate(
    model: FlaxCausalLM, input_ids: Any, *, params: Any = None, **options: Any
) -> FlaxGenerateOutput:
    """Continue each row of a batch.

    Args:
        model: the language model.
        input_ids: (B, T), padded on the left where the attention mask is 0.
        params: in place of the model's own.
        options: as `generate_batch`, without texts: no stop_strings, tokenizer and streamer; and of
            the sampling parameters those in `_SUPPORTED`. The cache is always static.

    Returns:
        `sequences` as `generate_batch` gives them.

    Raises:
        TypeError: an option, or a default of the model, that is not supported, by name.
        RequestError: a value outside its range, or a prompt that fills the context.
        CheckpointError: the logits are NaN or infinite.
    """
    _refuse(options.keys() - _SUPPORTED)
    ids = np.asarray(input_ids, np.int32)
    chosen, sampling = read_options(model, ids.shape[1], options)
    _refuse({name for name in _OTHERS if getattr(sampling, name) != getattr(_PLAIN, name)})
    ids = ids.repeat(chosen.num_return_sequences, axis=0)
    prompt, is_token = _prompts(ids, chosen)
    eos = eos_ids(model, chosen)
    budgets = [
        token_budget(model.config.context_length, int(length), sampling.max_new_tokens)
        for length in is_token.sum(axis=1)
    ]
    state = model.loop(
        model.params if params is None else params,
        prompt,
        is_token,
        _choice(model, sampling, eos, budgets, chosen.num_return_sequences),
        steps=bucket(max(budgets)),
        sampled=sampling.temperature >= GREEDY_TEMPERATURE,
    )
    if not state.is_finite:
        raise CheckpointError(
            "the model produced logits that are not finite",
            hint="the weights are damaged or the dtype is too narrow: try float32",
        )
    new_ids = np.asarray(state.new_ids)[:, : int(state.count)]
    written = np.arange(new_ids.shape[1]) < np.asarray(state.lengths)[:, None]
    new_ids = np.where(written, new_ids, pad_id(model, chosen, eos))
    return FlaxGenerateOutput(sequences=jax.device_put(np.concatenate((ids, new_ids), axis=1)))


def _refuse(names: Collection[str]) -> None:
    if names:
        shown = ", ".join(map(printable, sorted(names)))
        raise TypeError(f"generate of a Flax twin does not support {shown}")


def bucket(length: int) -> int:
    """The length that stands for this one: the next power of two."""
    return 1 << max(length - 1, SMALLEST_BUCKET - 1).bit_length()


def _prompts(ids: Array, chosen: BatchOptions) -> tuple[Array, Array]:
    """The ids (B, T') with room on the left, and (B, T') where they are no padding."""
    keep = np.ones_like(ids, bool)
    if chosen.attention_mask is not None:
        mask = np.asarray(chosen.attention_mask).astype(bool)
        keep = mask.repeat(chosen.num_return_sequences, axis=0)
    width = bucket(ids.shape[1])
    prompt, is_token = np.zeros((len(ids), width), np.int32), np.zeros((len(ids), width), bool)
    for row, (values, kept) in enumerate(zip(ids, keep, strict=True)):
        if count := int(kept.sum()):
            prompt[row, -count:], is_token[row, -count:] = values[kept], True
    return prompt, is_token


def _choice(
    model: FlaxCausalLM, params: SamplingParams, eos: frozenset[int], budgets: list[int], count: int
) -> _Choice:
    size = model.config.vocab_size
    is_eos = np.zeros(size, bool)
    is_eos[[i for i in eos if i < size]] = True
    seeds = [seed_of(params, row % count) for row in range(len(budgets))]
    drawn = [secrets.randbits(63) if seed is None else seed for seed in seeds]
    return _Choice(
        keys=np.array([divmod(seed, 2**32) for seed in drawn], np.uint32),
        budgets=np.array(budgets, np.int32),
        is_eos=is_eos,
        min_new_tokens=np.int32(2**31 - 1 if params.ignore_eos else params.min_new_tokens),
        temperature=np.float32(params.temperature),
        top_k=np.int32(params.top_k or size),
        top_p=np.float32(params.top_p),
        min_p=np.float32(params.min_p),
        repetition_penalty=np.float32(params.repetition_penalty),
    )


# ----------------------------------------------------------------------------------------------
# What is compiled


def compiled_loop(module: nn.Module) -> Any:
    """`_loop` of a module; compiled once for each shape, number of steps, and way to choose."""
    return jax.jit(partial(_loop, module), static_argnames=("steps", "sampled"))


def _loop(
    module: nn.Module,
    params: Any,
    prompt: jax.Array,
    is_token: jax.Array,
    choice: _Choice,
    *,
    steps: int,
    sampled: bool,
) -> _State:
    """Prefill, then one token after the other until each row has ended.

    Args:
        module: of the language model.
        params: its parameters.
        prompt: (B, T) ids, padded on the left.
        is_token: (B, T) bool, False for padding.
        choice: how tokens are chosen.
        steps: the most new tokens that there is room for.
        sampled: draw tokens; else the most probable is taken.
    """

    def step(ids: jax.Array, cache: FlaxKVCache) -> tuple[jax.Array, FlaxKVCache]:
        outputs = module.apply({"params": params}, ids, is_token, None, cache, logits_to_keep=1)
        return outputs.logits[:, -1].astype(jnp.float32), outputs.past_key_values

    def body(state: _State) -> _State:
        logits, cache = step(state.last[:, None], state.cache)
        return _choose(replace(state, cache=cache), logits, choice, sampled=sampled)

    rows, length = prompt.shape
    dtype = jax.tree.leaves(params)[0].dtype
    logits, cache = step(prompt, FlaxKVCache.empty(module.config, rows, length + steps, dtype))
    state = _State(
        count=jnp.zeros((), jnp.int32),
        cache=cache,
        last=prompt[:, -1],
        new_ids=jnp.zeros((rows, steps), jnp.int32),
        lengths=jnp.zeros(rows, jnp.int32),
        going_on=choice.budgets > 0,
        seen=jnp.zeros((rows, logits.shape[-1]), bool).at[_rows(rows), prompt].max(is_token),
        is_finite=jnp.ones((), bool),
    )
    state = _choose(state, logits, choice, sampled=sampled)
    state = lax.while_loop(lambda state: state.going_on.any(), body, state)
    return state


def _rows(count: int) -> jax.Array:
    return jnp.arange(count)[:, None]


def _choose(state: _State, logits: jax.Array, choice: _Choice, *, sampled: bool) -> _State:
    """One more token in each row that goes on, from logits (B, V)."""
    processed = _process(state, logits, choice)
    chosen = _draw(processed, state, choice) if sampled else processed.argmax(-1)
    lengths = state.lengths + state.going_on
    ends = choice.is_eos[chosen] | (lengths >= choice.budgets)
    return replace(
        state,
        count=state.count + 1,
        last=chosen,
        new_ids=state.new_ids.at[:, state.count].set(chosen),
        lengths=lengths,
        going_on=state.going_on & ~ends,
        seen=state.seen.at[_rows(len(chosen)), chosen[:, None]].set(True),
        is_finite=state.is_finite & jnp.isfinite(logits.max()),
    )


def _process(state: _State, logits: jax.Array, choice: _Choice) -> jax.Array:
    """The processors of `sampling.py` in their order: repetition penalty, no end of sequence."""
    penalty = choice.repetition_penalty
    penalized = jnp.where(logits < 0, logits * penalty, logits / penalty)
    logits = jnp.where(state.seen, penalized, logits)
    return jnp.where(choice.is_eos & (state.count < choice.min_new_tokens), -jnp.inf, logits)


def _draw(logits: jax.Array, state: _State, choice: _Choice) -> jax.Array:
    """The filters of `sampling.py` in their order, and one of the ids (B,) that they keep.

    They act on logits sorted from the best on: each keeps those in front.
    """
    order = jnp.argsort(logits, descending=True)
    logits = jnp.take_along_axis(logits, order, axis=-1)
    logits = (logits - logits[:, :1]) / choice.temperature
    logits = _keep(logits, jnp.arange(logits.shape[-1]) < choice.top_k)
    probs = nn.softmax(logits)
    logits = _keep(logits, probs.cumsum(-1) - probs < choice.top_p)
    logits = _keep(logits, logits >= jnp.log(choice.min_p))
    keys = jax.vmap(jax.random.fold_in, (0, None))(
        jax.random.wrap_key_data(choice.keys), state.count
    )
    place = jax.vmap(jax.random.categorical)(keys, logits)
    return jnp.take_along_axis(order, place[:, None], axis=-1)[:, 0]


def _keep(logits: jax.Array, kept: jax.Array) -> jax.Array:
    return jnp.where(kept, logits, -jnp.inf)
