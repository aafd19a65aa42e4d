"""A file that arrives in pieces, in any order, and survives a kill at any moment.

Behind the file's end stands a journal: what validates the pieces (the server's ETag), and a line
for each piece that is there, written after the piece. So what the journal tells is true, and at
most a few megabytes are fetched twice. In the end the journal is cut off.
"""

import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path
from threading import Condition
from typing import Self

MARK_BYTES = 4_000_000  # a piece gets its line at the latest after so many
_MAX_JOURNAL_BYTES = 64_000_000
_WRITE = 2  # SYNC_FILE_RANGE_WRITE
_LINE = re.compile(rb"(\d{1,18}) (\d{1,18})")


class PartFile:
    """A file of a known size, some of which is here.

    Attributes:
        size: of the whole file, in bytes.
        validator: the ETag of the server whose pieces these are; None before the first one.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Open or make the file; a symbolic link is refused with an OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self.path, self.size = path, size
        self.validator: str | None = None
        self._changed = Condition()
        self._descriptor = os.open(path, flags, 0o666)
        self._takes_marks = True
        self._pieces: list[tuple[int, int]] = []  # in order, apart from each other
        self._end = size  # of the journal
        self._load()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:  # a thread that nobody waits for may still come with a piece
            os.close(self._descriptor)
            self._takes_marks = False

    def _load(self) -> None:
        journal = os.pread(self._descriptor, _MAX_JOURNAL_BYTES, self.size)
        self._end += journal.rfind(b"\n") + 1  # a line that has no end was cut short
        first, *lines = journal[: self._end - self.size].split(b"\n")
        if first.startswith(b"etag "):
            self.validator = first[5:].decode("latin-1")
            for line in lines:
                if match := _LINE.fullmatch(line):
                    self._add(int(match[1]), int(match[2]))
        elif self.size and os.fstat(self._descriptor).st_size == self.size:
            self._add(0, self.size)  # killed between the cut and the rename

    def _add(self, start: int, end: int) -> None:
        if not 0 <= start < end <= self.size:
            return
        pieces: list[tuple[int, int]] = []
        for piece in sorted([*self._pieces, (start, end)]):
            if pieces and piece[0] <= pieces[-1][1]:
                pieces[-1] = (pieces[-1][0], max(piece[1], pieces[-1][1]))
            else:
                pieces.append(piece)
        self._pieces = pieces

    @property
    def present(self) -> int:
        """Bytes that are here."""
        return sum(end - start for start, end in self._pieces)

    @property
    def front(self) -> int:
        """The first byte that is not here."""
        return self._pieces[0][1] if self._pieces and self._pieces[0][0] == 0 else 0

    def missing(self, limit: int) -> Iterator[tuple[int, int]]:
        """Start and end of what is not here, none longer than `limit`."""
        starts = [0, *(end for _, end in self._pieces)]
        ends = [*(start for start, _ in self._pieces), self.size]
        for start, end in zip(starts, ends, strict=True):
            for first in range(start, end, limit):
                yield first, min(first + limit, end)

    def accepts(self, etag: str) -> bool:
        """Whether pieces with this ETag belong to those that are here; the first one decides.

        An empty one tells nothing.
        """
        with self._changed:
            if self.validator is None:
                os.ftruncate(self._descriptor, self.size)
                self.validator, self._end = etag, self.size
                self._journal(f"etag {etag}")
            return self.validator == etag

    def mark(self, start: int, end: int) -> None:
        """Count a piece that was written."""
        with self._changed:
            if self._takes_marks:
                self._add(start, end)
                self._journal(f"{start} {end}")
                self._changed.notify_all()

    def _journal(self, line: str) -> None:
        self._end += os.pwrite(self._descriptor, line.encode("latin-1") + b"\n", self._end)

    def read_front(self, buffer: bytearray, position: int, timeout_s: float) -> int:
        """Read bytes that are here into `buffer`; 0 if there are none yet after a while."""
        with self._changed:
            self._changed.wait_for(lambda: self.front > position, timeout_s)
            count = min(len(buffer), self.front - position)
        return os.preadv(self._descriptor, [memoryview(buffer)[:count]], position) if count else 0

    def write_out(self, start: int, end: int) -> None:
        """Have the system begin to write bytes to the disk, where it can; nobody waits for it.

        Else `finish` would wait for all of them. fdatasync meanwhile held up those that come.
        """
        if begin := getattr(ctypes.CDLL(None), "sync_file_range", None):
            begin(self._descriptor, ctypes.c_int64(start), ctypes.c_int64(end - start), _WRITE)

    def finish(self) -> None:
        """Cut the journal off and wait for the disk: the file may get its final name."""
        with self._changed:
            self._takes_marks = False
            os.ftruncate(self._descriptor, self.size)
        os.fsync(self._descriptor)


class Writer:
    """Writes a piece from front to back; what came counts, however the block ends.

    Its descriptor is its own, so that a thread that comes late cannot write into another file.
    """

    def __init__(self, part: PartFile, start: int) -> None:
        self._part, self._marked, self.position = part, start, start

    def __enter__(self) -> Self:
        self._descriptor = os.open(self._part.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        self._mark()

    def write(self, data: bytes) -> None:
        """Write what follows."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, self.position)
            view, self.position = view[written:], self.position + written
        if self.position - self._marked >= MARK_BYTES:
            self._mark()

    def _mark(self) -> None:
        if self.position > self._marked:
            self._part.mark(self._marked, self.position)
            self._marked = self.position
