import os
import stat
from pathlib import Path

import pytest

from llamacli.atomic import atomic_write, atomic_write_all
from llamacli.errors import LocalIOError
from tests.attacks import full_disk


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half of")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with (
        pytest.raises(LocalIOError, match=r"cannot write to .*: File too large"),
        full_disk(100),
        atomic_write(path) as temporary,
    ):
        temporary.write_text("x" * 1000)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_missing_folder_is_a_local_error(tmp_path: Path) -> None:
    with pytest.raises(LocalIOError, match="No such file"), atomic_write(tmp_path / "no" / "file"):
        pass


def test_several_files_appear_together_and_old_ones_leave(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    paths = [tmp_path / "first", tmp_path / "second"]
    with atomic_write_all(paths, removing=[tmp_path / "old", tmp_path / "never"]) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
        assert (tmp_path / "old").exists()
    assert sorted(os.listdir(tmp_path)) == ["first", "second"]


def test_permissions_follow_the_umask_even_if_the_writer_renames(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (tmp_path / "private").touch(mode=0o600)
    (tmp_path / "usual").touch()
    with atomic_write(path) as temporary:
        (tmp_path / "private").replace(temporary)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)
