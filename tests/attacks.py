"""Weight files as an attacker, a broken download or a careless tool would leave them."""

import json
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EIGHT_BYTES = bytes(range(8))


def entry(**changed: Any) -> dict[str, Any]:
    """A good header entry for two float32 numbers, or a bad one."""
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changed}


def weights(header: object, data: bytes = EIGHT_BYTES, *, length: int | None = None) -> bytes:
    """A safetensors file: the header's length, the header as JSON or as raw bytes, the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


GOOD = weights({"a": entry()})
TWO = b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2)
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4431\n"

# id → file, and words of the error
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "fault-001-empty": (b"", "header too small"),
    "fault-001-seven-bytes": (GOOD[:7], "header too small"),
    "fault-002-length-u64-max": (weights({}, length=2**64 - 1), "header too large"),
    "fault-002-length-101-MB": (weights({}, length=101_000_000), "header too large"),
    "fault-002-length-beyond-end": (weights({}, length=99_000_000), "invalid header length"),
    "fault-002-length-too-short": (weights({"a": entry()}, length=5), "invalid JSON"),
    "fault-003-not-utf8": (weights(b"\xff\xfe{}"), "invalid UTF-8"),
    "fault-003-not-json": (weights(b"weights"), "invalid JSON"),
    "fault-003-a-list": (weights([1]), "invalid JSON"),
    "fault-003-deep": (weights(b"[" * 100_000), "invalid JSON"),
    "fault-003-deep-in-an-entry": (weights(b'{"a":' * 100_000), "invalid JSON"),
    "fault-004-truncated": (GOOD[:-3], f"expected {len(GOOD)} bytes, have {len(GOOD) - 3}"),
    "fault-005-trailing-bytes": (
        GOOD + b"xyz",
        f"expected {len(GOOD)} bytes, have {len(GOOD) + 3}",
    ),
    "fault-005-hole": (
        weights({"a": entry(), "b": entry(data_offsets=[9, 17])}, bytes(17)),
        "invalid offset",
    ),
    "fault-005-overlap": (
        weights({"a": entry(), "b": entry(data_offsets=[4, 12])}, bytes(12)),
        "invalid offset",
    ),
    "fault-005-shared-range": (weights({"a": entry(), "b": entry()}), "invalid offset"),
    "fault-006-negative-shape": (weights({"a": entry(shape=[-2])}), "invalid JSON"),
    "fault-006-float-shape": (weights({"a": entry(shape=[2.0])}), "invalid JSON"),
    "fault-006-overflow": (weights({"a": entry(shape=[2**62, 2**62])}), "overflow"),
    "fault-006-shape-and-offsets": (weights({"a": entry(shape=[3])}), "invalid shape"),
    "fault-007-unknown-dtype": (weights({"a": entry(dtype="Q4_0")}), "unknown variant `Q4_0`"),
    "fault-007-unsupported-dtype": (
        weights({"a": entry(dtype="F8_E4M3", shape=[8])}),
        "dtype F8_E4M3; supported are F64, F32",
    ),
    "fault-007-misaligned-sub-byte": (
        weights({"a": entry(dtype="F4", shape=[1], data_offsets=[0, 1])}, b"1"),
        "byte boundary",
    ),
    "fault-008-duplicate-name": (weights(TWO), "the header has 'a' twice"),
    "fault-009-zero-size": (
        weights({"a": entry(shape=[0, 4], data_offsets=[0, 0]), "b": entry()}),
        "tensor a is empty: its shape is (0, 4)",
    ),
    "fault-009-no-tensors": (weights({}, b""), "there are no tensors in it"),
    "fault-010-escape": (weights({"\x1b[2J": entry()}), r"tensor \x1b[2J has a name"),
    "fault-010-nul": (weights({"a\0": entry()}), r"tensor a\x00 has a name"),
    "fault-010-path": (weights({"../a": entry()}), "tensor ../a has a name"),
    "fault-010-long": (weights({"a" * 1_000_000: entry()}), "a… has a name"),
    "fault-022-html": (b"<!DOCTYPE html><title>Log in</title>", "this is an HTML page"),
    "fault-022-git-lfs": (LFS_POINTER, "this is a git-LFS pointer"),
    "fault-026-gguf": (b"GGUF\x03\0\0\0" + bytes(64), "GGUF is not supported"),
    "fault-021-renamed-zip": (b"PK\x03\x04\0\0\x08\x08" + bytes(64), "pickle weights are refused"),
}

BAD_INDEXES: dict[str, tuple[object, str]] = {
    "fault-018-parent": ({"a": "../outside.safetensors"}, "plain file names"),
    "fault-018-absolute": ({"a": "/etc/passwd"}, "plain file names"),
    "fault-018-sub-folder": ({"a": "a/b.safetensors"}, "plain file names"),
    "fault-018-other-suffix": ({"a": "pytorch_model.bin"}, "plain file names"),
    "fault-018-hidden": ({"a": "..safetensors"}, "plain file names"),
    "fault-018-newline": ({"a": "a.safetensors\n"}, "plain file names"),
    "fault-018-number": ({"a": 5}, "plain file names"),
    "fault-018-null": ({"a": None}, "plain file names"),
    "fault-018-empty": ({"a": ""}, "plain file names"),
    "fault-019-empty-map": ({}, "weight_map must be"),
    "fault-019-map-is-a-list": (["a"], "weight_map must be"),
    "fault-019-no-map": (None, "weight_map must be"),
}


class EvilPickle:
    """Whoever unpickles it creates a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


@contextmanager
def memory_limit(further_bytes: int) -> Iterator[None]:
    """This process gets no more than so much further memory (Linux counts it exactly)."""
    if sys.platform != "linux":
        yield
        return
    status = Path("/proc/self/status").read_text()
    used_kib = next(int(line.split()[1]) for line in status.splitlines() if "VmData" in line)
    with _limit(resource.RLIMIT_DATA, used_kib * 1024 + further_bytes):
        yield


@contextmanager
def full_disk(free_bytes: int) -> Iterator[None]:
    """No file can grow beyond this size, as if the disk were full."""
    with _limit(resource.RLIMIT_FSIZE, free_bytes):
        yield


@contextmanager
def _limit(which: int, value: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))
