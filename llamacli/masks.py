"""Who may attend to whom, as predicates over (query, key) positions. True = may attend.

A predicate is plain arithmetic, so it answers for two integers, and by broadcasting for whole
arrays of any library: query positions of shape (T, 1) and key positions of shape (S,) give the
mask (T, S). The model, its twin and the picture of the mask all ask the same functions.
"""

from collections.abc import Callable
from typing import Any

Predicate = Callable[[Any, Any], Any]


def causal(query: Any, key: Any) -> Any:
    """A token sees itself and what came before it."""
    return key <= query


def sliding_window(mask: Predicate, window: int) -> Predicate:
    """Hide keys that are `window` positions back or more: a token sees so many, itself included."""
    return lambda query, key: mask(query, key) & (query - key < window)


def packed(mask: Predicate, document_of: Callable[[Any], Any]) -> Predicate:
    """Hide the keys of other documents in the same row; `document_of` numbers a position's."""
    return lambda query, key: mask(query, key) & (document_of(query) == document_of(key))


def prefix_lm(mask: Predicate, in_prefix: Callable[[Any], Any]) -> Predicate:
    """Show the prefix to every token, so its own tokens see each other in both directions."""
    return lambda query, key: mask(query, key) | in_prefix(key)


def padded(mask: Predicate, is_token: Callable[[Any], Any]) -> Predicate:
    """Hide keys that are padding.

    A padding query keeps sight of itself: a row that sees nothing has no softmax.

    Args:
        mask: the rule among real tokens.
        is_token: key position → whether a real token stands there.
    """
    return lambda query, key: (mask(query, key) & is_token(key)) | (query == key)
