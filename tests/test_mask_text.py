"""The picture of a mask in a terminal: what is drawn at which size."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from llamacli.mask_view.labels import text_width
from llamacli.mask_view.layout import MaskOptions, make_layouts
from llamacli.mask_view.rows import MaskRow, token_rows
from llamacli.mask_view.text import Paper, draw

CAUSAL = """\
causal mask
          0 1 2
<s>     0 ◆ · ·
·Plants 1 ■ ◆ ·
·漢     2 ■ ■ ◆
6 of 9 pairs visible, longest reach 2
◆ self  ■ visible  · hidden, comes later
"""
ASCII = """\
causal mask
          0 1 2
<s>     0 @ . .
_Plants 1 # @ .
_\\u6f22 2 # # @
6 of 9 pairs visible, longest reach 2
@ self  # visible  . hidden, comes later
"""
BATCH = """\
causal mask, row 1 of 2
        0 1 2
<pad> 0 ◆ · ·
<s>   1 ░ ◆ ·
·b    2 ░ ■ ◆
4 of 9 pairs visible, longest reach 1
causal mask, row 2 of 2
        0 1 2
<s>   0 ◆ · ·
·b    1 ■ ◆ ·
·c    2 ■ ■ ◆
6 of 9 pairs visible, longest reach 2
◆ self  ■ visible  · hidden, comes later  ░ hidden, padding
"""
HALVES = """\
causal mask, sliding window of 3
  01234
0 █▄
2 ▀██▄
4   ▀▀▀
12 of 25 pairs visible, longest reach 2
█ visible  (two rows a line, blank is hidden)
"""
DENSITY = """\
causal mask
   0         50
 0 ▓░
10 ██▓░
20 ████▓░
30 ██████▓░
40 ████████▓░
50 ██████████▓░
60 ████████████▓░
70 ██████████████▓░
3,240 of 6,400 pairs visible, longest reach 79
' ' none visible  ░ up to 1/3
▒ up to 2/3  ▓ more  █ all visible
(density: a character is the visible share of 10 by 5 pairs)
"""


def labeled(*labels: str) -> MaskRow:
    (layout,) = make_layouts([len(labels)], MaskOptions())
    return MaskRow(layout=layout, title="causal mask", labels=labels)


def plain(text: str) -> str:
    return re.sub("\x1b\\[[0-9;]*m", "", text)


def test_cells_with_labels_numbers_legend_and_sum() -> None:
    row = labeled("<s>", "·Plants", "·漢")
    assert draw([row], Paper()) == CAUSAL
    assert draw([row], Paper(ascii=True)) == ASCII
    assert plain(draw([row], Paper(color=True))) == CAUSAL


def test_a_batch_has_one_legend() -> None:
    layouts = make_layouts([2, 3], MaskOptions())
    labels = ["<pad>", "<s>", "·b"], ["<s>", "·b", "·c"]
    titles = "causal mask, row 1 of 2", "causal mask, row 2 of 2"
    rows = [
        MaskRow(layout=layout, title=title, labels=label)
        for layout, title, label in zip(layouts, titles, labels, strict=True)
    ]
    assert draw(rows, Paper()) == BATCH


def test_half_blocks_where_lines_are_few() -> None:
    rows = token_rows([5], MaskOptions(sliding_window=3))
    assert draw(rows, Paper(height=10)) == HALVES
    assert "0 :.\n2 '::.\n4   '''\n" in draw(rows, Paper(height=10, ascii=True))


def test_half_blocks_keep_two_labels_a_line_where_there_is_room() -> None:
    row = labeled("<s>", "·Plants", "·漢", "·c", "·d")
    lines = draw([row], Paper(height=10)).splitlines()
    assert lines[2:5] == [
        "<s>     ·Plants 0 █▄",
        "·漢     ·c      2 ███▄",
        "·d              4 ▀▀▀▀▀",
    ]
    assert "Plants" not in draw([row], Paper(height=10, width=20))


def test_the_color_of_half_blocks_tells_the_kinds() -> None:
    text = draw(token_rows([2], MaskOptions()), Paper(height=8, color=True))
    (line,) = [line for line in text.splitlines() if "0\x1b[0m \x1b" in line]
    #  (0,0) self above (1,0) visible; nothing above (1,1) self
    assert line.endswith("\x1b[38;5;214;48;5;33m▀\x1b[0m\x1b[38;5;214m▄\x1b[0m")


def test_density_where_neither_fits() -> None:
    assert draw(token_rows([80], MaskOptions()), Paper(width=40, height=15)) == DENSITY


def test_a_line_of_numbers_for_more_than_ten_columns() -> None:
    lines = draw(token_rows([12], MaskOptions()), Paper()).splitlines()
    assert lines[1] == "   0                   10"
    assert lines[2] == "   0 1 2 3 4 5 6 7 8 9 0 1"


def test_a_step_of_a_long_text_is_one_line() -> None:
    lines = draw(token_rows([10**6], MaskOptions(step=999)), Paper(height=24)).splitlines()
    assert lines[2] == "999 " + "█" * 72
    assert lines[3] == "1,000 of 1,000 pairs visible, longest reach 999"


def test_fault_125_a_million_tokens_are_down_sampled() -> None:
    text = draw(token_rows([10**6], MaskOptions(sliding_window=10**5)), Paper(height=24))
    assert len(text.splitlines()) <= 23
    assert "about 9." in text
    assert "of 1,000,000,000,000 pairs visible" in text
    assert "(density: " in text


def test_weights_are_bars_with_their_whole_scale() -> None:
    (layout,) = make_layouts([2], MaskOptions())
    row = MaskRow(layout=layout, title="weights", weights=[[1.0, 0.0], [0.009, 0.991]])
    assert draw([row], Paper()).splitlines()[2:4] == ["0 █ ·", "1 ▁ █"]
    for share in ("below 1.6", "from 1.6", "6.3", "14", "25", "39", "56", "from 77"):
        assert f"{share} %" in draw([row], Paper())
    assert "1 1 8\n" in draw([row], Paper(ascii=True))


def test_density_of_weights_shows_the_largest() -> None:
    (layout,) = make_layouts([40], MaskOptions())
    weights = [[1 / (q + 1) if k <= q else 0.0 for k in range(40)] for q in range(40)]
    weights[39][3] = 0.9
    text = draw([MaskRow(layout=layout, title="w", weights=weights)], Paper(width=14))
    assert text.splitlines()[2].rstrip() == " 0 █▄"  # nothing is visible on the right
    assert "32 █" in text
    assert "' ' none visible" in text
    assert "largest weight of 8 by 4 pairs" in text.replace("\n", " ")


@settings(max_examples=40)
@given(
    length=st.integers(1, 3000),
    width=st.integers(60, 200),
    height=st.none() | st.integers(12, 60),
    window=st.none() | st.integers(1, 50),
    color=st.booleans(),
    ascii=st.booleans(),
    labels=st.sampled_from([[], ["·a"], ["漢字"]]),
)
def test_every_picture_fits(
    length: int,
    width: int,
    height: int | None,
    window: int | None,
    color: bool,
    ascii: bool,
    labels: list[str],
) -> None:
    paper = Paper(width=width, height=height, color=color, ascii=ascii)
    (row,) = token_rows([length], MaskOptions(sliding_window=window))
    text = draw([replace(row, labels=labels * length)], paper)
    lines = plain(text).splitlines()
    sentences = "(density", "about", "pairs visible"  # a terminal may wrap them
    cells = [line for line in lines if not any(words in line for words in sentences)]
    assert max(map(text_width, cells)) <= width
    if height is not None:
        assert len(lines) <= height
    assert color or text == plain(text)
    assert text.isascii() or not ascii
    assert "…" not in text


@pytest.mark.parametrize("ascii", [True, False])
def test_ten_tokens_take_at_most_80_columns(ascii: bool) -> None:
    row = labeled(*["·extraordinarily long"] * 10)
    assert max(map(text_width, draw([row], Paper(ascii=ascii)).splitlines())) <= 80
