import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from llamacli.benchmark.plot import axis_of, series_of, sparkline, to_svg
from tests.test_bench_report import SUBJECT, row

SVG = "{http://www.w3.org/2000/svg}"
DEEP = [row([1.0, 2.0], depth=depth) for depth in (0, 1024)]


def test_the_picture_is_well_formed_and_has_points_lines_and_error_bars() -> None:
    rows = DEEP + [replace(each, subject=replace(SUBJECT, model="<&>")) for each in DEEP]
    picture = ElementTree.fromstring(to_svg(rows))
    assert len(picture.findall(f"{SVG}circle")) == len(picture.findall(f"{SVG}path")) == 4
    texts = [text.text for text in picture.findall(f"{SVG}text")]
    assert texts[0] == "tokens per second over depth, with standard deviation"
    assert {"0", "1,024", "<&> int4 tg4 2 threads", "tiny int4 tg4 2 threads"} <= set(texts)


def test_a_faster_point_stands_higher() -> None:
    rows = [row([1.0], depth=0), row([2.0], depth=8)]
    fast, slow = ElementTree.fromstring(to_svg(rows)).findall(f"{SVG}circle")
    assert float(fast.attrib["cy"]) < float(slow.attrib["cy"])
    assert float(fast.attrib["cx"]) < float(slow.attrib["cx"])


def test_a_single_point_is_a_picture_too() -> None:
    assert len(ElementTree.fromstring(to_svg(DEEP[:1])).findall(f"{SVG}circle")) == 1


def test_the_axis_is_what_differs() -> None:
    assert axis_of(DEEP) == "depth"
    assert axis_of([row([1.0]), row([1.0], batch=2)]) == "batch"
    assert axis_of([row([1.0]), row([1.0], subject=replace(SUBJECT, threads=1))]) == "threads"


def test_points_of_a_line_are_in_the_order_of_the_axis() -> None:
    (line,) = series_of(DEEP[::-1], "depth")
    assert [x for x, _, _ in line.points] == [0, 1024]


def test_a_sparkline_begins_at_zero() -> None:
    rows = [row([seconds], depth=depth) for depth, seconds in ((0, 1.0), (8, 2.0), (16, 1000.0))]
    (line,) = series_of(rows, "depth")
    assert sparkline(line) == "tiny int4 tg4 2 threads  █▅▁  0: 4.0 … 16: 0.0 tok/s"


@pytest.mark.parametrize("seconds", [1e-6, 1.0, 1e6])
def test_any_speed_fits_the_picture(seconds: float) -> None:
    (point,) = ElementTree.fromstring(to_svg([row([seconds])])).findall(f"{SVG}circle")
    assert 40 <= float(point.attrib["cy"]) <= 350
