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


def padded(mask: Predicate, is_token: Callable[[Any], Any]) -> Predicate:
    """Hide keys that are padding.

    A padding query keeps sight of itself: a row that sees nothing has no softmax.

    Args:
        mask: the rule among real tokens.
        is_token: key position → whether a real token stands there.
    """
    return lambda query, key: (mask(query, key) & is_token(key)) | (query == key)
