import os
from pathlib import Path

import pytest

from llamacli.errors import ConfigError, LocalIOError, NotFoundError
from llamacli.json_files import parse_json, read_file, read_json_object

DEEP = b"[" * 100_000


def read(path: Path, data: bytes) -> dict[str, object]:
    path.write_bytes(data)
    return read_json_object(path, error=ConfigError)


def test_an_object_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    for start in (b"", b"\xef\xbb\xbf"):
        assert read(tmp_path / "a.json", start + b'{"a": [1, 2.5, "\xc3\xa9"]}') == {
            "a": [1, 2.5, "é"]
        }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", r"line 1, column 1", id="fault-029-empty"),
        pytest.param(b'{\n "a": }', r"line 2, column 7", id="fault-029-bad"),
        pytest.param("{}".encode("utf-16"), "not UTF-8 text", id="fault-029-utf-16"),
        pytest.param(b'{"a": "\xff"}', r"not UTF-8 text \(byte 7\)", id="fault-029-latin"),
        pytest.param(b"[1]", "must hold a JSON object, got list", id="fault-030-list"),
        pytest.param(b"null", "must hold a JSON object, got NoneType", id="fault-030-null"),
        pytest.param(b'{"a": NaN}', "NaN is not a finite number", id="fault-034-nan"),
        pytest.param(b'{"a": -Infinity}', "-Infinity is not a finite", id="fault-034-inf"),
        pytest.param(b'{"a": 1e400}', "1e400 is not a finite number", id="fault-034-1e400"),
        pytest.param(b'{"a": 1' + b"0" * 5000 + b"}", "is refused: Exceeds", id="fault-034-int"),
        pytest.param(b'{"a": 1, "b": {"c": 1, "c": 1}}', "'c' occurs twice", id="fault-034-twice"),
        pytest.param(b'{"\\u001b": 1, "\\u001b": 1}', r"x1b' occurs twice", id="fault-034-escape"),
        pytest.param(DEEP, "is refused: nested too deeply", id="fault-034-deep"),
    ],
)
def test_what_is_refused_is_said_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path / "a.json", data)
    assert str(caught.value).startswith(str(tmp_path / "a.json"))
    assert str(caught.value).isprintable()


def test_fault_029_a_file_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(ConfigError, match="larger than 10,000,000 bytes"):
        read_json_object(tmp_path / "a.json", error=ConfigError)


def test_a_file_may_be_as_large_as_allowed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a", error=ConfigError, max_bytes=5) == b"12345"
    with pytest.raises(ConfigError, match="larger than 4 bytes"):
        read_file(tmp_path / "a", error=ConfigError, max_bytes=4)


def test_a_path_that_is_no_readable_file_is_an_error_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, error, message in (
        ("missing", NotFoundError, "missing does not exist"),
        ("pipe", ConfigError, "pipe is not a regular file"),
        (".", ConfigError, "is not a regular file"),
        ("x" * 300, LocalIOError, "cannot read .*: File name too long"),
    ):
        with pytest.raises(error, match=message):
            read_json_object(tmp_path / name, error=ConfigError)


def test_numbers_keep_their_kind() -> None:
    assert parse_json('[1, 1.0, -0.0, 1e5, "1"]') == [1, 1.0, -0.0, 100000.0, "1"]
