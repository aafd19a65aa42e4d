"""Checkpoints written in pieces: the safetensors library is the reader that judges them."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from llamacli.checkpoint import open_checkpoint, save_state_dict
from llamacli.checkpoint_writer import CheckpointWriter, Layout
from llamacli.weight_file import DTYPES
from tests import attacks

INDEX = "model.safetensors.index.json"
METADATA = {"format": "pt", "words": 'of all "kinds" \u2713'}
EVERYTHING = 1_000_000  # bytes: one shard holds all

Piece = tuple[str, Tensor, int, int]  # name, values, row, column


def random_bits(dtype: torch.dtype, *shape: int) -> Tensor:
    """Any bits that the dtype can have, NaN included."""
    count = prod(shape) * dtype.itemsize
    generator = torch.Generator().manual_seed(count)
    highest = 2 if dtype == torch.bool else 256
    bits = torch.randint(highest, (count,), generator=generator, dtype=torch.uint8)
    return bits.view(dtype).reshape(shape)


STATE = {
    f"{code}.{name}": random_bits(dtype, *shape)
    for name, shape in {"cube": (2, 3, 5), "matrix": (3, 7), "row": (5,), "scalar": ()}.items()
    for code, dtype in DTYPES.items()
}


def layouts(state: Mapping[str, Tensor]) -> dict[str, Layout]:
    return {name: Layout(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def whole(state: Mapping[str, Tensor]) -> Iterator[Piece]:
    return ((name, tensor, 0, 0) for name, tensor in state.items())


def rows(state: Mapping[str, Tensor]) -> Iterator[Piece]:
    for name, tensor in state.items():
        height = len(tensor) if tensor.ndim else 1
        for row in range(height):
            yield name, tensor[row : row + 1] if tensor.ndim else tensor, row, 0


def columns(state: Mapping[str, Tensor]) -> Iterator[Piece]:
    """Single columns of matrices, the rest whole."""
    for name, tensor in state.items():
        if tensor.ndim == 2:
            for column in range(tensor.shape[1]):
                yield name, tensor[:, column : column + 1], 0, column
        else:
            yield name, tensor, 0, 0


def write(
    folder: Path,
    state: Mapping[str, Tensor],
    pieces: Iterator[Piece] | None = None,
    *,
    max_shard_bytes: int = EVERYTHING,
    metadata: Mapping[str, str] = METADATA,
) -> None:
    folder.mkdir(exist_ok=True)
    with CheckpointWriter(
        folder, layouts(state), metadata, max_shard_bytes=max_shard_bytes
    ) as writer:
        for name, values, row, column in pieces or whole(state):
            writer.write(name, values, row=row, column=column)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert (tensor.shape, tensor.dtype) == (expected[name].shape, expected[name].dtype)
        assert torch.equal(*(t.flatten().view(torch.uint8) for t in (tensor, expected[name])))


@pytest.mark.parametrize("max_shard_bytes", [EVERYTHING, 400, 1])
@pytest.mark.parametrize("cut", [whole, rows, columns])
def test_the_library_and_we_read_what_was_written(
    cut: Callable[[Mapping[str, Tensor]], Iterator[Piece]],
    max_shard_bytes: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write(tmp_path, STATE, cut(STATE), max_shard_bytes=max_shard_bytes)
    theirs = {name: t for path in shards(tmp_path) for name, t in load_file(path).items()}
    assert_same(theirs, STATE)
    assert_same(dict(open_checkpoint(tmp_path)), STATE)
    assert caplog.messages == []


@pytest.mark.parametrize("max_shard_bytes", [EVERYTHING, 400, 1])
def test_shards_and_index_are_those_of_a_checkpoint_saved_at_once(
    max_shard_bytes: int, tmp_path: Path
) -> None:
    write(tmp_path / "pieces", STATE, max_shard_bytes=max_shard_bytes)
    save_state_dict(tmp_path / "once", STATE, max_shard_bytes=max_shard_bytes)
    found, expected = (contents(tmp_path / name) for name in ("pieces", "once"))
    assert found.keys() == expected.keys()
    assert (INDEX in found) == (max_shard_bytes < EVERYTHING)
    assert found.get(INDEX) == expected.get(INDEX)
    for shard in found.keys() - {INDEX}:
        in_both = (load_file(tmp_path / name / shard) for name in ("pieces", "once"))
        assert_same(*in_both)


def test_every_shard_has_the_metadata(tmp_path: Path) -> None:
    write(tmp_path, STATE, max_shard_bytes=400)
    assert len(shards(tmp_path)) > 2
    for path in shards(tmp_path):
        with safe_open(path, "pt") as file:
            assert file.metadata() == METADATA


@pytest.mark.parametrize("length", range(8))
def test_every_tensor_is_aligned_and_no_byte_is_left_over(length: int, tmp_path: Path) -> None:
    write(tmp_path, STATE, metadata={"format": "pt", "filler": "x" * length})
    text = (tmp_path / "model.safetensors").read_bytes()
    size = int.from_bytes(text[:8], "little")
    assert size % 8 == 0
    header = json.loads(text[8 : 8 + size])
    del header["__metadata__"]
    ranges = {name: entry["data_offsets"] for name, entry in header.items()}
    for name, (start, end) in ranges.items():
        assert (8 + size + start) % STATE[name].dtype.itemsize == 0
        assert end - start == STATE[name].nbytes
    edges = sorted(ranges.values())
    assert [start for start, _ in edges] == [0, *(end for _, end in edges[:-1])]
    assert len(text) == 8 + size + edges[-1][1]


# ----------------------------------------------------------------------------------------------
# Any order


FEW = {
    "a": random_bits(torch.float32, 4, 6),
    "b": random_bits(torch.int8, 5, 3),
    "c": random_bits(torch.bfloat16, 7),
    "d": random_bits(torch.int64),
}


@st.composite
def ranges(draw: st.DrawFn, size: int) -> list[tuple[int, int]]:
    """0 … size, cut into ranges."""
    return list(pairwise(sorted({0, size, *draw(st.lists(st.integers(0, size)))})))


@st.composite
def rectangles(draw: st.DrawFn) -> list[Piece]:
    """All of FEW in pieces, in any order."""
    pieces: list[Piece] = [("d", FEW["d"], 0, 0)]
    pieces += [("c", FEW["c"][start:stop], start, 0) for start, stop in draw(ranges(7))]
    for name in "ab":
        height, width = FEW[name].shape
        for (top, bottom), (left, right) in product(draw(ranges(height)), draw(ranges(width))):
            pieces.append((name, FEW[name][top:bottom, left:right], top, left))
    return draw(st.permutations(pieces))


@given(pieces=rectangles(), max_shard_bytes=st.sampled_from([EVERYTHING, 60]))
def test_the_bytes_are_the_same_in_whatever_pieces_and_order(
    pieces: list[Piece], max_shard_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("writer")
    write(folder / "whole", FEW, max_shard_bytes=max_shard_bytes)
    write(folder / "pieces", FEW, iter(pieces), max_shard_bytes=max_shard_bytes)
    assert contents(folder / "pieces") == contents(folder / "whole")


def test_several_threads_may_write(tmp_path: Path) -> None:
    state = {name: random_bits(torch.float32, 64, 40) for name in "abcd"}
    write(tmp_path / "whole", state, max_shard_bytes=20_000)
    folder = tmp_path / "threads"
    folder.mkdir()
    pieces = [*rows({k: state[k] for k in "ab"}), *columns({k: state[k] for k in "cd"})]
    pieces.sort(key=lambda piece: (piece[2] + piece[3]) * 13 % 64)
    with (
        CheckpointWriter(folder, layouts(state), METADATA, max_shard_bytes=20_000) as writer,
        ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(lambda p: writer.write(p[0], p[1], row=p[2], column=p[3]), pieces))
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_transposed_tensor_is_written_as_it_looks(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).reshape(3, 4).T
    write(tmp_path, {"a": tensor})
    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"], tensor)


# ----------------------------------------------------------------------------------------------
# The disk refuses


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


def test_a_disk_without_room_for_a_shard_is_an_os_error(tmp_path: Path) -> None:
    state = {"a": torch.ones(10), "b": torch.ones(5000)}
    before = open_files()
    with attacks.full_disk(10_000), pytest.raises(OSError, match="File too large"):
        CheckpointWriter(tmp_path, layouts(state), {}, max_shard_bytes=1000)
    assert open_files() == before


def test_a_disk_that_becomes_full_is_an_os_error(tmp_path: Path) -> None:
    state = {"a": torch.ones(50, 100)}
    before = open_files()
    with CheckpointWriter(tmp_path, layouts(state), {}, max_shard_bytes=EVERYTHING) as writer:
        with attacks.full_disk(10_001), pytest.raises(OSError, match="File too large"):
            writer.write("a", state["a"])
        with attacks.full_disk(10_001), pytest.raises(OSError, match="File too large"):
            writer.write("a", state["a"][:, 3:], column=3)
    assert open_files() == before


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model-00002-of-00002.safetensors").write_text("mine")
    before = open_files()
    with pytest.raises(FileExistsError):
        CheckpointWriter(
            tmp_path, layouts({"a": torch.ones(4), "b": torch.ones(4)}), {}, max_shard_bytes=16
        )
    assert (tmp_path / "model-00002-of-00002.safetensors").read_text() == "mine"
    assert open_files() == before


@pytest.mark.parametrize("problem", [None, KeyboardInterrupt])
def test_all_files_are_closed_at_the_end(
    problem: type[BaseException] | None, tmp_path: Path
) -> None:
    state = {"a": torch.ones(4), "b": torch.ones(4)}
    before = open_files()
    try:
        with CheckpointWriter(tmp_path, layouts(state), {}, max_shard_bytes=16):
            assert open_files() == before + 2
            if problem:
                raise problem
    except KeyboardInterrupt:
        assert problem
    assert open_files() == before
