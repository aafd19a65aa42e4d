import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamacli import hub
from llamacli.errors import CheckpointError, NotFoundError, RequestError
from tests.fake_hub import SHA, FakeHub, fake_hub
from tests.tiny import write_model

NEEDED = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.model"]
UNWANTED = ["README.md", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx"]
UNWANTED += ["original/config.json", "original/consolidated.00.pth", "fp16/model.safetensors"]

# Resolves hub names in a process of its own, because the client reads its settings when imported.
RESOLVE = """
import json, sys
from llamacli import hub
from llamacli.errors import LlamacliError
for kwargs in json.loads(sys.argv[1]):
    try:
        snapshot = hub.resolve(**kwargs)
        print(json.dumps([str(snapshot.path), snapshot.revision]))
    except LlamacliError as error:
        print(json.dumps([type(error).__name__, str(error), error.hint]))
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with all that a model needs, and more."""
    folder = tmp_path_factory.mktemp("repository")
    write_model(folder)
    (folder / "generation_config.json").write_text("{}")
    for name in UNWANTED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("unwanted")
    return folder


@pytest.fixture
def server(repository: Path) -> Iterator[FakeHub]:
    with fake_hub(repository) as running:
        yield running


def settings(endpoint: str, home: Path, **variables: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "LLAMACLI_"))}
    kept = {k: v for k, v in kept.items() if not k.lower().endswith("_proxy")}
    return {
        **kept,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        **variables,
    }


def resolve(env: dict[str, str], *calls: dict[str, object]) -> list[list[str]]:
    """The snapshot or the error of each call, all made by one process."""
    command = [sys.executable, "-c", RESOLVE, json.dumps(calls)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


# ------------------------------------------------------------------------------------ download


def test_run_fetches_what_it_needs_once_and_then_asks_nobody(
    server: FakeHub, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "llamacli", "run", "-m", "org/tiny", "--greedy"]
    command += ["-n", "5", "The sun"]
    env = settings(server.endpoint, tmp_path)
    online = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert online.returncode == 0
    assert re.fullmatch(
        r"llamacli: downloading org/tiny: [\d.]+ kB …\n(llamacli: verifying …\n)?"
        r"llamacli: org/tiny: [\d.]+ kB in [\d.]+ s \([\d.]+ \wB/s\)\n",
        online.stderr,
    )
    assert online.stdout
    listing, files = server.requests[:2], server.requests[2:]
    repository = "/api/models/org/tiny"
    assert [request.path for request in listing] == [
        f"{repository}/revision/main",
        f"{repository}/tree/{SHA}",
    ]
    found = [(r.method, r.path.removeprefix(f"/org/tiny/resolve/{SHA}/")) for r in files]
    assert sorted(found) == [("GET", name) for name in NEEDED]
    server.requests.clear()
    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (again.stdout, again.stderr) == (online.stdout, "")
    assert server.requests == []


def test_the_commit_names_the_snapshot_whatever_revision_was_asked_for(
    server: FakeHub, tmp_path: Path
) -> None:
    names: list[str | None] = [None, "main", "v1", SHA]
    calls = [{"model": "org/tiny", "revision": name} for name in names]
    found = resolve(settings(server.endpoint, tmp_path), *calls)
    assert {tuple(snapshot) for snapshot in found} == {(found[0][0], SHA)}
    assert sorted(path.name for path in Path(found[0][0]).iterdir()) == NEEDED


def test_fault_101_an_interrupted_download_is_completed(server: FakeHub, tmp_path: Path) -> None:
    env, call = settings(server.endpoint, tmp_path), {"model": "org/tiny"}
    server.lost = "model.safetensors"
    message = "org/tiny lists a file that the hub does not have"
    assert resolve(env, call) == [["NotFoundError", message, None]]
    server.lost = None
    server.requests.clear()
    there = {file.name for file in tmp_path.glob("hub/models--*/snapshots/*/*")}
    path, _ = resolve(env, call)[0]
    assert sorted(file.name for file in Path(path).iterdir()) == NEEDED
    asked = {r.path.rpartition("/")[2] for r in server.requests if "resolve" in r.path}
    assert {"model.safetensors"} <= asked <= {*NEEDED} - there


def test_a_part_that_another_tool_left_in_the_cache_is_completed(
    server: FakeHub, tmp_path: Path
) -> None:
    env, call = settings(server.endpoint, tmp_path), {"model": "org/tiny"}
    path = Path(resolve(env, call)[0][0])
    (path / "model.safetensors").unlink()
    shutil.rmtree(path.parents[1] / ".llamacli")  # as transformers, which fetches file by file
    resolve(env, call)
    assert sorted(file.name for file in path.iterdir()) == NEEDED


def test_the_picture_of_a_mask_fetches_no_weights_and_run_fetches_them_later(
    server: FakeHub, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "llamacli",
        "visualize-mask",
        "-q",
        "-m",
        "org/tiny",
        "The sun",
    ]
    env = settings(server.endpoint, tmp_path)
    for _ in range(2):
        done = subprocess.run(
            command, env=env, capture_output=True, timeout=60, stdin=subprocess.DEVNULL
        )
        assert (done.returncode, done.stderr) == (0, b"")
        paths = [request.path for request in server.requests]
        small = {path.rpartition("/")[2] for path in paths if "/resolve/" in path}
        assert small in ({*NEEDED} - {"model.safetensors"}, set())
        server.requests.clear()
    path, _ = resolve(env, {"model": "org/tiny"})[0]
    assert sorted(file.name for file in Path(path).iterdir()) == NEEDED


# -------------------------------------------------------------------------------------- errors


@pytest.fixture(scope="module")
def answers(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[str, str, str]]:
    """Repository → class, message and hint of its error."""
    names = "missing private gated disabled bad-token forbidden limited broken portal".split()
    with fake_hub(repository) as running:
        env = settings(running.endpoint, tmp_path_factory.mktemp("home"), HF_TOKEN="hf_secret")
        found = resolve(env, *({"model": f"org/{name}"} for name in names))
    return dict(zip(names, map(tuple, found), strict=True))


@pytest.mark.parametrize(
    ("name", "error", "message", "hint"),
    [
        pytest.param("missing", "NotFoundError", "no such hub model", "spelling", id="fault-087"),
        pytest.param("private", "NotFoundError", "no such hub model", "token", id="fault-085"),
        pytest.param("bad-token", "AuthenticationError", "401", "HF_TOKEN", id="fault-085-token"),
        pytest.param(
            "gated", "AuthenticationError", "gated", "huggingface.co/org/gated", id="fault-086"
        ),
        pytest.param(
            "disabled", "AuthenticationError", "disabled", "org/disabled", id="fault-086-disabled"
        ),
        pytest.param("forbidden", "AuthenticationError", "403", "login", id="fault-086-other"),
        pytest.param("limited", "NetworkError", "429", "later", id="fault-088"),
        pytest.param("broken", "NetworkError", "500", "later", id="fault-089"),
        pytest.param("portal", "NetworkError", "not a hub's", "HF_ENDPOINT", id="fault-095"),
    ],
)
def test_an_answer_of_the_hub_is_one_plain_line(
    answers: dict[str, tuple[str, str, str]], name: str, error: str, message: str, hint: str
) -> None:
    found = answers[name]
    assert found[0] == error
    assert message in found[1]
    assert found[1].isprintable()
    assert hint in found[2]
    assert "hf_secret" not in str(found)


def test_fault_087_a_revision_that_is_not_there_is_named(server: FakeHub, tmp_path: Path) -> None:
    call = {"model": "org/tiny", "revision": "v9"}
    found = resolve(settings(server.endpoint, tmp_path), call)
    assert found == [["NotFoundError", "org/tiny has no revision v9", None]]


def test_fault_090_a_hub_that_cannot_be_reached_is_a_network_error(tmp_path: Path) -> None:
    found = resolve(settings("http://127.0.0.1:9", tmp_path), {"model": "org/tiny"})
    assert found[0][0] == "NetworkError"
    assert "cannot reach the hub for org/tiny: [Errno 111] Connection refused" in found[0][1]


def test_fault_090_the_cache_serves_when_the_hub_is_down(server: FakeHub, tmp_path: Path) -> None:
    call = {"model": "org/tiny"}
    path, _ = resolve(settings(server.endpoint, tmp_path), call)[0]
    assert resolve(settings("http://127.0.0.1:9", tmp_path), call) == [[path, SHA]]


@pytest.mark.parametrize("how", ["variable", "argument"])
def test_fault_104_what_is_not_cached_is_not_found_offline(
    server: FakeHub, tmp_path: Path, how: str
) -> None:
    variables = {"HF_HUB_OFFLINE": "1"} if how == "variable" else {}
    env = settings(server.endpoint, tmp_path, **variables)
    call = {"model": "org/tiny", "offline": how == "argument"}
    message = "org/tiny is not (wholly) in the cache, and offline mode is on"
    assert resolve(env, call) == [["NotFoundError", message, None]]
    assert server.requests == []
    path = Path(resolve(settings(server.endpoint, tmp_path), {"model": "org/tiny"})[0][0])
    server.requests.clear()
    assert resolve(env, call) == [[str(path), SHA]]
    (path / "model.safetensors").unlink()
    message += ": it lacks model.safetensors"
    assert resolve(env, call) == [["NotFoundError", message, None]]
    assert server.requests == []


def test_fault_103_a_cache_that_cannot_be_written_is_a_local_error(
    server: FakeHub, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    found = resolve(settings(server.endpoint, tmp_path / "file"), {"model": "org/tiny"})
    assert found[0][0] == "LocalIOError"
    assert "Not a directory" in found[0][1]


# ----------------------------------------------------------------------------- folders and names


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert hub.resolve(tmp_path) == hub.resolve(str(tmp_path)) == (tmp_path, None)
    assert hub.resolve("~/models") == (tmp_path / "models", None)
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("models/mine") == (Path("models/mine"), None)


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="it has no revision 'v1'"):
        hub.resolve(tmp_path, revision="v1")


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(RequestError, match="is a file; a model is the folder around it"):
        hub.resolve(tmp_path / "model.safetensors")


STRANGE = ["./missing", "/missing", "~nobody/x", "../a/b", "a/b/c", "a..b", "-a", "", "a b"]
STRANGE += ["a\0b", "\x1b[2J", "\udcff", "x" * 5000, "org/" + "y" * 100]


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_that_is_neither_a_folder_nor_a_hub_name_is_not_found(name: str) -> None:
    with pytest.raises(NotFoundError, match="there is no folder") as caught:
        hub.resolve(name)
    assert str(caught.value).isprintable()


def test_fault_026_a_gguf_file_as_the_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.Q4_0.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0")
    with pytest.raises(CheckpointError, match="GGUF is not supported"):
        hub.resolve(path)
