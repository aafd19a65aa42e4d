"""A Hugging Face hub on the loopback interface: what a client sees of it, and how it can fail."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"

# Repository → status and headers of every answer about it. The client tells a repository by its
# address only over https, so the error code must say it here.
FAILURES: dict[str, tuple[int, dict[str, str]]] = {
    "org/missing": (404, {"X-Error-Code": "RepoNotFound"}),
    "org/private": (401, {"X-Error-Code": "RepoNotFound"}),
    "org/gated": (403, {"X-Error-Code": "GatedRepo"}),
    "org/disabled": (403, {"X-Error-Message": "Access to this resource is disabled."}),
    "org/bad-token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "org/forbidden": (403, {}),
    "org/limited": (429, {"Retry-After": "1"}),
    "org/broken": (500, {}),
    "org/portal": (200, {"Content-Type": "text/html"}),
}


class FakeHub:
    """Serves the files of a folder as each repository that is not bound to fail.

    Attributes:
        folder: the files of the repository.
        requests: method and path of each request so far.
        lost: path of a file that is listed, but cannot be had.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str]] = []
        self.lost: str | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """/api/models/ORG/NAME/revision|tree/REVISION, or /ORG/NAME/resolve/REVISION/FILE."""
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, path))
        org, name, action, revision, *rest = path.removeprefix("/api/models").split("/")[1:]
        if failure := FAILURES.get(f"{org}/{name}"):
            reply(request, failure[0], b"<html>", failure[1])
        elif revision not in ("main", "v1", SHA):
            reply(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif action == "revision":
            reply_json(request, {"id": f"{org}/{name}", "sha": SHA, "siblings": []})
        elif action == "tree":
            reply_json(request, [self.entry(file) for file in self.files()])
        else:
            self.send_file(request, "/".join(rest))

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def entry(self, file: Path) -> dict[str, object]:
        path = file.relative_to(self.folder).as_posix()
        return {"type": "file", "path": path, "size": file.stat().st_size, "oid": etag(file)}

    def send_file(self, request: BaseHTTPRequestHandler, path: str) -> None:
        if path == self.lost:
            reply(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            file = self.folder / path
            reply(request, 200, file.read_bytes(), {"ETag": f'"{etag(file)}"'})


def etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def reply(
    request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]
) -> None:
    request.send_response(status)
    for name, value in {"X-Repo-Commit": SHA, "Content-Length": str(len(body)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def reply_json(request: BaseHTTPRequestHandler, value: object) -> None:
    reply(request, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})


@contextmanager
def fake_hub(folder: Path) -> Iterator[FakeHub]:
    """A hub that serves until the block ends."""
    hub = FakeHub(folder)
    thread = Thread(target=hub.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()
