"""Faults 85 to 109: a hub, a network and a disk that fail, and the real program between them."""

import fcntl
import os
import re
import resource
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llamacli.hub import transfer
from llamacli.hub.listing import HubFile
from tests.command_line import refused
from tests.downloading import NEEDED, Place, ended, is_whole
from tests.fake_hub import NAMES, SHA, etag, fake_hub

PAGE = "https://huggingface.co/org"


def large(place: Place) -> str:
    """The ETag of the large file."""
    return etag(place.hub.folder / "model.safetensors")


# ---------------------------------------------------------------------------- answers of the hub


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        pytest.param("bad-token", 4, ["401", "HF_TOKEN"], id="fault-085-bad-token"),
        pytest.param(
            "gated-files", 4, ["no access yet", f"{PAGE}/gated-files"], id="fault-086-license"
        ),
        pytest.param(
            "gated-scope", 4, ["may not read", "settings/tokens"], id="fault-086-token-scope"
        ),
        pytest.param("disabled", 4, ["disabled", f"{PAGE}/disabled"], id="fault-086-disabled"),
        pytest.param("missing", 6, ["no such hub model", "spelling"], id="fault-087-repository"),
        pytest.param("lost", 6, ["lists a file that the hub does not"], id="fault-087-file"),
        pytest.param("limited", 5, ["429", "later"], id="fault-088-always"),
        pytest.param(
            "limited-for-long", 5, ["next request in 1,000,000,000 s"], id="fault-088-for-long"
        ),
        pytest.param("broken", 5, ["500", "later"], id="fault-089-always"),
        pytest.param("cut-always", 5, ["peer closed connection"], id="fault-092-always"),
        pytest.param("short-length", 5, ["shorter than it should be"], id="fault-092-short"),
        pytest.param("wrong-weights", 5, ["model.safetensors came with wrong"], id="fault-094"),
        pytest.param("portal", 5, ["not a hub's", "not JSON", "HF_ENDPOINT"], id="fault-095-html"),
        pytest.param("other-shape", 5, ["not a hub's", "no commit"], id="fault-095-shape"),
        pytest.param("bad-sizes", 5, ["not a hub's", "without path or size"], id="fault-095-size"),
        pytest.param("huge-tree", 5, ["longer than 16,000,000 bytes"], id="fault-095-huge"),
        pytest.param(
            "no-weights", 3, ["no safetensors", "it has README.md"], id="fault-099-weights"
        ),
        pytest.param("no-config", 3, ["no config.json"], id="fault-099-config"),
        pytest.param("data-set", 3, ["is a dataset, not a model"], id="fault-099-dataset"),
        pytest.param("force-pushed", 6, ["no revision main"], id="fault-106"),
        pytest.param("too-large", 5, ["HTTP 400", "hint: hf download"], id="fault-108-huge"),
    ],
)
def test_what_cannot_be_helped_is_one_plain_line(
    place: Place, name: str, code: int, words: list[str]
) -> None:
    done = place.download("-q", f"org/{name}")
    refused(done, *words, code=code)
    assert not (place.blobs(f"org/{name}") / large(place)).exists()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("cut-once", id="fault-092-once"),
        pytest.param("long-length", id="fault-092-long"),
        pytest.param("chunked", id="fault-092-chunked"),
        pytest.param("no-ranges", id="fault-093-no-ranges"),
        pytest.param("new-etag", id="fault-093-new-etag"),
        pytest.param("gzip", id="fault-093-gzip"),
        pytest.param("paged", id="fault-095-paged"),
        *(pytest.param(f"{n}-once", id=f"fault-089-{n}") for n in (500, 502, 503, 504)),
    ],
)
def test_what_can_be_helped_gives_the_right_bytes(
    place: Place, name: str, repository: Path
) -> None:
    done = place.download("-q", f"org/{name}")
    assert (done.code, done.err) == (0, "")
    assert done.out.decode() == f"{place.snapshot(f'org/{name}')}\n"
    assert is_whole(place, f"org/{name}", repository)


def test_fault_085_without_a_token_the_license_comes_first(place: Place) -> None:
    done = place.download("-q", "org/gated-no-token", HF_TOKEN="")
    words = ["there is no token", f"{PAGE}/gated-no-token", "hf auth login"]
    refused(done, *words, code=4)
    assert not any(request.has_token for request in place.hub.requests)


@pytest.mark.parametrize("token", ["hf_secret\x80", "hf_sec\u20acret", "hf_sec\x01ret"])
def test_fault_085_a_token_that_is_none_is_not_shown(place: Place, token: str) -> None:
    done = place.download("-q", "org/ok", HF_TOKEN=token)
    refused(done, "characters that no token has", code=4)
    assert "hf_sec" not in done.err
    assert place.hub.requests == []


def test_fault_087_a_revision_that_is_not_there_is_named(place: Place) -> None:
    refused(place.download("-q", "org/ok", "--revision", "v9"), "has no revision v9", code=6)


@pytest.mark.parametrize("name", ["limited-once", "rate-limit-once"])
def test_fault_088_the_program_waits_as_long_as_it_is_asked_to_and_says_so(
    place: Place, name: str, repository: Path
) -> None:
    done = place.download(f"org/{name}")
    assert done.code == 0
    assert "llamacli: HTTP 429: next try in 1 s\n" in done.err
    assert is_whole(place, f"org/{name}", repository)


def test_fault_088_a_time_that_has_passed_is_now(place: Place, repository: Path) -> None:
    assert place.download("-q", "org/limited-until").code == 0
    assert is_whole(place, "org/limited-until", repository)


# ----------------------------------------------------------------------------------- the network


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        pytest.param(
            {"HF_ENDPOINT": "http://127.0.0.1:{closed}"},
            ["Connection refused"],
            id="fault-090-port",
        ),
        pytest.param(
            {"HF_ENDPOINT": "http://hub.invalid"}, ["Name or service not known"], id="fault-090-dns"
        ),
        pytest.param({"HF_ENDPOINT": "{https}"}, ["SSL"], id="fault-090-tls"),
        pytest.param(
            {"HTTP_PROXY": "http://127.0.0.1:{closed}", "NO_PROXY": ""},
            ["Connection refused"],
            id="fault-090-no-proxy",
        ),
        pytest.param(
            {"HTTPS_PROXY": "{http}", "HF_ENDPOINT": "https://hub.invalid", "NO_PROXY": ""},
            ["the proxy fails", "407"],
            id="fault-090-proxy-407",
        ),
        pytest.param(
            {"HTTP_PROXY": "nonsense://x", "NO_PROXY": ""}, ["proxy"], id="fault-090-bad-proxy"
        ),
        pytest.param({"HF_ENDPOINT": "nonsense"}, ["HF_ENDPOINT"], id="fault-090-bad-endpoint"),
    ],
)
def test_a_way_that_is_broken_is_told(
    place: Place, closed_port: int, variables: dict[str, str], words: list[str]
) -> None:
    known = {"closed": closed_port, "http": place.hub.endpoint}
    known["https"] = place.hub.endpoint.replace("http:", "https:")
    variables = {name: value.format(**known) for name, value in variables.items()}
    refused(place.download("-q", "org/ok", **variables), *words, code=5)


def test_fault_090_the_cache_serves_when_the_hub_is_down(place: Place, closed_port: int) -> None:
    path = place.download("-q", "org/ok").text
    done = place.download("org/ok", HF_ENDPOINT=f"http://127.0.0.1:{closed_port}")
    assert (done.code, done.out.decode()) == (0, path)
    assert done.err.startswith("llamacli: note: cannot reach the hub for org/ok")
    assert done.err.endswith("what the cache has is used\n")


def test_fault_091_a_server_that_falls_silent_does_not_hang_the_program(place: Place) -> None:
    names = ["silent", "silent-files", "stall", "drip"]
    processes = [place.start("download", "-q", f"org/{name}") for name in names]
    processes += [place.start("run", "-q", "-m", "org/silent", "Hello")]
    for done in [ended(process) for process in processes]:
        refused(done, "silent\n", code=5)
    (part,) = place.blobs("org/stall").glob(f"{large(place)}*.incomplete")
    assert part.stat().st_blocks * 512 >= 4_500_000


# -------------------------------------------------------------------------------- bytes and names


def test_fault_094_wrong_bytes_are_deleted(place: Place) -> None:
    refused(place.download("-q", "org/wrong-bytes"), "wrong bytes", "deleted", code=5)
    assert not [*place.snapshot("org/wrong-bytes").glob("*")]
    kept = [p for p in place.blobs("org/wrong-bytes").glob("*") if ".incomplete" not in p.name]
    assert kept == []


@pytest.mark.parametrize("kind", [pytest.param(name, id=f"fault-096-{name}") for name in NAMES])
def test_a_name_that_is_not_safe_is_refused_before_any_file_is_fetched(
    place: Place, kind: str
) -> None:
    include = ["--include", "*"] if kind == "case" else []
    done = place.download("-q", f"org/name-{kind}", *include)
    refused(done, "two files of one name" if kind == "case" else "unsafe name", code=3)
    assert place.fetched() == []
    assert not place.cache.exists()


def test_fault_097_nothing_is_written_through_a_link_that_leaves_the_folder(
    place: Place, tmp_path: Path
) -> None:
    folder, outside = tmp_path / "to", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "original").symlink_to(outside)
    done = place.download("-q", "org/ok", "--to", folder, "--include", "original/*")
    refused(done, "leads out of the folder", code=7)
    (folder / "original").unlink()
    (folder / ".llamacli").symlink_to(outside)
    done = place.download("-q", "org/ok", "--to", folder, "--include", "original/*")
    refused(done, "leads out of the folder", code=7)
    assert not [*outside.iterdir()]
    assert place.fetched() == []


def test_fault_098_the_token_does_not_follow_a_redirect(place: Place, repository: Path) -> None:
    with fake_hub(repository) as elsewhere:
        place.hub.elsewhere = elsewhere.endpoint
        assert place.download("-q", "org/redirected").code == 0
        assert is_whole(place, "org/redirected", repository)
        assert place.download("-q", "org/paged-elsewhere").code == 0
        assert is_whole(place, "org/paged-elsewhere", repository)
    assert [request.has_token for request in elsewhere.requests] == [False] * len(NEEDED)
    assert all(request.has_token for request in place.hub.requests)


# ------------------------------------------------------------------------------- several processes


def test_fault_100_processes_that_fetch_the_same_wait_and_share(
    place: Place, repository: Path
) -> None:
    place.hub.pause_s = 0.01
    processes = [place.start("download", "org/slow") for _ in range(3)]
    done = [ended(process) for process in processes]
    assert [each.code for each in done] == [0, 0, 0], done
    assert len({each.out for each in done}) == 1
    assert is_whole(place, "org/slow", repository)
    assert place.fetched().count("model.safetensors") == 1


def test_fault_100_huggingface_hub_is_shut_out_too(place: Place) -> None:
    lock = place.cache / ".locks/models--org--ok" / f"{large(place)}.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = place.start("download", "org/ok")
        wait_until(lambda: "tokenizer.model" in place.fetched())
        time.sleep(0.3)
        assert "model.safetensors" not in place.fetched()
    done = ended(process)
    assert done.code == 0
    assert "another process downloads model.safetensors: waiting for it" in done.err


def test_fault_100_a_lock_of_a_dead_process_is_none(place: Place) -> None:
    lock = place.cache / ".locks/models--org--ok" / f"{large(place)}.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("1")
    assert place.download("-q", "org/ok").code == 0


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_fault_101_a_killed_download_goes_on_where_it_was(place: Place, repository: Path) -> None:
    process = place.start("download", "org/slow")
    part = place.blobs("org/slow") / f"{large(place)}.llamacli.incomplete"
    wait_until(lambda: transfer.present(HubFile("", 9_000_000, ""), part) > 0)
    process.kill()
    process.communicate()
    place.hub.requests.clear()
    done = place.download("org/slow")
    assert done.code == 0
    assert is_whole(place, "org/slow", repository)
    (request,) = [r for r in place.hub.requests if r.path.endswith("model.safetensors")]
    assert request.range is not None
    first = int(request.range.removeprefix("bytes=").split("-")[0])
    assert first >= 4_000_000
    assert re.search(r"downloading org/slow: [0-5]\.\d MB", done.err)


# --------------------------------------------------------------------------------- disk and cache


def test_fault_102_what_the_disk_has_no_room_for_is_not_begun(place: Place) -> None:
    done = place.download("-q", "org/huge-for-the-disk", "--include", "*.safetensors")
    refused(done, "org/huge-for-the-disk needs 4949", "GB left", "HF_HOME", code=7)
    assert place.fetched() == []
    assert not place.cache.exists()


def test_fault_102_a_disk_that_is_full_meanwhile_is_told_and_relieved(place: Place) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, limit[1]))
    try:
        process = place.start("download", "-q", "org/ok")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    refused(ended(process), "File too large", code=7)
    assert not [*place.blobs("org/ok").glob(f"{large(place)}*")]


def test_fault_103_a_home_that_is_a_file_is_told(place: Place) -> None:
    place.home.touch()
    refused(place.download("-q", "org/ok"), "Not a directory", code=7)


def test_fault_103_a_cache_that_cannot_be_written_serves_what_it_has(place: Place) -> None:
    path = place.download("-q", "org/ok").text
    (place.snapshot("org/ok").parents[1] / "refs/main").unlink()
    (place.snapshot("org/ok").parents[1] / "refs").rmdir()
    (place.snapshot("org/ok").parents[1] / "refs").touch()  # root may write everywhere else
    assert place.download("-q", "org/ok").text == path


@pytest.mark.parametrize("how", ["variable", "option"])
def test_fault_104_offline_the_cache_has_all_or_tells_what_it_lacks(place: Place, how: str) -> None:
    variables = {"HF_HUB_OFFLINE": "1"} if how == "variable" else {}
    args = ["-q", "org/ok", *(["--offline"] if how == "option" else [])]
    refused(place.download(*args, **variables), "offline mode is on", code=6)
    path = place.download("-q", "org/ok").text
    place.hub.requests.clear()
    assert place.download(*args, **variables).text == path
    (place.snapshot("org/ok") / "model.safetensors").unlink()
    done = place.download(*args, **variables)
    refused(done, "it lacks model.safetensors", code=6)
    assert place.hub.requests == []


def test_fault_105_all_files_are_of_one_commit(place: Place) -> None:
    commits = [Path(place.download("-q", "org/moving").text.strip()).name for _ in range(2)]
    assert commits == [f"{times:040x}" for times in range(2)]
    for request in place.hub.requests:
        if "/resolve/" in request.path:
            assert f"/resolve/{commits[0]}/" in request.path  # the second has the same files
    assert sorted(place.fetched()) == NEEDED


def test_fault_106_a_commit_that_was_pushed_away_is_named(place: Place) -> None:
    done = place.download("-q", "org/force-pushed", "--revision", SHA)
    refused(done, f"org/force-pushed has no revision {SHA}", code=6)


def test_fault_107_without_symbolic_links_files_are_files(place: Place, repository: Path) -> None:
    done = place.download("org/ok", HF_HUB_DISABLE_SYMLINKS="1")
    assert done.code == 0
    assert done.err.count("no symbolic links") == 1
    assert not any(path.is_symlink() for path in place.snapshot("org/ok").iterdir())
    assert is_whole(place, "org/ok", repository)
    place.hub.requests.clear()
    assert place.download("-q", "org/ok", HF_HUB_DISABLE_SYMLINKS="1").code == 0
    assert place.fetched() == []


def test_fault_107_what_another_commit_links_to_stays(place: Place) -> None:
    first = Path(place.download("-q", "org/moving").text.strip())
    second = Path(place.download("-q", "org/moving", HF_HUB_DISABLE_SYMLINKS="1").out.decode()[:-1])
    assert first != second
    for name in NEEDED:
        assert (first / name).is_symlink()
        assert not (second / name).is_symlink()
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_fault_108_an_empty_file_is_one(place: Place) -> None:
    assert place.download("-q", "org/empty-file").code == 0
    assert (place.snapshot("org/empty-file") / "added_tokens.json").read_bytes() == b""
    assert "added_tokens.json" not in place.fetched()


def test_fault_108_the_clock_does_not_matter(place: Place, repository: Path) -> None:
    assert place.download("-q", "org/ok").code == 0
    for path in place.blobs("org/ok").iterdir():
        os.utime(path, (0, 4e9))
    assert place.download("-q", "org/ok").code == 0
    assert place.llamacli("download", "--verify", "org/ok").code == 0
    assert sorted(place.fetched()) == NEEDED


@pytest.mark.parametrize("name", ["HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"])
@pytest.mark.parametrize("command", [["download", "org/ok"], ["run", "-m", "org/ok", "x"]])
def test_fault_109_a_variable_that_is_no_number_is_named(
    place: Place, name: str, command: list[str]
) -> None:
    done = ended(place.start(*command, "-q", **{name: "abc"}))
    refused(done, f"{name} must be a whole number of seconds, got 'abc'", code=2)


# -------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_fault_078_one_signal_stops_a_download_at_once_and_keeps_the_parts(
    place: Place, signum: int, repository: Path
) -> None:
    process = place.start("download", "-q", "org/stall", HF_HUB_DOWNLOAD_TIMEOUT="60")
    part = place.blobs("org/stall") / f"{large(place)}.llamacli.incomplete"
    wait_until(lambda: part.exists() and part.stat().st_blocks * 512 >= 4_500_000)
    began = time.monotonic()
    process.send_signal(signum)
    done = ended(process)
    assert time.monotonic() - began < 10  # not the minute that the server may be silent
    assert (done.code, done.out, done.err) == (128 + signum, b"", "")
    assert part.exists()


def test_after_a_kill_at_any_moment_the_cache_is_absent_partial_or_whole(
    place: Place, repository: Path
) -> None:
    place.hub.pause_s = 0.002
    states: set[str] = set()
    after = 0.0
    while "whole" not in states:  # as late as it takes, on whatever machine
        args = ("download", "-q", "org/slow")
        place.server.run(*args, **place.variables(), signum=signal.SIGKILL, after=after)
        done = place.download("--verify", "org/slow")
        assert done.code in (0, 6), done
        states |= {line.split()[1] for line in done.out.decode().splitlines()[1:]}
        after += 0.04
    assert place.download("-q", "org/slow").code == 0
    assert is_whole(place, "org/slow", repository)
    assert states <= {"absent", "partial", "whole"}
