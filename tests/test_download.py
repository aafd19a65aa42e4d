"""llamacli download: what it fetches, where it puts it, and what other tools make of that."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pyte
import pytest
from huggingface_hub import constants, scan_cache_dir
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store
from transformers import LlamaForCausalLM, LlamaTokenizer

from tests.command_line import PROGRAM, refused
from tests.downloading import NEEDED, TOKEN, Place, is_whole
from tests.fake_hub import SHA, FakeHub, etag, fake_hub
from tests.fork_server import ForkServer
from tests.probe import environment
from tests.tiny import write_model

# Python 3.12 and later warn of a fork beside torch's threads; pexpect starts a program right away.
pytestmark = pytest.mark.filterwarnings("ignore:.*forkpty:DeprecationWarning")


# ---------------------------------------------------------------------------------- what is fetched


def test_the_path_goes_to_stdout_and_the_rest_to_stderr(place: Place, repository: Path) -> None:
    done = place.download("org/ok")
    assert done.out.decode() == f"{place.snapshot('org/ok')}\n"
    first, second, *_, last = done.err.splitlines()
    assert first == (
        "llamacli: note: 3 files skipped, 10.0 kB saved: weights in another format (10.0 kB),"
        " not needed to run (8 bytes)"
    )
    assert second == "llamacli: downloading org/ok: 9.0 MB …"
    assert last.startswith("llamacli: org/ok: 9.0 MB in ")
    assert is_whole(place, "org/ok", repository)
    listing, files = place.hub.requests[:2], place.hub.requests[2:]
    assert [r.path for r in listing] == [
        "/api/models/org/ok/revision/main",
        f"/api/models/org/ok/tree/{SHA}",
    ]
    assert sorted(r.path for r in files) == [f"/org/ok/resolve/{SHA}/{name}" for name in NEEDED]
    assert {(r.method, r.has_token, r.range) for r in files} == {("GET", True, None)}


def test_a_second_time_nothing_is_fetched_and_nothing_told(place: Place) -> None:
    path = place.download("-q", "org/ok").text
    place.hub.requests.clear()
    assert place.download("org/ok").text == path
    assert place.fetched() == []


def test_a_file_that_another_revision_has_is_not_fetched_again(place: Place) -> None:
    first = place.download("-q", "org/moving").text
    second = place.download("-q", "org/moving").text
    assert first != second
    assert sorted(place.fetched()) == NEEDED
    assert place.llamacli("download", "--verify", "org/moving").code == 0


def test_patterns_name_the_files(place: Place) -> None:
    done = place.download("-q", "org/ok", "--include", "*.md", "--include", "original/*")
    folder = Path(done.text.strip())
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert sorted(found) == ["README.md", "original/consolidated.00.pth"]
    done = place.download("-q", "org/ok", "--exclude", "tokenizer*")
    assert "tokenizer.model" not in place.fetched()


def test_plain_files_go_to_a_folder(place: Place, repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "to"
    assert place.download("-q", "org/ok", "--to", folder).text == f"{folder}\n"
    assert sorted(os.listdir(folder)) == NEEDED
    assert all((folder / n).read_bytes() == (repository / n).read_bytes() for n in NEEDED)
    assert not place.cache.exists()
    place.hub.requests.clear()
    (folder / "config.json").unlink()
    assert place.download("-q", "org/ok", "--to", folder).code == 0
    assert place.fetched() == ["config.json"]
    (folder / "config.json").write_text("mine")
    refused(place.download("-q", "org/ok", "--to", folder), "another file than", code=7)
    assert (folder / "config.json").read_text() == "mine"


@pytest.mark.skipif(sys.platform != "linux", reason="names of other systems are Unicode")
def test_a_folder_whose_name_is_no_text_is_told_in_its_bytes(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    out, _ = place.start("download", "-q", "org/ok", "--to", folder).communicate(timeout=60)
    assert out == os.fsencode(folder) + b"\n"
    assert sorted(os.listdir(out[:-1])) == [os.fsencode(name) for name in NEEDED]


def test_what_the_cache_has_is_copied_to_a_folder(
    place: Place, repository: Path, tmp_path: Path
) -> None:
    place.download("-q", "org/ok")
    options = ("org/ok", "--to", tmp_path / "to", "--dry-run", "--json")
    planned = json.loads(place.download(*options).text)
    assert planned["bytes_to_download"] == 0
    assert planned["disk_bytes"] == sum(file["size"] for file in planned["files"])  # copies
    (place.snapshot("org/ok") / "config.json").resolve().write_text("{" + " " * 21 + "}")
    place.hub.requests.clear()
    done = place.download("-q", "org/ok", "--to", tmp_path / "to")
    assert done.text == f"{tmp_path / 'to'}\n"
    assert place.fetched() == ["config.json"]  # of which the cache had other bytes
    assert sorted(os.listdir(tmp_path / "to")) == NEEDED
    for name in NEEDED:
        copy, blob = tmp_path / "to" / name, (place.snapshot("org/ok") / name).resolve()
        assert copy.read_bytes() == (repository / name).read_bytes()
        assert not copy.samefile(blob)  # who edits one leaves the other alone


def test_a_folder_is_resumed_too(place: Place, repository: Path, tmp_path: Path) -> None:
    refused(place.download("-q", "org/cut-always", "--to", tmp_path / "to"), code=5)
    place.hub.pause_s = 0.002
    args = ("download", "-q", "org/slow", "--to", tmp_path / "to")
    for _ in range(3):
        place.server.run(*args, **place.variables(), signum=9, after=0.25)
    done = place.llamacli(*args)
    assert done.text == f"{tmp_path / 'to'}\n"
    assert sorted(os.listdir(tmp_path / "to")) == NEEDED


def test_a_dry_run_shows_files_and_whether_they_fit(place: Place) -> None:
    lines = place.download("org/ok", "--dry-run").text.splitlines()
    assert lines[0] == f"org/ok at commit {SHA}"
    assert [line.split() for line in lines[2:7]] == [
        ["file", "size"],
        ["config.json", "23", "bytes"],
        ["generation_config.json", "2", "bytes"],
        ["model.safetensors", "9.0", "MB"],
        ["tokenizer.model", "5.1", "kB"],
    ]
    assert {len(line) for line in lines[2:7]} == {len(lines[3])}
    assert lines[8:11] == [
        "skipped: 1 × not needed to run, 8 bytes",
        "skipped: 2 × weights in another format, 10.0 kB",
        "to download: 9.0 MB of 9.0 MB",
    ]
    assert lines[11].startswith("disk: ")
    assert lines[11].endswith(": fits")
    assert lines[12].startswith("memory: 9.0 MB of weights, ")
    assert place.fetched() == []
    assert not place.cache.exists()


def test_json_is_one_object(place: Place) -> None:
    planned = json.loads(place.download("org/ok", "--dry-run", "--json").text)
    assert (planned["schema_version"], planned["repo"], planned["revision"]) == (1, "org/ok", SHA)
    assert [file["path"] for file in planned["files"]] == NEEDED
    assert {file["bytes_there"] for file in planned["files"]} == {0}
    assert planned["bytes_to_download"] == sum(file["size"] for file in planned["files"])
    assert planned["disk_bytes"] == planned["bytes_to_download"]
    assert planned["fits_disk"] is planned["fits_memory"] is True
    assert len(planned["skipped"]) == 3
    done = json.loads(place.download("-q", "org/ok", "--json").text)
    assert done == {
        "schema_version": 1,
        "repo": "org/ok",
        "revision": SHA,
        "path": str(place.snapshot("org/ok")),
        "bytes_downloaded": planned["bytes_to_download"],
    }


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ([], "name a repository"),
        (["--list", "org/ok"], "--list takes no REPO"),
        (["--list", "--verify"], "--list and --verify contradict"),
        (["--remove"], "name a repository"),
        (["--remove", "org/ok", "--revision", "v1"], "--remove and --revision contradict"),
        (["org/ok", "--offline", "--dry-run"], "--offline and --dry-run contradict"),
        (["org/ok", "--include", "*.nothing"], "no file of org/ok matches"),
    ],
)
def test_what_contradicts_itself_is_a_usage_error(place: Place, args: list[str], word: str) -> None:
    refused(place.download("-q", *args), word, code=2)


def test_a_name_that_is_none_is_not_found(place: Place) -> None:
    for name in ("../x", "a/b/c", "a--b", "\x1b[2J", "org/x y"):
        refused(place.download("-q", name), "no hub model", code=6)
    assert place.hub.requests == []


# ---------------------------------------------------------------------------------------- the cache


def test_the_cache_is_listed_verified_and_cleared(place: Place) -> None:
    assert place.download("--list").text == "model  size  state  commit  refs\n"
    for name in ("org/ok", "org/twin"):
        place.download("-q", name)
    refused(place.download("-q", "org/cut-always"), code=5)
    lines = place.download("--list").text.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["org/cut-always", *lines[1].split()[1:3], "partial", SHA[:8]],
        ["org/ok", "9.0", "MB", "whole", SHA[:8], "main"],
        ["org/twin", "9.0", "MB", "whole", SHA[:8], "main"],
    ]
    models = json.loads(place.download("--list", "--json").text)["models"]
    assert [model["commits"][0]["state"] for model in models] == ["partial", "whole", "whole"]
    done = place.download("--verify")
    assert done.code == 6
    states = [line.split()[:2] for line in done.out.decode().splitlines()[1:]]
    assert states == [["org/cut-always", "partial"], ["org/ok", "whole"], ["org/twin", "whole"]]
    assert place.download("--remove", "org/ok").err == "llamacli: removed org/ok: 9.0 MB\n"
    assert place.download("--remove", "org/cut-always").code == 0
    assert sorted(os.listdir(place.cache)) == [".locks", "models--org--twin"]
    refused(place.download("--remove", "org/ok"), "not in the cache", code=6)
    done = place.download("--verify", "org/ok")
    assert done.code == 6
    assert done.out.decode().splitlines()[1].split() == ["org/ok", "absent"]


def test_bytes_that_went_wrong_are_found_deleted_and_fetched_again(
    place: Place, repository: Path
) -> None:
    place.download("-q", "org/ok")
    blob = (place.snapshot("org/ok") / "model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[1000] ^= 1
    blob.write_bytes(data)
    done = place.download("--verify", "org/ok")
    assert done.code == 3
    assert done.out.decode().splitlines()[1].split() == [
        "org/ok",
        "corrupt",
        SHA[:8],
        "model.safetensors",
    ]
    assert "files had wrong bytes and were deleted" in done.err
    assert not blob.exists()
    place.hub.requests.clear()
    assert place.download("-q", "org/ok").code == 0
    assert place.fetched() == ["model.safetensors"]
    assert is_whole(place, "org/ok", repository)


def test_a_part_whose_bytes_are_wrong_is_fetched_again(place: Place, repository: Path) -> None:
    blobs = place.blobs("org/ok")
    blobs.mkdir(parents=True)
    part = blobs / f"{etag(repository / 'model.safetensors')}.llamacli.incomplete"
    part.write_bytes(bytes(9_000_000) + b"etag \n0 5000000\n")
    assert place.download("-q", "org/ok").code == 0
    assert is_whole(place, "org/ok", repository)
    assert place.fetched().count("model.safetensors") == 2


# -------------------------------------------------------------------------------------- other tools

SNAPSHOT = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download("org/ok", local_files_only=sys.argv[1] == "local"))
"""
LOAD = """
from transformers import LlamaForCausalLM, LlamaTokenizer
LlamaTokenizer.from_pretrained("org/ok")
LlamaForCausalLM.from_pretrained("org/ok")
"""


def python(place: Place, code: str, *args: str, **variables: str) -> str:
    env = environment(**place.variables(HF_HUB_DISABLE_XET="1", **variables))
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_huggingface_hub_finds_what_was_downloaded(place: Place) -> None:
    path = place.download("-q", "org/ok").text
    place.hub.requests.clear()
    assert python(place, SNAPSHOT, "local", HF_HUB_OFFLINE="1") == path
    assert place.hub.requests == []
    assert python(place, SNAPSHOT, "online") == path
    got = {r.path.partition(f"{SHA}/")[2] for r in place.hub.requests if r.method == "GET"}
    assert "README.md" in got  # it knows that this was left out
    assert not got & {*NEEDED}


def test_what_repositories_share_is_verified_and_removed_with_the_last_one(place: Place) -> None:
    place.download("-q", "org/ok")
    blob = (place.snapshot("org/ok") / "model.safetensors").resolve()
    shared = {"cache_dir": place.cache, "xet_hash": "a" * 64, "expected_size": 9_000_000}
    assert publish_blob_to_shared_store(blob_path=str(blob), **shared)
    assert blob.is_symlink()
    assert scan_cache_dir(place.cache).warnings == []
    assert place.download("--verify").code == 0
    assert place.download("-q", "--remove", "org/ok").code == 0
    assert not (place.cache / "blobs" / "aa" / ("a" * 64)).exists()


def test_what_huggingface_hub_downloaded_is_whole(place: Place) -> None:
    path = python(place, SNAPSHOT, "online")
    place.hub.requests.clear()
    assert place.download("-q", "org/ok", "--offline").text == path
    assert place.hub.requests == []
    assert place.download("-q", "org/ok").text == path
    assert place.fetched() == []
    assert place.download("--verify", "org/ok").code == 0
    assert place.download("-q", "--remove", "org/ok").code == 0


@pytest.fixture(scope="module")
def real_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    """One with a model that loads."""
    folder = tmp_path_factory.mktemp("real")
    write_model(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with fake_hub(folder) as running:
        yield running


def test_transformers_finds_what_was_downloaded(
    real_hub: FakeHub, download_server: ForkServer, tmp_path: Path
) -> None:
    place = Place(download_server, real_hub, tmp_path)
    place.download("-q", "org/ok")
    real_hub.requests.clear()
    tokenizer = LlamaTokenizer.from_pretrained("org/ok", cache_dir=place.cache)
    model = LlamaForCausalLM.from_pretrained("org/ok", cache_dir=place.cache)
    assert len(tokenizer) == model.config.vocab_size
    assert constants.HF_HUB_OFFLINE


def test_what_transformers_downloaded_is_whole(
    real_hub: FakeHub, download_server: ForkServer, tmp_path: Path
) -> None:
    place = Place(download_server, real_hub, tmp_path)
    python(place, LOAD)
    real_hub.requests.clear()
    assert place.download("-q", "org/ok", "--offline").text == f"{place.snapshot('org/ok')}\n"
    assert real_hub.requests == []


# --------------------------------------------------------------------------------------- a terminal


class Window:
    """The program in a terminal of 80 columns."""

    def __init__(self, place: Place, *args: str) -> None:
        self.screen = pyte.Screen(80, 24)
        self._stream = pyte.Stream(self.screen)
        env = environment(**place.variables(TERM="xterm"))
        command = [*PROGRAM, *args]
        self.child = pexpect.spawn(
            command[0], command[1:], env=env, encoding="utf-8", dimensions=(24, 80), timeout=30
        )

    def wait_for(self, text: str) -> None:
        self.child.expect_exact(text)
        self._stream.feed(self.child.before + self.child.after)

    def finish(self) -> int:
        self.child.expect(pexpect.EOF)
        self._stream.feed(self.child.before)
        self.child.close()
        return int(self.child.exitstatus)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display if line.strip()]


def test_a_terminal_shows_a_bar_and_each_file(place: Place) -> None:
    place.hub.pause_s = 0.01
    window = Window(place, "download", "org/slow", "--exclude", "README.md")
    window.wait_for(" of 9.0 MB  model.safetensors")
    window.wait_for(" of 9.0 MB  model.safetensors")
    bar, below, *files = window.lines[-3:]
    assert bar.startswith("downloading org/slow: ━")
    assert "/9.0 MB  " in below
    assert files[0].endswith(" of 9.0 MB  model.safetensors")
    assert window.finish() == 0
    assert not window.screen.cursor.hidden
    assert window.lines[-3].startswith("llamacli: org/slow: 9.0 MB in ")
    assert "".join(window.lines[-2:]) == str(place.snapshot("org/slow"))


def test_fault_077_ctrl_c_leaves_a_clean_line_and_the_part(place: Place) -> None:
    window = Window(place, "download", "org/stall")
    window.wait_for(" of 9.0 MB")
    window.wait_for(" of 9.0 MB")
    window.child.sendintr()
    assert window.finish() == 128 + signal.SIGINT
    assert not window.screen.cursor.hidden
    assert "━" not in "".join(window.lines)
    assert [*place.blobs("org/stall").glob("*.incomplete")]


def test_fault_100_a_terminal_tells_what_is_waited_for(place: Place) -> None:
    lock = place.cache / ".locks/models--org--ok" / f"{etag(place.hub.folder / NEEDED[2])}.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        window = Window(place, "download", "org/ok")
        window.wait_for("another process downloads model.safetensors: waiting for it")
    assert window.finish() == 0


def test_fault_088_a_terminal_counts_down(place: Place) -> None:
    window = Window(place, "download", "org/limited-once")
    window.wait_for("HTTP 429: next try in 1 s")
    assert window.finish() == 0
    assert TOKEN not in "".join(window.lines)
