"""How prompt and answer share the tokens that a model can hold."""

from collections.abc import Sequence
from typing import Literal

from llamacli.errors import RequestError

Side = Literal["left", "right", "middle"]


def token_budget(context_length: int, prompt_length: int, max_new_tokens: int | None) -> int:
    """New tokens that are asked for and that the context has room for.

    Raises:
        RequestError: the prompt is empty or fills the context.
    """
    if prompt_length == 0:
        raise RequestError("the prompt is empty")
    room = context_length - prompt_length
    if room < 1:
        raise RequestError(
            f"the prompt has {prompt_length:,} tokens, the model's context {context_length:,}:"
            " no room is left"
        )
    return room if max_new_tokens is None else min(room, max_new_tokens)


def truncate(
    prompt_ids: Sequence[int], context_length: int, max_new_tokens: int | None, side: Side
) -> list[int]:
    """Cut a prompt so that the answer has room: all it asks for, but at most half the context.

    The first token, which is BOS in most models, always stays.

    Args:
        prompt_ids: at least one token.
        context_length: tokens that the model can hold.
        max_new_tokens: None asks for as much as there is room for.
        side: where to cut: the beginning (left), the end (right) or the middle.
    """
    if len(prompt_ids) < context_length:
        return list(prompt_ids)
    keep = prompt_limit(context_length, max_new_tokens) - 1
    return [prompt_ids[0], *cut(prompt_ids[1:], keep, side)]


def prompt_limit(context_length: int, max_new_tokens: int | None) -> int:
    """Tokens that a cut prompt may have: the answer gets what it asks for, up to half of all."""
    half = context_length // 2
    return max(context_length - min(max_new_tokens or half, half), 1)


def cut(ids: Sequence[int], keep: int, side: Side) -> list[int]:
    """So many of the ids, without those on one side."""
    tail = {"left": keep, "right": 0, "middle": keep - keep // 2}[side]
    return [*ids[: keep - tail], *ids[len(ids) - tail :]]
