"""Faults 1–26 of weight files: each is a named error, found before memory is allocated."""

import json
import logging
import os
import pickle
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load_file, save_file

from llamacli.checkpoint import open_checkpoint, save_state_dict
from llamacli.errors import CheckpointError, LlamacliError, LocalIOError, NotFoundError
from tests import attacks

MEGABYTE = 1_000_000
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Tensor a in the first of two shards, b in the second."""
    save_state_dict(tmp_path, {"a": torch.ones(4), "b": torch.ones(4)}, max_shard_bytes=16)
    return tmp_path


def change_index(folder: Path, **changed: object) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text()) | changed
    path.write_text(json.dumps({key: value for key, value in index.items() if value is not None}))


def in_child(code: str, *arguments: object) -> str:
    """stdout of Python code that must not take the test process down."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert child.returncode == 0, child.stderr
    return child.stdout


# ----------------------------------------------------------------------------------------------
# One file


@pytest.mark.parametrize("fault", attacks.BAD_FILES)
def test_a_bad_file_is_a_named_error(fault: str, tmp_path: Path) -> None:
    content, words = attacks.BAD_FILES[fault]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError) as caught, attacks.memory_limit(64 * MEGABYTE):
        open_checkpoint(tmp_path)
    message = str(caught.value)
    assert message.startswith("model.safetensors: ")
    assert words in message
    assert len(message) < 250
    assert message.isprintable()


def test_fault_007_the_hint_lists_the_supported_dtypes(tmp_path: Path) -> None:
    content, _ = attacks.BAD_FILES["fault-007-unknown-dtype"]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert "F64, F32, F16, BF16" in str(caught.value.hint)


@given(cut=st.integers(min_value=1, max_value=len(attacks.GOOD)))
def test_fault_004_a_file_cut_anywhere_is_refused(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    (folder / "model.safetensors").write_bytes(attacks.GOOD[:-cut])
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert caught.value.hint == "download the file again"


@given(at=st.integers(0, len(attacks.GOOD) - 1), byte=st.integers(0, 255))
def test_fault_003_a_changed_byte_is_harmless_or_refused(
    at: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    content = bytearray(attacks.GOOD)
    content[at] = byte
    (folder / "model.safetensors").write_bytes(content)
    with suppress(LlamacliError):
        assert sum(tensor.nbytes for _, tensor in open_checkpoint(folder)) == 8


def test_fault_021_pickle_weights_are_refused_unopened(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    evil = pickle.dumps(attacks.EvilPickle(canary))
    for name in ("pytorch_model.bin", "model.pt", "consolidated.00.pth"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_bytes(evil)
        with pytest.raises(CheckpointError, match="pickle weights are refused") as caught:
            open_checkpoint(folder)
        assert "safetensors" in str(caught.value.hint)
    assert not canary.exists()
    pickle.loads(evil)
    assert canary.exists(), "the pickle was harmless, so the test proved nothing"


def test_fault_022_the_hint_says_what_to_do_with_a_pointer(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(attacks.LFS_POINTER)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert "git lfs pull" in str(caught.value.hint)


def test_fault_023_a_directory_a_fifo_or_a_device_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for make in (path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero")):
        make()
        with pytest.raises(CheckpointError, match=r"model\.safetensors is not a regular file"):
            open_checkpoint(tmp_path)
        path.rmdir() if path.is_dir() else path.unlink()


def test_fault_023_an_unreadable_file_is_a_local_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.symlink_to(path)
    with pytest.raises(LocalIOError, match=r"cannot read model\.safetensors: Too many levels"):
        open_checkpoint(tmp_path)
    path.unlink()
    path.touch(mode=0)
    if os.geteuid() != 0:  # root may read everything
        with pytest.raises(LocalIOError, match="Permission denied"):
            open_checkpoint(tmp_path)


def test_fault_024_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    save_file({"a": torch.ones(10, 4096)}, tmp_path / "model.safetensors")
    printed = in_child(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from llamacli.checkpoint import open_checkpoint\n"
        "from llamacli.errors import CheckpointError\n"
        "checkpoint = open_checkpoint(Path(sys.argv[1]))\n"
        "os.truncate(Path(sys.argv[1], 'model.safetensors'), 5000)\n"
        "try:\n"
        "    checkpoint.read('a')\n"
        "except CheckpointError as problem:\n"
        "    print(problem)\n",
        tmp_path,
    )
    assert printed == "model.safetensors became shorter while it was read\n"


def test_fault_026_a_gguf_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0")
    for model in (path, tmp_path):
        with pytest.raises(CheckpointError, match="GGUF is not supported"):
            open_checkpoint(model)


# ----------------------------------------------------------------------------------------------
# Several files


def test_fault_016_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / SHARD).unlink()
    with pytest.raises(NotFoundError, match=f"{SHARD} is missing") as caught:
        open_checkpoint(sharded)
    assert "download" in str(caught.value.hint)


def test_fault_017_a_tensor_in_another_shard_is_refused(sharded: Path) -> None:
    change_index(sharded, weight_map={"a": SHARD, "b": SHARD})
    with pytest.raises(CheckpointError, match=f"{SHARD} lacks what the index promises: b"):
        open_checkpoint(sharded)


def test_fault_017_an_extra_copy_is_refused(sharded: Path) -> None:
    save_file({"a": torch.zeros(4), "b": torch.zeros(4)}, sharded / SHARD)
    with pytest.raises(CheckpointError, match=f"{SHARD} holds what the index puts elsewhere: b"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("fault", attacks.BAD_INDEXES)
def test_a_bad_index_is_a_named_error(fault: str, sharded: Path) -> None:
    weight_map, words = attacks.BAD_INDEXES[fault]
    change_index(sharded, weight_map=weight_map)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(sharded)
    assert str(caught.value).startswith("model.safetensors.index.json: ")


def test_fault_018_no_file_outside_the_folder_is_opened(sharded: Path) -> None:
    change_index(sharded, weight_map={"a": SHARD, "b": "../outside.safetensors"})
    printed = in_child(
        "import sys\n"
        "from pathlib import Path\n"
        "from llamacli.checkpoint import open_checkpoint\n"
        "from llamacli.errors import CheckpointError\n"
        "def audit(event, arguments):\n"
        "    if event == 'open':\n"
        "        opened.append(Path(str(arguments[0])).name)\n"
        "opened = []\n"
        "sys.addaudithook(audit)\n"
        "try:\n"
        "    open_checkpoint(Path(sys.argv[1]))\n"
        "except CheckpointError:\n"
        "    print(*opened)\n",
        sharded,
    )
    opened = printed.split()
    assert "model.safetensors.index.json" in opened
    assert not [name for name in opened if name.endswith(".safetensors")]


def test_fault_019_a_lying_total_size_is_noted(
    sharded: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_index(sharded, metadata={"total_size": 31})
    assert open_checkpoint(sharded).total_bytes == 32
    assert caplog.messages == ["model.safetensors.index.json says 31 bytes, the shards hold 32"]


def test_fault_020_a_single_file_beside_an_index_counts(
    sharded: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file({"c": torch.ones(1)}, sharded / "model.safetensors")
    assert list(open_checkpoint(sharded).tensors) == ["c"]
    assert "model.safetensors is used" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_fault_025_a_folder_replaced_while_it_is_open_changes_nothing(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    save_state_dict(sharded, {"a": torch.zeros(4), "b": torch.zeros(4)}, max_shard_bytes=16)
    assert all(torch.equal(tensor, torch.ones(4)) for _, tensor in checkpoint)


def test_fault_025_a_folder_replaced_while_it_is_opened_is_refused(
    tmp_path: Path, sharded: Path
) -> None:
    link, other = tmp_path / "link", tmp_path / "other"
    link.symlink_to(sharded)
    save_state_dict(other, {"a": torch.zeros(4), "b": torch.zeros(4)}, max_shard_bytes=16)

    def replace_folder_once(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and arguments[0] == str(link / SHARD) and not new.is_symlink():
            new.symlink_to(other)
            os.replace(new, link)
            new.symlink_to("done")

    new = tmp_path / "new"
    sys.addaudithook(replace_folder_once)
    with pytest.raises(CheckpointError, match="was replaced while the model was opened"):
        open_checkpoint(link)
    assert torch.equal(open_checkpoint(link).read("b"), torch.zeros(4))


# ----------------------------------------------------------------------------------------------
# Values, and nothing at all


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fault_014_values_that_are_not_finite_are_named(
    value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    tensors = {"a": torch.ones(3, 3, dtype=dtype), "b": torch.ones(2, dtype=torch.int8)}
    save_file(tensors, tmp_path / "model.safetensors")
    open_checkpoint(tmp_path).check_finite()
    tensors["a"][1, 2] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors: a holds values that are not fi"):
        open_checkpoint(tmp_path).check_finite()


def test_no_weights_at_all_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(
        NotFoundError, match=r"neither model\.safetensors nor model\.safetensors\.in"
    ):
        open_checkpoint(tmp_path)
    with pytest.raises(NotFoundError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(NotFoundError, match="file is a file, not a folder"):
        open_checkpoint(tmp_path / "file")


def test_the_library_itself_accepts_our_good_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(attacks.GOOD)
    assert load_file(tmp_path / "model.safetensors").keys() == {"a"}
