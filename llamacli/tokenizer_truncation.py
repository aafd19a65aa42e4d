"""How many tokens of one or two sequences stay where there are too many."""

from collections.abc import Sequence

from llamacli.errors import RequestError

_ONE_ALONE: dict[object, int] = {"only_first": 0, "only_second": 1}


def kept_lengths(lengths: Sequence[int], room: int, strategy: bool | str) -> list[int]:
    """The lengths after truncation, as the tokenizers library has it.

    Args:
        lengths: of one sequence, or of two.
        room: tokens for all of them, 0 or more.
        strategy: "only_first" and "only_second" cut that one alone. Otherwise the longer one is cut
            down to the shorter, and from there on both are, the second having one more.

    Raises:
        RequestError: the sequences that may be cut are too short.
    """
    over = sum(lengths) - room
    if over <= 0:
        return [*lengths]
    if (index := _ONE_ALONE.get(strategy)) is None:
        return _both_cut(lengths, room) if len(lengths) > 1 else [room]
    available = lengths[index] if index < len(lengths) else 0
    if available < over:
        raise RequestError(f"{strategy} has {available:,} tokens, and {over:,} must be cut")
    return [length - over * (place == index) for place, length in enumerate(lengths)]


def _both_cut(lengths: Sequence[int], room: int) -> list[int]:
    short, long = sorted(lengths)
    long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return [short, long] if lengths[0] <= lengths[1] else [long, short]
