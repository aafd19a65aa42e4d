"""One file from the hub: pieces over several connections, hashed as they come."""

from contextlib import suppress
from pathlib import Path
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Self

from llamacli.background import Crew, Progress, Step
from llamacli.errors import NetworkError, printable
from llamacli.hub.client import CutShort, HubClient, Patience
from llamacli.hub.listing import HubFile
from llamacli.hub.part_file import PartFile, Writer
from llamacli.hub.verify import hasher

if TYPE_CHECKING:
    from httpx2 import Response

CONNECTIONS = 4  # for one file, at most
FAST = 100_000_000  # bytes per second, beyond which a connection needs no other beside it
PIECE_BYTES = 64_000_000  # of one request
_ENOUGH_BYTES = 100_000  # a connection that brought so many was of use
_WRITE_OUT_BYTES = 32_000_000
_READ_BYTES = 1 << 20
_LOOK_S = 0.5
_MOMENT_S = 0.05


class _OtherFile(Exception):
    """The server knows no ranges, or what it has now is not what it had before."""


def present(file: HubFile, path: Path) -> int:
    """Bytes of a file that an earlier download left at `path`."""
    with suppress(OSError):
        if path.exists():
            with PartFile(path, file.size) as part:
                return part.present
    return 0


def fetch(client: HubClient, file: HubFile, url: str, path: Path) -> None:
    """Bring all bytes of a file to `path`, where some may be, and compare them with its hash.

    Raises:
        NetworkError: the bytes are wrong; they are deleted.
        Exception: a failure that stayed after all tries; what came is kept.
    """
    resumed = present(file, path) > 0
    try:
        right = _fetch_pieces(client, file, url, path)
        if resumed and not right:  # the fault may be old
            _discard(client, file, path)
            right = _fetch_pieces(client, file, url, path)
    except _OtherFile:
        _discard(client, file, path)
        right = _fetch_whole(client, file, url, path)
    if not right:
        _discard(client, file, path)
        raise NetworkError(
            f"{printable(file.path)} came with wrong bytes (its hash differs) and was deleted",
            hint="try again; if it stays so, the hub or a proxy changes the file",
        )


class _Tally:
    """Reports the bytes that came, together those of a moment: over TLS they come in 16 kB."""

    def __init__(self, client: HubClient, file: HubFile) -> None:
        self._client, self._file = client, file
        self._bytes, self._reported = 0, monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.report(Progress(Step.BYTES, self._file.path, self._bytes))

    def add(self, nbytes: int) -> None:
        """Some came."""
        self._bytes += nbytes
        if monotonic() - self._reported >= _MOMENT_S:
            self.__exit__()
            self._bytes, self._reported = 0, monotonic()


def _discard(client: HubClient, file: HubFile, path: Path) -> None:
    client.report(Progress(Step.BYTES, file.path, -present(file, path)))
    path.unlink(missing_ok=True)


# ----------------------------------------------------------------------------------------------
# In pieces


def _fetch_pieces(client: HubClient, file: HubFile, url: str, path: Path) -> bool:
    """Fetch what is missing; whether the whole has the right hash.

    Raises:
        _OtherFile: what is there, or comes, does not belong together.
    """
    other = Event()
    with PartFile(path, file.size) as part:

        def fetch_piece(piece: tuple[int, int]) -> None:
            try:
                _fetch_piece(client, file, url, part, piece, other)
            except _OtherFile:
                other.set()

        pieces = part.missing(PIECE_BYTES)
        crew = Crew(pieces, fetch_piece, 1, client.stop)
        digest = _hash_as_it_comes(client, file, part, crew, other)
        crew.join()
        if other.is_set():
            raise _OtherFile
        if digest == file.etag:
            part.finish()
        return digest == file.etag


def _fetch_piece(
    client: HubClient,
    file: HubFile,
    url: str,
    part: PartFile,
    piece: tuple[int, int],
    other: Event,
) -> None:
    position, end = piece
    patience = Patience(client)
    while position < end and not other.is_set():
        start = position
        try:
            with (
                client.open(url, _range(part, start, end)) as response,
                Writer(part, start) as out,
                _Tally(client, file) as tally,
            ):
                _check(response, part, start, end)
                for chunk in client.body(response, end - start):
                    out.write(chunk)
                    position = out.position
                    tally.add(len(chunk))
                    if other.is_set():
                        return
            if position < end:
                raise CutShort("the body is shorter than it should be")
        except Exception as problem:
            if position - start >= _ENOUGH_BYTES:
                patience.renew()
            patience.wait(_OtherFile() if _is_out_of_range(problem) else problem)


def _range(part: PartFile, start: int, end: int) -> dict[str, str]:
    if (start, end) == (0, part.size):
        return {}
    condition = {"If-Range": part.validator} if part.validator else {}
    return {"Range": f"bytes={start}-{end - 1}", **condition}


def _check(response: "Response", part: PartFile, start: int, end: int) -> None:
    headers = response.headers
    is_piece = headers.get("Content-Range") == f"bytes {start}-{end - 1}/{part.size}"
    is_all = response.status_code == 200 and (start, end) == (0, part.size)
    etag = headers.get("ETag", "")
    plain = "Content-Encoding" not in headers
    if not (plain and (is_piece or is_all) and part.accepts("" if etag[:2] == "W/" else etag)):
        raise _OtherFile


def _is_out_of_range(problem: Exception) -> bool:
    response = getattr(problem, "response", None)
    return response is not None and response.status_code == 416


def _hash_as_it_comes(
    client: HubClient, file: HubFile, part: PartFile, crew: Crew, other: Event
) -> str:
    """The hash of the whole; it ends early where the whole is not going to come.

    Meanwhile connections are added until the server is fast, or they are many.
    """
    found, position, written_out = hasher(file.etag, file.size), 0, 0
    buffer = bytearray(_READ_BYTES)
    looked, seen = monotonic(), part.present
    while position < file.size and not (client.stop.is_set() or other.is_set()):
        count = part.read_front(buffer, position, timeout_s=0.1)
        found.update(memoryview(buffer)[:count])
        position += count
        if part.front == file.size:
            client.report(Progress(Step.VERIFY, file.path, count))
        if position - written_out >= _WRITE_OUT_BYTES:
            part.write_out(written_out, position)
            written_out = position
        if (passed := monotonic() - looked) >= _LOOK_S:
            if part.present - seen < FAST * passed * crew.count and crew.count < CONNECTIONS:
                crew.add()
            looked, seen = monotonic(), part.present
    return found.hexdigest()


# ----------------------------------------------------------------------------------------------
# In one stream, from a server that knows no ranges


def _fetch_whole(client: HubClient, file: HubFile, url: str, path: Path) -> bool:
    """Fetch from the first byte on, at each try; whether it has the right hash."""
    patience = Patience(client)
    while True:
        found = hasher(file.etag, file.size)
        try:
            with PartFile(path, file.size) as part, Writer(part, 0) as out:
                part.accepts("")
                with client.open(url) as response, _Tally(client, file) as tally:
                    for chunk in client.body(response, file.size):
                        out.write(chunk)
                        found.update(chunk)
                        tally.add(len(chunk))
                if out.position < file.size:
                    raise CutShort("the body is shorter than it should be")
                part.finish()
            return found.hexdigest() == file.etag
        except Exception as problem:
            _discard(client, file, path)
            patience.wait(problem)
