"""Who sees whom in a row: by hand, as transformers has it, and as the model does it."""

from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    or_masks,
    packed_sequence_mask_function,
    sdpa_mask,
    sliding_window_overlay,
)

from llamacli.errors import RequestError
from llamacli.mask_view.kinds import Kind
from llamacli.mask_view.layout import Layout, MaskOptions, make_layouts
from llamacli.mask_view.rows import MaskRow
from llamacli.model import eager_attention, visible


def picture(layout: Layout) -> list[str]:
    """A line for each query, a letter for each key."""
    kinds = MaskRow(layout=layout, title="").kinds()
    return ["".join(kind.ascii for kind in line) for line in kinds]


def pictures(*lengths: int, **options: Any) -> list[list[str]]:
    return [picture(layout) for layout in make_layouts(lengths, MaskOptions(**options))]


def tensor(layout: Layout) -> Tensor:
    """The mask (T, S), as torch broadcasts the rule."""
    query, key = torch.tensor(layout.queries)[:, None], torch.tensor(layout.keys)
    mask: Tensor = layout.rule(query, key)
    return mask


# ----------------------------------------------------------------------------------------- by hand


def test_causal() -> None:
    assert pictures(4) == [["@...", "#@..", "##@.", "###@"]]


def test_a_sliding_window() -> None:
    assert pictures(4, sliding_window=2) == [["@...", "#@..", "/#@.", "//#@"]]
    assert pictures(3, sliding_window=9) == pictures(3)


def test_padding_on_the_left_sees_itself_and_is_seen_by_nobody() -> None:
    assert pictures(2, 4)[0] == ["@-..", "-@..", "--@.", "--#@"]


def test_padding_on_the_right_sees_tokens_in_vain() -> None:
    assert pictures(2, 4, padding="right")[0] == ["@.--", "#@--", "++@-", "++-@"]


def test_packed_documents() -> None:
    assert pictures(2, 1, 2, packed=True) == [["@.xxx", "#@xxx", "xx@xx", "xxx@.", "xxx#@"]]


def test_a_prefix_of_each_document() -> None:
    assert pictures(3, prefix_length=2) == [["@^.", "#@.", "##@"]]
    assert pictures(2, 3, prefix_length=2)[0] == ["@++", "-@^", "-#@"]
    assert pictures(2, 2, packed=True, prefix_length=9) == [["@^xx", "#@xx", "xx@^", "xx#@"]]


def test_a_decode_step_asks_the_cache() -> None:
    assert pictures(5, step=2) == [["oo@"]]
    assert pictures(5, step=0) == [["@"]]
    assert pictures(6, step=3, sliding_window=2) == [["//o@"]]
    assert pictures(2, 5, step=3) == [["---@"], ["ooo@"]]


def test_a_static_cache_has_empty_slots() -> None:
    assert pictures(2, static_cache=4) == [["@.__", "#@__"]]
    assert pictures(4, step=1, static_cache=5, prefix_length=4) == [["o@___"]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sliding_window": 0}, "sliding_window must be 1 or more, got 0"),
        ({"sliding_window": -4}, "sliding_window must be 1 or more, got -4"),
        ({"prefix_length": 0}, "prefix_length must be 1 or more"),
        ({"step": -1}, "step must be 0 or more"),
        ({"step": 5}, "step must be 0 … 4 here, got 5"),
        ({"static_cache": 4}, "static_cache must be 5 …"),
    ],
)
def test_a_mask_that_makes_no_sense_is_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        make_layouts([5, 2], MaskOptions(**options))  # type: ignore[arg-type]


# -------------------------------------------------------------------------- transformers, the model

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=4)
OPTIONS = {
    "sliding_window": st.none() | st.integers(1, 12),
    "prefix_length": st.none() | st.integers(1, 12),
    "padding": st.sampled_from(["left", "right"]),
    "packed": st.booleans(),
}


def layouts_of(data: st.DataObject, **options: st.SearchStrategy[Any]) -> list[Layout]:
    lengths = data.draw(LENGTHS)
    drawn = {name: data.draw(strategy) for name, strategy in options.items()}
    length = sum(lengths) if drawn.get("packed") else max(lengths)
    step = data.draw(st.none() | st.integers(0, length - 1))
    static = data.draw(st.none() | st.integers(length, length + 5))
    return make_layouts(lengths, MaskOptions(**drawn, step=step, static_cache=static))


def theirs(layout: Layout) -> Tensor:
    """The mask (T, S) that transformers makes of the same request."""
    options, keys = layout.options, torch.tensor(layout.keys)
    starts = torch.tensor(layout.starts)
    document = (keys[:, None] >= starts).sum(-1)  # (S,)
    function = causal_mask_function
    if options.prefix_length:
        from_start = keys - starts[(document - 1).clamp(min=0)]
        in_prefix = from_start < options.prefix_length
        function = or_masks(function, lambda b, h, q, k: in_prefix[k])
    if options.sliding_window:
        function = and_masks(function, sliding_window_overlay(options.sliding_window))
    if options.packed:
        function = and_masks(function, packed_sequence_mask_function(document[None]))
    is_token = (keys >= layout.begin) & (keys < min(layout.end, layout.queries.stop))
    mask: Tensor = sdpa_mask(
        batch_size=1,
        q_length=len(layout.queries),
        kv_length=len(layout.keys),
        q_offset=layout.queries.start,
        mask_function=function,
        attention_mask=is_token[None],
        allow_is_causal_skip=False,
        use_vmap=True,
    )
    return mask[0, 0]


@given(data=st.data())
def test_real_tokens_see_what_they_see_in_transformers(data: st.DataObject) -> None:
    for layout in layouts_of(data, **OPTIONS):
        is_token = [bool(layout.is_token(query)) for query in layout.queries]
        assert tensor(layout)[is_token].tolist() == theirs(layout)[is_token].tolist()


@given(data=st.data())
def test_the_picture_is_the_mask(data: st.DataObject) -> None:
    for layout in layouts_of(data, **OPTIONS):
        kinds = MaskRow(layout=layout, title="").kinds()
        assert tensor(layout).tolist() == [[kind.is_visible for kind in row] for row in kinds]
        for query, row in zip(layout.queries, kinds, strict=True):
            assert row[query] is Kind.SELF


@given(data=st.data())
def test_the_picture_is_the_models_own_mask(data: st.DataObject) -> None:
    layouts = layouts_of(data, padding=OPTIONS["padding"])
    queries = layouts[0].queries
    positions = torch.arange(queries.stop)
    is_token = torch.stack([layout.is_token(positions) for layout in layouts])  # (B, S)
    padding = None if is_token.all() else is_token
    mask = visible(queries.start, queries.stop, padding, torch.device("cpu"))
    if mask is None:  # plain causal attention of the last T of S positions
        mask = torch.ones(len(queries), queries.stop, dtype=torch.bool).tril(queries.start)
        mask = mask[None, None]
    for layout, model_mask in zip(layouts, mask.expand(len(layouts), -1, -1, -1), strict=True):
        ours = tensor(layout)
        assert ours[:, : queries.stop].tolist() == model_mask[0].tolist()
        assert not ours[:, queries.stop :].any()  # empty slots never reach the model's attention


@given(data=st.data())
def test_attention_weights_are_zero_where_the_picture_hides(data: st.DataObject) -> None:
    for layout in layouts_of(data, **OPTIONS):
        mask = tensor(layout)
        generator = torch.Generator().manual_seed(1)
        q = torch.randn(1, 2, mask.shape[0], 4, generator=generator)
        k = torch.randn(1, 1, mask.shape[1], 4, generator=generator)
        weights = eager_attention(q, k, torch.eye(mask.shape[1])[None, None], mask, 0.0)
        assert ((weights > 0) == mask).all()
