"""A Hugging Face hub on the loopback interface: what a client sees of it, and how it can fail.

Every repository has the files of a folder. How it fails is in its name: org/cut-once, org/gated.
"""

import gzip
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"
LARGE = ".safetensors"  # files with this suffix are large: their hash is SHA-256

_FINE = (
    "Please enable access to public gated repositories in your fine-grained token settings"
    " to view this repository"
)
_LIMIT = {"RateLimit": '"api";r=0;t=1', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
_SOON = {"Retry-After": "1"}

# Repository → status and headers of every answer about it. The client tells a repository by its
# address only over https, so the error code must say it here.
FAILURES: dict[str, tuple[int, dict[str, str]]] = {
    "missing": (404, {"X-Error-Code": "RepoNotFound"}),
    "private": (401, {"X-Error-Code": "RepoNotFound"}),
    "data-set": (404, {"X-Error-Code": "RepoNotFound"}),
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "disabled": (403, {"X-Error-Message": "Access to this resource is disabled."}),
    "bad-token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "forbidden": (403, {}),
    "limited": (429, {}),
    "limited-for-long": (429, {"Retry-After": "1000000000"}),
    "broken": (500, {}),
    "force-pushed": (404, {"X-Error-Code": "RevisionNotFound"}),
    "portal": (200, {"Content-Type": "text/html"}),
}
# The same, for its files alone.
FILE_FAILURES: dict[str, tuple[int, dict[str, str]]] = {
    "gated-files": (403, {"X-Error-Code": "GatedRepo"}),
    "gated-no-token": (401, {"X-Error-Code": "GatedRepo"}),
    "gated-scope": (403, {"X-Error-Message": _FINE}),
    "too-large": (400, {}),
    "lost": (404, {"X-Error-Code": "EntryNotFound"}),
}
# The same, for the first answer.
FIRST_FAILURES: dict[str, tuple[int, dict[str, str]]] = {
    "limited-once": (429, _SOON),
    "rate-limit-once": (429, _LIMIT),
    "limited-until": (429, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}),
    **{f"{status}-once": (status, {}) for status in (500, 502, 503, 504)},
}
# Names that a listing may not have.
NAMES = {
    "dots": "../x",
    "root": "/x",
    "drive": "C:\\x",
    "share": "\\\\host\\share",
    "nul": "a\0b",
    "newline": "a\nb",
    "escape": "\x1b[2Jx",
    "long": "x" * 300,
    "case": "CONFIG.json",
    "inside": "a/../../x",
}


class Request(NamedTuple):
    """What one request asked for."""

    method: str
    path: str
    range: str | None
    condition: str | None
    has_token: bool


@dataclass
class Answer:
    """A file that is about to be sent, for a fault to change."""

    request: BaseHTTPRequestHandler
    data: bytes
    status: int
    headers: dict[str, str]
    times: int  # that this address was asked for before


class FakeHub:
    """Serves a folder.

    Attributes:
        folder: the files of the repository; `listed` overlays the sizes of what it lists.
        requests: all requests so far.
        lost: path of a file that is listed, but cannot be had.
        elsewhere: address of another server, to which org/redirected sends its files.
        pause_s: between pieces of 64 kB of org/slow.
        most_at_once: files of org/slow that were sent together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[Request] = []
        self.lost: str | None = None
        self.elsewhere = ""
        self.pause_s = 0.02
        self.at_once = self.most_at_once = 0
        self.over = Event()
        self._times: Counter[str] = Counter()
        self._lock = Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_CONNECT = do_GET

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 100

            def handle_error(self, *_: object) -> None:
                pass  # a client that hangs up is what some tests are about

        self.server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def forget(self) -> None:
        """Be as new."""
        self.requests.clear()
        self._times.clear()
        self.lost, self.pause_s = None, 0.02

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """/api/models/ORG/NAME/revision|tree/REVISION, or /ORG/NAME/resolve/REVISION/FILE."""
        path = unquote(urlsplit(request.path).path)
        token = request.headers["Authorization"] is not None
        range, condition = request.headers["Range"], request.headers["If-Range"]
        asked = Request(request.command, path, range, condition, token)
        with self._lock:
            self.requests.append(asked)
            times = self._times[f"{request.command} {path}"]
            self._times[f"{request.command} {path}"] += 1
            is_first = len(self.requests) == 1
        kind = "datasets" if path.startswith("/api/datasets") else "models"
        parts = path.removeprefix(f"/api/{kind}").split("/")[1:]
        org, name, action, revision, *rest = [*parts, "", "", "", ""] if len(parts) < 4 else parts
        failure = FAILURES.get(name)
        if failure is None and is_first:
            failure = FIRST_FAILURES.get(name)
        if failure is None and action == "resolve":
            failure = FILE_FAILURES.get(name)
        if request.command == "CONNECT":
            reply(request, 407, b"", {})
        elif name == "silent":
            self.over.wait()
        elif kind == "datasets" and name == "data-set":
            reply_json(request, {"id": f"{org}/{name}"})
        elif failure:
            reply(request, failure[0], b"<html>", failure[1])
        elif revision not in ("main", "v1") and len(revision) != 40:
            reply(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif action == "revision":
            sha = f"{times:040x}" if name == "moving" else SHA
            siblings = [{"rfilename": entry["path"]} for entry in map(self.entry, self.files())]
            info: object = {"id": f"{org}/{name}", "sha": sha, "siblings": siblings}
            reply_json(request, ["another", "shape"] if name == "other-shape" else info)
        elif action == "tree":
            self.send_tree(request, name)
        else:
            file = self.folder / "/".join(rest)
            self.send_file(request, name, file, revision, times)

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def send_tree(self, request: BaseHTTPRequestHandler, name: str) -> None:
        entries = [self.entry(file) for file in self.files()]
        if name.startswith("name-"):
            bad = NAMES[name.removeprefix("name-")]
            entries.append({"type": "file", "path": bad, "size": 1, "oid": "0" * 40})
        if name == "empty-file":
            oid = hashlib.sha1(b"blob 0\0").hexdigest()
            entries.append({"type": "file", "path": "added_tokens.json", "size": 0, "oid": oid})
        if name == "huge-for-the-disk":
            large = [entry for entry in entries if "lfs" in entry]
            large[0]["size"] = large[0]["lfs"]["size"] = 49_000_000_000
            entries += [{**large[0], "path": f"{i}.safetensors"} for i in range(100)]
        if name == "bad-sizes":
            entries[0]["size"] = -5
        if name == "no-weights":
            entries = [entry for entry in entries if not entry["path"].endswith(LARGE)]
        if name == "no-config":
            entries = [entry for entry in entries if entry["path"] != "config.json"]
        if name == "huge-tree":
            send_endless(request)
        elif name.startswith("paged"):
            page = int(parse_qs(urlsplit(request.path).query).get("page", ["0"])[0])
            host = self.elsewhere if name == "paged-elsewhere" else self.endpoint
            link = f'<{host}{urlsplit(request.path).path}?page={page + 1}>; rel="next"'
            more = {"Link": link} if page + 1 < len(entries) else {}
            reply_json(request, entries[page : page + 1], more)
        else:
            reply_json(request, entries)

    def entry(self, file: Path) -> dict[str, Any]:
        path, size = file.relative_to(self.folder).as_posix(), file.stat().st_size
        entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": git_hash(file)}
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": etag(file), "size": size, "pointerSize": 134}
        return entry

    def send_file(
        self, request: BaseHTTPRequestHandler, name: str, file: Path, revision: str, times: int
    ) -> None:
        if file.relative_to(self.folder).as_posix() == self.lost or not file.is_file():
            reply(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if name == "redirected":
            headers = {"Location": f"{self.elsewhere}/org/ok/resolve/{SHA}/{file.name}"}
            headers |= {
                "X-Linked-ETag": f'"{etag(file)}"',
                "X-Linked-Size": str(file.stat().st_size),
            }
            reply(request, 302, b"", headers)
            return
        data, status = file.read_bytes(), 200
        tag = f'"{times}"' if name == "new-etag" else f'"{etag(file)}"'
        headers = {"ETag": tag, "X-Repo-Commit": revision}
        condition, asked = request.headers["If-Range"], request.headers["Range"]
        if asked and condition in (None, tag) and name != "no-ranges":
            first, last = (int(part) for part in asked.removeprefix("bytes=").split("-"))
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        headers["Content-Length"] = str(len(data))
        answer = Answer(request, data, status, headers, times)
        if request.command == "HEAD" or name not in FAULTS:
            reply(request, status, data, headers)
        else:
            FAULTS[name](self, answer)


def _cut(hub: FakeHub, answer: Answer) -> None:
    """The connection ends in the middle, the first time."""
    half = len(answer.data) // 2 if answer.times == 0 else len(answer.data)
    start(answer.request, answer.status, answer.headers)
    answer.request.wfile.write(answer.data[:half])
    answer.request.close_connection = True


def _cut_always(hub: FakeHub, answer: Answer) -> None:
    start(answer.request, answer.status, answer.headers)
    answer.request.close_connection = True


def _short(hub: FakeHub, answer: Answer) -> None:
    size = str(len(answer.data) - 1)
    reply(
        answer.request, answer.status, answer.data[:-1], answer.headers | {"Content-Length": size}
    )


def _long(hub: FakeHub, answer: Answer) -> None:
    size = str(len(answer.data) + 10)
    reply(answer.request, answer.status, answer.data, answer.headers | {"Content-Length": size})
    answer.request.close_connection = True


def _chunked(hub: FakeHub, answer: Answer) -> None:
    del answer.headers["Content-Length"]
    start(answer.request, answer.status, answer.headers | {"Transfer-Encoding": "chunked"})
    for piece in (answer.data[:100], answer.data[100:]):
        answer.request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    answer.request.wfile.write(b"0\r\n\r\n")


def _gzip(hub: FakeHub, answer: Answer) -> None:
    data = gzip.compress(answer.data)
    headers = answer.headers | {"Content-Encoding": "gzip", "Content-Length": str(len(data))}
    reply(answer.request, answer.status, data, headers)


def _wrong(hub: FakeHub, answer: Answer) -> None:
    reply(answer.request, answer.status, bytes(len(answer.data)), answer.headers)


def _wrong_large(hub: FakeHub, answer: Answer) -> None:
    is_large = answer.request.path.endswith(LARGE)
    data = bytes(len(answer.data)) if is_large else answer.data
    reply(answer.request, answer.status, data, answer.headers)


def _silent(hub: FakeHub, answer: Answer) -> None:
    hub.over.wait()


def _stall(hub: FakeHub, answer: Answer) -> None:
    start(answer.request, answer.status, answer.headers)
    answer.request.wfile.write(answer.data[: len(answer.data) // 2])
    answer.request.wfile.flush()
    hub.over.wait()


def _drip(hub: FakeHub, answer: Answer) -> None:
    start(answer.request, answer.status, answer.headers)
    for position in range(len(answer.data)):
        answer.request.wfile.write(answer.data[position : position + 1])
        answer.request.wfile.flush()
        if hub.over.wait(0.3):
            break


def _slow(hub: FakeHub, answer: Answer) -> None:
    hub.at_once += 1
    hub.most_at_once = max(hub.most_at_once, hub.at_once)
    start(answer.request, answer.status, answer.headers)
    for position in range(0, len(answer.data), 1 << 16):
        answer.request.wfile.write(answer.data[position : position + (1 << 16)])
        answer.request.wfile.flush()
        time.sleep(hub.pause_s)
    hub.at_once -= 1


FAULTS: dict[str, Callable[[FakeHub, Answer], None]] = {
    "cut-once": _cut,
    "no-ranges": _cut,
    "new-etag": _cut,
    "cut-always": _cut_always,
    "short-length": _short,
    "long-length": _long,
    "chunked": _chunked,
    "gzip": _gzip,
    "wrong-bytes": _wrong,
    "wrong-weights": _wrong_large,
    "silent-files": _silent,
    "stall": _stall,
    "drip": _drip,
    "slow": _slow,
}


@cache
def _hash(name: str, file: Path, mtime: int) -> str:
    data = file.read_bytes()
    if name == "sha256":
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def git_hash(file: Path) -> str:
    return _hash("git", file, file.stat().st_mtime_ns)


def etag(file: Path) -> str:
    is_large = file.name.endswith(LARGE)
    return _hash("sha256" if is_large else "git", file, file.stat().st_mtime_ns)


def start(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
    request.send_response(status)
    for name, value in {"X-Repo-Commit": SHA, **headers}.items():
        request.send_header(name, value)
    request.end_headers()


def reply(
    request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]
) -> None:
    start(request, status, {"Content-Length": str(len(body)), **headers})
    if request.command != "HEAD":
        request.wfile.write(body)


def reply_json(
    request: BaseHTTPRequestHandler, value: object, headers: dict[str, str] | None = None
) -> None:
    kind = {"Content-Type": "application/json"}
    reply(request, 200, json.dumps(value).encode(), kind | (headers or {}))


def send_endless(request: BaseHTTPRequestHandler) -> None:
    """A JSON list of 100 MB."""
    start(request, 200, {"Content-Type": "application/json", "Content-Length": "100000000"})
    request.wfile.write(b"[" + b" " * 99_999_998 + b"]")


@contextmanager
def fake_hub(folder: Path) -> Iterator[FakeHub]:
    """A hub that serves until the block ends."""
    hub = FakeHub(folder)
    thread = Thread(target=hub.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()
