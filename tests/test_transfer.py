"""One file over several connections, from a hub in this process."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import httpx2
import pytest
from huggingface_hub import constants, hf_hub_url, utils

from llamacli.background import Progress, Step
from llamacli.errors import NetworkError
from llamacli.hub import download, resolve, transfer
from llamacli.hub.client import HubClient, wait_asked_for
from llamacli.hub.listing import HubFile
from llamacli.hub.part_file import PartFile
from tests.fake_hub import SHA, FakeHub, fake_hub

SIZE = 3_000_000


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    (tmp_path / "repository").mkdir()
    data = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(SIZE // 32 + 1))[:SIZE]
    (tmp_path / "repository" / "model.safetensors").write_bytes(data)
    (tmp_path / "repository" / "config.json").write_text("{}")
    with fake_hub(tmp_path / "repository") as running:
        template = f"{running.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield running
        utils.close_session()


class Fetch:
    """Fetches the large file, and keeps what it tells."""

    def __init__(self, hub: FakeHub, name: str, path: Path) -> None:
        weights = hub.folder / "model.safetensors"
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        self.file = HubFile("model.safetensors", SIZE, digest)
        self.path, self.events = path, list[Progress]()
        self.client = HubClient(self.events.append, Event())
        self.url = self.client.file_url(f"org/{name}", SHA, self.file.path)

    def __call__(self) -> bytes:
        transfer.fetch(self.client, self.file, self.url, self.path)
        return self.path.read_bytes()

    @property
    def came(self) -> float:
        return sum(event.amount for event in self.events if event.step is Step.BYTES)


@pytest.fixture
def many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PIECE_BYTES", 100_000)
    monkeypatch.setattr(transfer, "_LOOK_S", 0.0)
    monkeypatch.setattr(transfer, "FAST", 1e18)


@pytest.mark.usefixtures("many_pieces")
def test_pieces_come_over_several_connections(hub: FakeHub, tmp_path: Path) -> None:
    hub.pause_s = 0.005
    fetch = Fetch(hub, "slow", tmp_path / "part")
    assert fetch() == (hub.folder / "model.safetensors").read_bytes()
    asked = [request.range for request in hub.requests]
    assert sorted(str(r) for r in asked) == sorted(
        f"bytes={start}-{start + 99_999}" for start in range(0, SIZE, 100_000)
    )
    assert hub.most_at_once > 1
    assert fetch.came == SIZE


@pytest.mark.usefixtures("many_pieces")
@pytest.mark.parametrize("name", ["cut-once", "no-ranges", "new-etag", "gzip", "500-once"])
def test_fault_093_whatever_fails_pieces_are_not_mixed(
    hub: FakeHub, tmp_path: Path, name: str
) -> None:
    fetch = Fetch(hub, name, tmp_path / "part")
    assert fetch() == (hub.folder / "model.safetensors").read_bytes()
    assert fetch.came == SIZE


def test_fault_101_only_what_lacks_is_asked_for_and_only_of_the_same_file(
    hub: FakeHub, tmp_path: Path
) -> None:
    data = (hub.folder / "model.safetensors").read_bytes()
    fetch = Fetch(hub, "ok", tmp_path / "part")
    with PartFile(fetch.path, SIZE) as part:
        part.accepts(f'"{fetch.file.etag}"')
    with fetch.path.open("r+b") as file:
        file.write(data[:1_000_000])
    with PartFile(fetch.path, SIZE) as part:
        part.mark(0, 1_000_000)
    assert transfer.present(fetch.file, fetch.path) == 1_000_000
    assert fetch() == data
    assert fetch.came == SIZE - 1_000_000
    (request,) = hub.requests
    assert request.range == f"bytes=1000000-{SIZE - 1}"
    assert request.condition == f'"{fetch.file.etag}"'


def test_fault_094_what_was_wrong_before_is_fetched_once_more(hub: FakeHub, tmp_path: Path) -> None:
    fetch = Fetch(hub, "ok", tmp_path / "part")
    fetch.path.write_bytes(bytes(SIZE))
    assert fetch() == (hub.folder / "model.safetensors").read_bytes()
    wrong = Fetch(hub, "wrong-bytes", tmp_path / "other")
    with pytest.raises(NetworkError, match="came with wrong bytes"):
        wrong()
    assert not wrong.path.exists()


def test_fault_107_without_locks_each_process_has_parts_of_its_own(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_lock(*_: object, **__: object) -> None:
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(utils, "WeakFileLock", no_lock)
    plan = download.make_plan("org/ok")
    folder = download.fetch(plan)
    assert (folder / "model.safetensors").stat().st_size == SIZE
    assert "model.safetensors cannot be locked (no flock here)" in caplog.text


@pytest.mark.usefixtures("hub")
def test_a_library_is_told_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    events: list[Progress] = []
    snapshot = resolve("org/ok", report=events.append)
    assert events[0] == (Step.BEGIN, "org/ok", SIZE + 2)
    assert {event.name for event in events[1:]} == {"model.safetensors", "config.json"}
    assert sum(event.amount for event in events if event.step is Step.DONE) == SIZE + 2
    assert resolve("org/ok", report=events.append) == snapshot
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("path", ["config.json", "a folder/é#?%.txt"])
def test_addresses_are_those_of_huggingface_hub(hub: FakeHub, path: str) -> None:
    client = HubClient(print, Event())
    assert client.file_url("org/ok", SHA, path) == hf_hub_url("org/ok", path, revision=SHA)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "1000000000"}, 1e9),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "\u0663"}, None),
        ({}, None),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
        ({"RateLimit": '"api";r=0;t=55', "Retry-After": "7"}, 55),
        ({"RateLimit": '"api";r=3;t=55'}, None),
        ({"RateLimit": f'"api";r=0;t={"9" * 400}'}, None),
        ({"RateLimit": f'"api";r=0;t={"9" * 5000}'}, None),
    ],
)
def test_fault_088_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    encoded = {name: value.encode() for name, value in headers.items()}
    assert wait_asked_for(httpx2.Response(429, headers=encoded)) == seconds


def test_fault_088_a_date_is_seconds_from_now() -> None:
    stamp = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    waits = wait_asked_for(httpx2.Response(429, headers={"Retry-After": stamp}))
    assert waits is not None
    assert 50 < waits <= 100
