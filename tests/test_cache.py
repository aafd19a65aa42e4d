import pytest
import torch

from llamacli.cache import KVCache
from llamacli.errors import RequestError


def entry(value: float, tokens: int, batch: int = 2) -> torch.Tensor:
    return torch.full((batch, 1, tokens, 4), value)


def test_a_growing_cache_returns_everything_so_far() -> None:
    cache = KVCache(1)
    for step, tokens in enumerate((60, 3, 1, 200)):
        keys, values = cache.update(0, entry(step, tokens), entry(-step, tokens))
        cache.advance(tokens)
    assert cache.length == keys.shape[2] == 264
    seen = keys[0, 0, :, 0].tolist()
    assert seen == [0.0] * 60 + [1.0] * 3 + [2.0] + [3.0] * 200
    assert torch.equal(values, -keys)


def test_growth_copies_rarely() -> None:
    cache, buffers = KVCache(1), set()
    for _ in range(1000):
        keys, _ = cache.update(0, entry(0.0, 1), entry(0.0, 1))
        cache.advance(1)
        buffers.add(keys.data_ptr())
    assert len(buffers) <= 6


def test_the_position_moves_only_when_every_layer_has_its_keys() -> None:
    cache = KVCache(2)
    cache.update(0, entry(1, 5), entry(1, 5))
    assert cache.length == 0
    cache.update(1, entry(1, 5), entry(1, 5))
    cache.advance(5)
    assert cache.length == 5


def test_a_static_cache_never_grows() -> None:
    cache = KVCache(1, max_length=4)
    keys, _ = cache.update(0, entry(1, 3), entry(1, 3))
    cache.advance(3)
    more, _ = cache.update(0, entry(2, 1), entry(2, 1))
    assert more.data_ptr() == keys.data_ptr()
    cache.advance(1)
    with pytest.raises(RequestError, match="holds 4 tokens, not 5"):
        cache.update(0, entry(3, 1), entry(3, 1))


def test_rows_are_kept_in_the_order_asked_for() -> None:
    cache = KVCache(1)
    rows = torch.arange(3.0)[:, None, None, None].expand(3, 1, 5, 4)
    cache.update(0, rows, rows)
    cache.advance(5)
    cache.keep_rows(torch.tensor([2, 0]))
    keys, _ = cache.update(0, entry(9, 1), entry(9, 1))
    assert keys[:, 0, :, 0].tolist() == [[2, 2, 2, 2, 2, 9], [0, 0, 0, 0, 0, 9]]


@pytest.mark.parametrize("max_length", [None, 7])
def test_what_is_truncated_is_forgotten_and_written_over(max_length: int | None) -> None:
    cache = KVCache(1, max_length=max_length)
    cache.update(0, entry(1, 6), entry(1, 6))
    cache.advance(6)
    cache.truncate(4)
    keys, values = cache.update(0, entry(2, 3), entry(3, 3))
    assert keys[0, 0, :, 0].tolist() == [1, 1, 1, 1, 2, 2, 2]
    assert values[0, 0, :, 0].tolist() == [1, 1, 1, 1, 3, 3, 3]


def test_fault_036_memory_follows_use_not_the_context() -> None:
    cache = KVCache(1)
    keys, _ = cache.update(0, entry(0.0, 1), entry(0.0, 1))
    assert keys.untyped_storage().nbytes() <= 64 * 2 * 4 * 4
