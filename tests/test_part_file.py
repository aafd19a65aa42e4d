from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from llamacli.hub.part_file import MARK_BYTES, PartFile, Writer


def put(part: PartFile, start: int, data: bytes) -> None:
    with Writer(part, start) as out:
        out.write(data)


def read(part: PartFile, position: int, length: int = 100) -> bytes:
    buffer = bytearray(length)
    return bytes(buffer[: part.read_front(buffer, position, timeout_s=0)])


def test_pieces_in_any_order_make_a_file(tmp_path: Path) -> None:
    with PartFile(tmp_path / "part", 10) as part:
        assert part.accepts('"a"')
        assert [*part.missing(4)] == [(0, 4), (4, 8), (8, 10)]
        put(part, 4, b"4567")
        assert (part.present, part.front, [*part.missing(99)]) == (4, 0, [(0, 4), (8, 10)])
        put(part, 0, b"0123")
        assert (part.present, part.front, read(part, 0)) == (8, 8, b"01234567")
        assert read(part, 6) == b"67"
        assert read(part, 8) == b""
        put(part, 8, b"89")
        assert [*part.missing(4)] == []
        part.finish()
    assert (tmp_path / "part").read_bytes() == b"0123456789"


def test_what_came_is_there_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "part"
    with PartFile(path, 10) as part:
        part.accepts('"a"')
        put(part, 2, b"234")
        put(part, 8, b"8")
    killed = path.read_bytes() + b"0 1"  # in the middle of a line
    path.write_bytes(killed)
    with PartFile(path, 10) as part:
        assert part.validator == '"a"'
        assert [*part.missing(99)] == [(0, 2), (5, 8), (9, 10)]
        assert part.accepts('"a"')
        assert not part.accepts('"b"')
        put(part, 0, b"01")
    assert path.read_bytes()[10:].splitlines()[1:] == [b"2 5", b"8 9", b"0 2"]


def test_a_long_piece_counts_before_its_end(tmp_path: Path) -> None:
    with PartFile(tmp_path / "part", 3 * MARK_BYTES) as part, Writer(part, 0) as out:
        out.write(bytes(MARK_BYTES - 1))
        assert part.present == 0
        out.write(b"x")
        assert part.present == MARK_BYTES
        out.write(b"y")
    assert part.present == MARK_BYTES + 1


def test_between_the_cut_and_the_rename_all_is_there(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"0123456789")
    with PartFile(tmp_path / "part", 10) as part:
        assert [*part.missing(99)] == []


@pytest.mark.parametrize(
    "rubbish", [b"", b"012", b"0123456789\xff\n0 10\n", b"0123456789etag x\n5 2\n0 11\n-1 3\n0 2"]
)
def test_a_journal_that_is_none_tells_nothing(tmp_path: Path, rubbish: bytes) -> None:
    (tmp_path / "part").write_bytes(rubbish)
    with PartFile(tmp_path / "part", 10) as part:
        assert part.present == 0
        part.accepts('"a"')
        put(part, 3, b"3")
    with PartFile(tmp_path / "part", 10) as part:
        assert [*part.missing(99)] == [(0, 3), (4, 10)]


def test_a_thread_that_comes_late_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "part"
    with PartFile(path, 4) as part:
        part.accepts("")
        late = Writer(part, 2).__enter__()
        put(part, 0, b"0123")
        part.finish()
        late.write(b"23")
        late.__exit__()
    assert path.read_bytes() == b"0123"


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "part").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="Too many levels"):
        PartFile(tmp_path / "part", 10)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30))))
def test_what_is_missing_is_what_is_not_there(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("x") / "part"
    there = set()
    with PartFile(path, 30) as part:
        part.accepts("")
        for start, end in pieces:
            if start < end:
                part.mark(start, end)
                there |= {*range(start, end)}
    with PartFile(path, 30) as part:
        missing = {byte for start, end in part.missing(7) for byte in range(start, end)}
        assert missing == {*range(30)} - there
        assert part.present == len(there)
