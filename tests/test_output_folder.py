"""Whatever happens, `out` is what it was or what it should be, and nothing else is left."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llamacli.cli.signals import Interrupted
from llamacli.errors import LocalIOError
from llamacli.output_folder import output_folder
from tests.attacks import full_disk

OLD = {"config.json": "{}", "model.safetensors": "old"}
NEW = {"config.json": "{}", "model.safetensors": "new"}


def fill(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def everything(folder: Path) -> dict[str, str]:
    """All that lies below: files with their text, links with their target, folders with none."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_text()
        if path.is_file()
        else ""
        for path in folder.rglob("*")
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def old_out(out: Path) -> Path:
    return fill(out, OLD)


def write(out: Path, **options: Any) -> None:
    with output_folder(out, **options) as folder:
        fill(folder, NEW)


# ------------------------------------------------------------------------------ what should be


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_appears_when_it_is_whole(out: Path, replace: bool) -> None:
    with output_folder(out, replace=replace) as folder:
        assert os.listdir(folder) == []
        fill(folder, NEW)
        assert not out.exists()
    assert content(out) == NEW
    assert os.listdir(out.parent) == ["out"]


def test_an_empty_folder_may_have_the_name(out: Path) -> None:
    out.mkdir()
    write(out)
    assert content(out) == NEW
    assert os.listdir(out.parent) == ["out"]


def test_a_model_is_replaced_on_request(old_out: Path) -> None:
    with output_folder(old_out, replace=True) as folder:
        fill(folder, {"config.json": "{}"})
        assert content(old_out) == OLD
    assert content(old_out) == {"config.json": "{}"}
    assert os.listdir(old_out.parent) == ["out"]


def test_permissions_follow_the_umask(out: Path) -> None:
    write(out)
    (out.parent / "usual").mkdir()
    assert out.stat().st_mode == (out.parent / "usual").stat().st_mode


# --------------------------------------------------------------------------------- fault 110

Place = Callable[[Path], dict[str, Any]]


def linked_snapshot(tmp_path: Path) -> dict[str, Any]:
    """As the hub's cache has them: a folder of links, here to files in `out`."""
    fill(tmp_path / "out", OLD)
    (tmp_path / "snapshot").mkdir()
    for name in OLD:
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "out" / name)
    return {"source": tmp_path / "snapshot", "replace": True}


def linked_source(tmp_path: Path) -> dict[str, Any]:
    fill(tmp_path / "out", OLD)
    (tmp_path / "link").symlink_to("out")
    return {"source": tmp_path / "link", "replace": True}


def model_with(name: str, make: Callable[[Path], object]) -> Place:
    def prepare(tmp_path: Path) -> dict[str, Any]:
        make(fill(tmp_path / "out", OLD) / name)
        return {"replace": True}

    return prepare


REFUSED: dict[str, tuple[Place, str, str | None]] = {
    "exists": (
        lambda tmp: {"_": fill(tmp / "out", OLD)},
        "out exists and is not empty",
        "replace it with --force",
    ),
    "is-a-file": (lambda tmp: {"_": (tmp / "out").touch()}, "out is a file, not a folder", "move"),
    "is-a-file-and-replace": (
        lambda tmp: {"_": (tmp / "out").touch(), "replace": True},
        "out is a file, not a folder",
        "name another folder",
    ),
    "is-a-link": (
        lambda tmp: {"_": (tmp / "out").symlink_to(fill(tmp / "a", OLD)), "replace": True},
        "out is a symbolic link, not a folder",
        "name another folder",
    ),
    "is-a-dangling-link": (
        lambda tmp: {"_": (tmp / "out").symlink_to("nowhere")},
        "out is a symbolic link, not a folder",
        "name another folder",
    ),
    "is-the-input": (
        lambda tmp: {"source": fill(tmp / "out", OLD), "replace": True},
        "out is the input, or one holds the other",
        "name another folder",
    ),
    "is-the-input-by-another-name": (linked_source, "out is the input", "name another"),
    "holds-the-files-of-the-input": (linked_snapshot, "out is the input", "name another"),
    "lies-in-the-input": (
        lambda tmp: {"source": fill(tmp, OLD), "replace": True},
        "out is the input, or one holds the other",
        "name another folder",
    ),
    "holds-the-input": (
        lambda tmp: {"source": fill(tmp / "out" / "in", OLD), "replace": True},
        "out is the input, or one holds the other",
        "name another folder",
    ),
    "is-no-model": (
        lambda tmp: {"_": fill(tmp / "out", {"letter.txt": "Dear"}), "replace": True},
        "out is not replaced: only a model is",
        "remove it",
    ),
    "has-a-sub-folder": (model_with("sub", Path.mkdir), "out is not replaced", "remove it"),
    "has-a-link": (
        model_with("link", lambda path: path.symlink_to("config.json")),
        "out is not replaced",
        "remove it",
    ),
    "staging-is-a-file": (
        lambda tmp: {"_": (tmp / ".out.tmp").touch()},
        ".out.tmp is a file, not a folder",
        "move it away",
    ),
    "staging-is-a-link": (
        lambda tmp: {"_": (tmp / ".out.tmp").symlink_to(fill(tmp / "a", OLD))},
        ".out.tmp is a symbolic link, not a folder",
        "move it away",
    ),
    "old-is-a-link": (
        lambda tmp: {"_": (tmp / ".out.old").symlink_to(fill(tmp / "a", OLD))},
        ".out.old is a symbolic link, not a folder",
        "move it away",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_fault_110_what_must_not_be_written_is_refused_before_anything_is_made(
    case: str, tmp_path: Path
) -> None:
    prepare, message, hint = REFUSED[case]
    options = prepare(tmp_path)
    options.pop("_", None)
    before = everything(tmp_path)
    changed = tmp_path.stat().st_mtime_ns
    with pytest.raises(LocalIOError, match=message) as caught:
        write(tmp_path / "out", **options)
    assert hint in (caught.value.hint or "")
    assert "\n" not in str(caught.value)
    assert everything(tmp_path) == before
    assert tmp_path.stat().st_mtime_ns == changed


def test_fault_110_a_missing_parent_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(LocalIOError, match=r"the folder .*/no does not exist"):
        write(tmp_path / "no" / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_fault_110_a_path_without_a_name_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LocalIOError, match="is no name for a new folder"):
        write(Path(name), replace=True)
    assert os.listdir(tmp_path) == []


def test_fault_110_a_neighbor_of_the_input_may_be_written(tmp_path: Path) -> None:
    source = fill(tmp_path / "out-of-hub", OLD)
    write(tmp_path / "out", source=source)
    assert content(tmp_path / "out") == NEW
    assert content(source) == OLD


@pytest.mark.parametrize(
    ("replace", "message"), [(False, "exists and is not empty"), (True, "is not replaced")]
)
def test_fault_110_what_takes_the_name_meanwhile_stays(
    out: Path, replace: bool, message: str
) -> None:
    def overtaken() -> None:
        with output_folder(out, replace=replace) as folder:
            fill(folder, NEW)
            fill(out, {"letter.txt": "Dear"})

    with pytest.raises(LocalIOError, match=message):
        overtaken()
    assert everything(out.parent) == {"out": "", "out/letter.txt": "Dear"}


# --------------------------------------------------------------------------- failures, fault 111


@pytest.mark.parametrize("problem", [Interrupted(signal.SIGTERM), ValueError("no"), SystemExit(1)])
def test_a_failure_passes_through_and_leaves_no_trace(
    old_out: Path, problem: BaseException
) -> None:
    def write_half() -> None:
        with output_folder(old_out, replace=True) as folder:
            fill(folder / "sub", NEW)
            raise problem

    with pytest.raises(type(problem)) as caught:
        write_half()
    assert caught.value is problem
    assert content(old_out) == OLD
    assert os.listdir(old_out.parent) == ["out"]


@pytest.mark.parametrize("replace", [False, True])
def test_fault_111_a_full_disk_leaves_what_was_there_and_nothing_else(
    out: Path, replace: bool
) -> None:
    if replace:
        fill(out, OLD)
    before = everything(out.parent)
    with (
        pytest.raises(LocalIOError, match=r"cannot write to .*/out: File too large"),
        full_disk(100),
        output_folder(out, replace=replace) as folder,
    ):
        fill(folder, NEW | {"model.safetensors": "x" * 1000})
    assert everything(out.parent) == before


def test_a_local_error_of_the_body_keeps_its_words(out: Path) -> None:
    with pytest.raises(LocalIOError, match=r"^disk full$"), output_folder(out):
        raise LocalIOError("disk full")


# ------------------------------------------------------------------------------- fault 113: order


def traced(monkeypatch: pytest.MonkeyPatch, name: str, after: Callable[..., None]) -> None:
    """After each call of the real os.name, see its arguments."""
    real = getattr(os, name)

    def wrapper(*args: Any) -> None:
        real(*args)
        after(*args)

    monkeypatch.setattr(os, name, wrapper)


@pytest.mark.parametrize("replace", [False, True])
def test_fault_113_all_is_synced_before_the_rename_and_the_names_after_it(
    out: Path, replace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if replace:
        fill(out, OLD)
    steps: list[str] = []
    inodes: dict[int, str] = {out.parent.stat().st_ino: "parent"}

    traced(monkeypatch, "fsync", lambda fd: steps.append(f"sync {inodes[os.fstat(fd).st_ino]}"))
    traced(monkeypatch, "rename", lambda a, b: steps.append(f"{Path(a).name} → {Path(b).name}"))
    with output_folder(out, replace=replace) as folder:
        fill(folder, NEW)
        for path in (folder, *folder.iterdir()):
            inodes[path.stat().st_ino] = path.name

    files, steps = steps[:2], steps[2:]
    assert sorted(files) == ["sync config.json", "sync model.safetensors"]
    if replace:
        expected = ["sync new", "out → .out.old", "new → out", "sync parent", ".out.old → old"]
    else:
        expected = ["sync new", "new → out", "sync parent"]
    assert steps == expected


# ----------------------------------------------------------------- between the two renames


def test_the_old_folder_is_put_back_if_the_new_one_cannot_get_its_name(
    old_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace = old_out.with_name(".out.tmp")
    after_first = iter([lambda: shutil.rmtree(workplace / "new")])
    traced(monkeypatch, "rename", lambda *_: next(after_first, lambda: None)())
    with pytest.raises(LocalIOError, match=r"cannot write to .*/out: No such file"):
        write(old_out, replace=True)
    assert content(old_out) == OLD
    assert os.listdir(old_out.parent) == ["out"]


@pytest.mark.parametrize(("renames", "expected"), [(1, OLD), (2, NEW)])
def test_a_signal_between_the_renames_leaves_one_whole_folder(
    old_out: Path, renames: int, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(1, 10))

    def interrupt(*_: Any) -> None:
        if next(calls) == renames:
            raise Interrupted(signal.SIGTERM)

    traced(monkeypatch, "rename", interrupt)
    with pytest.raises(Interrupted):
        write(old_out, replace=True)
    assert content(old_out) == expected
    assert os.listdir(old_out.parent) == ["out"]


def test_a_signal_while_the_old_folder_is_removed_leaves_the_new_one_alone(
    old_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(1, 10))

    def interrupt(*_: Any) -> None:
        if next(calls) == 1:
            raise Interrupted(signal.SIGTERM)

    real = os.unlink
    monkeypatch.setattr(os, "unlink", lambda *args, **where: interrupt(real(*args, **where)))
    with pytest.raises(Interrupted):
        write(old_out, replace=True)
    assert content(old_out) == NEW
    assert os.listdir(old_out.parent) == ["out"]


WRITE = """
import os, signal, sys
from pathlib import Path
from llamacli.output_folder import output_folder

def write(text, **options):
    with output_folder(Path(sys.argv[1]), **options) as folder:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text(text)
"""

KILL = """
real, calls = os.rename, iter(range(1, 10))
def rename(*args):
    real(*args)
    if next(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
os.rename = rename
write("new", replace=True)
"""


def killed_after(renames: int, out: Path) -> None:
    script = [sys.executable, "-c", WRITE + KILL, str(out), str(renames)]
    assert subprocess.run(script).returncode == -signal.SIGKILL


def test_a_kill_between_the_renames_loses_nothing(old_out: Path) -> None:
    killed_after(1, old_out)
    assert not old_out.exists()
    with pytest.raises(LocalIOError, match="exists and is not empty"), output_folder(old_out):
        pytest.fail("the old folder is back before the work begins")
    assert content(old_out) == OLD
    assert os.listdir(old_out.parent) == ["out"]


@pytest.mark.parametrize("renames", [1, 2, 3])
def test_whenever_a_run_was_killed_the_next_one_replaces_and_sweeps(
    old_out: Path, renames: int
) -> None:
    killed_after(renames, old_out)
    with output_folder(old_out, replace=True) as folder:
        assert content(old_out) == (OLD if renames == 1 else NEW)
        assert sorted(os.listdir(old_out.parent)) == [".out.tmp", "out"]
        assert os.listdir(folder.parent) == ["new"]
        fill(folder, {"config.json": "{}"})
    assert content(old_out) == {"config.json": "{}"}
    assert os.listdir(old_out.parent) == ["out"]


def test_an_empty_folder_is_not_taken_for_the_new_one(old_out: Path) -> None:
    killed_after(1, old_out)
    old_out.mkdir()
    with pytest.raises(LocalIOError, match="exists and is not empty"):
        write(old_out)
    assert content(old_out) == OLD


# ------------------------------------------------------------------------------ fault 114: two


HOLD = "with output_folder(Path(sys.argv[1])) as folder:\n"
HOLD += "    (folder / 'half').write_text('of'); print('ready', flush=True); sys.stdin.read()"


@contextmanager
def held(out: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, that writes the folder until its stdin ends."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    script = [sys.executable, "-c", WRITE + HOLD, str(out)]
    with subprocess.Popen(script, **pipes) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_fault_114_two_do_not_write_the_same_folder(out: Path) -> None:
    with held(out) as process:
        before, descriptors = everything(out.parent), os.listdir("/dev/fd")
        with pytest.raises(LocalIOError, match=r"^another llamacli is writing .*/out$"):
            write(out)
        assert everything(out.parent) == before
        write(out.with_name("other"))
        assert os.listdir("/dev/fd") == descriptors
        process.communicate("", timeout=60)
    assert process.returncode == 0
    assert content(out) == {"half": "of"}
    assert sorted(os.listdir(out.parent)) == ["other", "out"]


def test_fault_114_a_killed_run_holds_no_lock_and_is_swept(out: Path) -> None:
    with held(out) as process:
        process.kill()
        process.wait(timeout=60)
    left = out.with_name(".out.tmp")
    assert everything(left) == {"new": "", "new/half": "of"}
    fill(left, {"file": "of an earlier version"})
    (left / "link").symlink_to(fill(out.with_name("elsewhere"), OLD))
    with output_folder(out) as folder:
        assert os.listdir(folder.parent) == ["new"]
        fill(folder, NEW)
    assert content(out) == NEW
    assert content(out.with_name("elsewhere")) == OLD
    assert sorted(os.listdir(out.parent)) == ["elsewhere", "out"]


@pytest.mark.parametrize("made_again", [False, True])
@pytest.mark.parametrize("where", ["mkdir", "flock"])
def test_fault_114_a_lock_on_a_folder_that_has_gone_does_not_count(
    out: Path, where: str, made_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace = fill(out.with_name(".out.tmp"), {})
    module: Any = os if where == "mkdir" else fcntl
    real = getattr(module, where)

    def while_the_other_ends(*args: Any) -> None:
        monkeypatch.undo()
        try:
            if where == "mkdir":
                real(*args)
        finally:
            workplace.rmdir()
            if made_again:
                workplace.mkdir()
        real(*args)

    monkeypatch.setattr(module, where, while_the_other_ends)
    with output_folder(out) as folder:
        with pytest.raises(LocalIOError, match="another llamacli"):
            write(out)
        fill(folder, NEW)
    assert content(out) == NEW
    assert os.listdir(out.parent) == ["out"]


def test_fault_114_a_link_that_takes_the_place_is_not_followed(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = fill(out.with_name("elsewhere"), OLD)
    mkdir = os.mkdir

    def too_late(*args: Any) -> None:
        Path(args[0]).symlink_to(elsewhere)
        mkdir(*args)

    monkeypatch.setattr(os, "mkdir", too_late)
    with pytest.raises(LocalIOError, match=r"cannot write to .*/out: "):
        write(out)
    assert content(elsewhere) == OLD


RACE = """
from llamacli.errors import LocalIOError
for _ in range(40):
    try:
        write(sys.argv[2], replace=True)
    except LocalIOError as problem:
        print(problem)
"""


def test_fault_114_many_at_once_end_with_one_whole_folder(old_out: Path) -> None:
    script = [sys.executable, "-c", WRITE + RACE, str(old_out)]
    pipes = {"stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen([*script, name], **pipes) for name in "abc"]
    refusals = []
    for racer in racers:
        refusals += racer.communicate(timeout=60)[0].splitlines()
        assert racer.returncode == 0
    # The look before the lock may see an old folder that somebody else is just removing.
    refusals = [line for line in refusals if "is not replaced" not in line]
    assert set(refusals) <= {f"another llamacli is writing {old_out}"}
    assert content(old_out).keys() == NEW.keys()
    assert content(old_out)["model.safetensors"] in "abc"
    assert os.listdir(old_out.parent) == ["out"]
