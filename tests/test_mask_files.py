"""The picture of a mask as a file. UPDATE=1 writes the golden files anew."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest

from llamacli.errors import LocalIOError, RequestError
from llamacli.mask_view.files import FORMATS, MAX_PAIRS, check_output, save
from llamacli.mask_view.kinds import WEIGHTS, Kind
from llamacli.mask_view.layout import MaskOptions, make_layouts
from llamacli.mask_view.rows import MaskRow, text_rows, token_rows
from llamacli.model_folder import DEMO_FOLDER
from llamacli.tokenizer_fast import load_tokenizer

GOLDEN = Path(__file__).parent / "golden"
FACTS = {"model": "demo", "revision": None, "attention": None}


def golden_rows() -> list[MaskRow]:
    """Two texts, one with padding, blanks, bytes of a character and what XML escapes."""
    options = MaskOptions(sliding_window=3)
    return text_rows(["& é", "The sun"], load_tokenizer(DEMO_FOLDER), options)


def data_of(rows: Sequence[MaskRow], ending: str) -> bytes:
    return FORMATS[ending](rows, FACTS, "utf-8")


def text_of(rows: Sequence[MaskRow], ending: str) -> str:
    return data_of(rows, ending).decode()


@pytest.mark.parametrize("ending", [".svg", ".html", ".txt", ".csv", ".json"])
def test_the_bytes_are_those_of_the_golden_file(ending: str, tmp_path: Path) -> None:
    golden = GOLDEN / f"mask{ending}"
    if "UPDATE" in os.environ:
        save(golden, golden_rows(), FACTS)
    save(tmp_path / f"mask{ending}", golden_rows(), FACTS)
    assert (tmp_path / f"mask{ending}").read_bytes() == golden.read_bytes()


# --------------------------------------------------------------------------------------- json, csv


def test_json_holds_tokens_mask_cells_and_counts() -> None:
    record = json.loads(text_of(golden_rows(), ".json"))
    assert record["schema_version"] == 1
    assert record["model"] == "demo"
    first, second = record["rows"]
    rows = golden_rows()
    assert [row["mask"] for row in record["rows"]] == [row.mask() for row in rows]
    assert sum(map(sum, second["mask"])) == second["visible"]
    assert first["pairs"] == len(first["tokens"]) ** 2
    assert first["longest_reach"] == 2
    padding = [token for token in second["tokens"] if token["padding"]]
    assert [token["position"] for token in padding] == [*range(len(padding))]
    assert {(token["id"], token["label"]) for token in padding} == {(None, "<pad>")}
    letters = {letter for row in record["rows"] for line in row["cells"] for letter in line}
    assert record["legend"].keys() == letters


def test_csv_is_a_table_of_ones_and_zeros() -> None:
    header, *lines = csv.reader(io.StringIO(text_of(token_rows([3], MaskOptions()), ".csv")))
    assert header == ["row", "query", "0", "1", "2"]
    assert lines == [["0", "0", "1", "0", "0"], ["0", "1", "1", "1", "0"], ["0", "2", *"111"]]
    (row,) = text_rows(["=1+1"], load_tokenizer(DEMO_FOLDER), MaskOptions())
    cells = [cell for line in csv.reader(io.StringIO(text_of([row], ".csv"))) for cell in line]
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)  # no formulas


def test_csv_and_json_hold_weights() -> None:
    (layout,) = make_layouts([2], MaskOptions())
    row = MaskRow(layout=layout, title="w", weights=[[1.0, 0.0], [0.25, 0.75]])
    assert text_of([row], ".csv").splitlines()[2] == "0,1,0.25,0.75"
    assert json.loads(text_of([row], ".json"))["rows"][0]["weights"] == row.weights


@pytest.mark.parametrize("ending", [".csv", ".json"])
def test_a_file_of_all_pairs_has_a_limit(ending: str) -> None:
    with pytest.raises(RequestError, match="hold every pair"):
        data_of(token_rows([MAX_PAIRS + 1], MaskOptions()), ending)


# ----------------------------------------------------------------------------------------- drawings


def test_svg_stands_alone_and_is_whole() -> None:
    root = ET.fromstring(text_of(golden_rows(), ".svg"))
    tags = {element.tag.removeprefix("{http://www.w3.org/2000/svg}") for element in root.iter()}
    assert tags <= {"svg", "title", "rect", "path", "text"}
    assert not [a for e in root.iter() for a in e.attrib if "href" in a or a == "style"]
    texts = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert "&" in "".join(filter(None, texts))
    titles = [element.text for element in root.iter() if element.tag.endswith("}title")]
    assert "5 \\xa9 → 4 \\xc3: visible" in titles


def test_html_stands_alone() -> None:
    page = text_of(golden_rows(), ".html")
    assert page.startswith("<!DOCTYPE html>")
    for foreign in ("<script", "<link", "@import", "url(", "src="):
        assert foreign not in page
    assert page.count("http") == page.count("http://www.w3.org/2000/svg") == 1


@pytest.mark.parametrize("ending", [".svg", ".html", ".txt"])
def test_fault_125_a_million_tokens_make_a_small_file(ending: str) -> None:
    data = data_of(token_rows([10**6], MaskOptions()), ending)
    assert len(data) < 2_000_000
    assert b"density: a c" in data


# ----------------------------------------------------------------------------------- png, a browser


def centers(data: bytes, count: int, left: float, top: float, side: float) -> list[list[str]]:
    """The color beside the middle of each cell, where no mark is."""
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    return [
        [
            "#{:02x}{:02x}{:02x}".format(
                *image.getpixel((int(left + (k + 0.12) * side), int(top + (q + 0.5) * side)))  # type: ignore[misc]
            )
            for k in range(count)
        ]
        for q in range(count)
    ]


def cells_in(svg: str) -> tuple[float, float, float]:
    """Left, top and side of the cells, from the squares where the mouse may rest."""
    (first, *_) = [r for r in ET.fromstring(svg).iter() if "fill-opacity" in r.attrib]
    return float(first.attrib["x"]), float(first.attrib["y"]), float(first.attrib["width"])


PICTURES = {
    "causal": MaskOptions(),
    "window": MaskOptions(sliding_window=3),
    "prefix": MaskOptions(prefix_length=3),
}


@pytest.mark.parametrize("name", PICTURES)
def test_png_shows_the_cells_in_their_colors(name: str) -> None:
    pytest.importorskip("PIL")
    (row,) = rows = token_rows([7], PICTURES[name])
    left, top, side = (2 * value for value in cells_in(text_of(rows, ".svg")))
    expected = [[kind.fill for kind in line] for line in row.kinds()]
    assert centers(data_of(rows, ".png"), 7, left, top, side) == expected
    assert data_of(rows, ".png") == data_of(rows, ".png")


def test_png_without_pillow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(RequestError, match="needs Pillow"):
        data_of(token_rows([3], MaskOptions()), ".png")
    with pytest.raises(RequestError, match="needs Pillow") as caught:
        check_output(Path("mask.png"))
    assert caught.value.hint == "pip install 'llamacli[png]', or name a .svg or .html file"


@pytest.mark.parametrize("ending", [".svg", ".html"])
def test_a_browser_shows_the_cells_in_their_colors(ending: str, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    (row,) = rows = token_rows([7], PICTURES["window"])
    save(tmp_path / f"mask{ending}", rows, FACTS)
    shot = tmp_path / "shot.png"
    flags = "--headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=600,500".split()
    command = [browser, *flags, f"--screenshot={shot}", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, (tmp_path / f"mask{ending}").as_uri()], capture_output=True, timeout=60
    )
    if not shot.exists():
        pytest.skip(f"this Chromium takes no screenshots: {done.stderr[-200:]!r}")
    expected = [[kind.fill for kind in line] for line in row.kinds()]
    assert centers(shot.read_bytes(), 7, *cells_in(text_of(rows, ".svg"))) == expected


# ------------------------------------------------------------------------------------------ colors


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_kinds_differ_without_color() -> None:
    kinds = [kind for kind in Kind if kind.name in FIRST]
    for attribute in ("glyph", "ascii"):
        assert len({getattr(kind, attribute) for kind in kinds}) == len(kinds)
    assert all(len(kind.glyph) == len(kind.ascii) == 1 and kind.ascii.isascii() for kind in Kind)


FIRST = "SELF VISIBLE CACHED AHEAD IGNORED HIDDEN WINDOW DOCUMENT PADDING EMPTY".split()


def test_the_hidden_is_light_and_weights_darken() -> None:
    lights = [luminance(kind.fill) for kind in WEIGHTS]
    assert lights == sorted(lights, reverse=True)
    visible = [luminance(Kind[name].fill) for name in FIRST[:4]]
    hidden = [luminance(Kind[name].fill) for name in FIRST[5:]]
    assert max(visible) < min(hidden)


# ------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("name", ["mask", "mask.gif", ".svg", "mask.svg.gz"])
def test_an_ending_that_is_not_known_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"ends with .svg, .html, .png, .txt, .csv, .json"):
        check_output(tmp_path / name)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    check_output(tmp_path / "MASK.SVG")
    with pytest.raises(LocalIOError, match="does not exist"):
        check_output(tmp_path / "absent" / "mask.svg")
    (tmp_path / "mask.svg").mkdir()
    with pytest.raises(LocalIOError, match="is a folder"):
        check_output(tmp_path / "mask.svg")


def test_a_file_that_fails_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mask.txt"
    path.write_text("old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(LocalIOError):
        save(path, token_rows([3], MaskOptions()), FACTS)
    assert [p.name for p in tmp_path.iterdir()] == ["mask.txt"]
    assert path.read_text() == "old"
