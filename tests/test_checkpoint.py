import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM as Reference

from llamacli.checkpoint import open_checkpoint, save_state_dict
from llamacli.config import LlamaConfig
from llamacli.errors import LocalIOError
from llamacli.load_into import load_into
from llamacli.model import LlamaForCausalLM
from tests import attacks
from tests.tiny import SIZES, random_ids, reference

MEGABYTE = 1_000_000
MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"


# ----------------------------------------------------------------------------------------------
# Read


def test_headers_tell_everything_but_the_values(tmp_path: Path) -> None:
    save_state_dict(tmp_path, {"a": torch.ones(2, 3), "b": torch.tensor(5, dtype=torch.int64)})
    checkpoint = open_checkpoint(tmp_path)
    a, b = checkpoint.tensors["a"], checkpoint.tensors["b"]
    assert (a.shape, a.dtype, a.shard, a.nbytes) == ((2, 3), torch.float32, MODEL, 24)
    assert (b.shape, b.dtype, b.shard, b.nbytes) == ((), torch.int64, MODEL, 8)
    assert checkpoint.total_bytes == 32
    assert checkpoint.read("b") == 5


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.bool]
)
def test_every_dtype_comes_back_as_it_was(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.arange(-3, 9).reshape(3, 4).to(dtype)
    save_state_dict(tmp_path, {"a": tensor, "b": tensor.T})
    read = dict(open_checkpoint(tmp_path))
    assert read["a"].dtype == dtype
    assert torch.equal(read["a"], tensor)
    assert torch.equal(read["b"], tensor.T)


def test_files_are_closed_when_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    save_state_dict(tmp_path, {"a": torch.ones(4), "b": torch.ones(4)}, max_shard_bytes=16)
    before = len(os.listdir("/dev/fd"))
    checkpoint = open_checkpoint(tmp_path)
    assert len(os.listdir("/dev/fd")) == before + 2
    del checkpoint
    assert len(os.listdir("/dev/fd")) == before


# ----------------------------------------------------------------------------------------------
# Save


def test_shards_are_filled_in_order_and_indexed(tmp_path: Path) -> None:
    state = {name: torch.ones(size) for name, size in {"d": 3, "c": 1, "b": 9, "a": 2}.items()}
    save_state_dict(tmp_path, state, max_shard_bytes=16)
    shards = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert sorted(os.listdir(tmp_path)) == [*shards, INDEX]
    assert [set(load_file(tmp_path / shard)) for shard in shards] == [{"d", "c"}, {"b"}, {"a"}]
    assert json.loads((tmp_path / INDEX).read_text()) == {
        "metadata": {"total_size": 60},
        "weight_map": dict(zip("dcba", [shards[0], *shards], strict=True)),
    }
    assert all(torch.equal(tensor, state[name]) for name, tensor in open_checkpoint(tmp_path))


def test_tied_tensors_are_stored_once_under_the_first_name(tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    save_state_dict(tmp_path, model.state_dict())
    names = open_checkpoint(tmp_path).tensors
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_parts_of_one_tensor_are_not_taken_for_the_same(tmp_path: Path) -> None:
    whole = torch.arange(8.0)
    save_state_dict(tmp_path, {"first": whole[:4], "second": whole[4:]})
    read = dict(open_checkpoint(tmp_path))
    assert torch.equal(torch.cat((read["first"], read["second"])), whole)


def test_a_new_checkpoint_replaces_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    state = {"a": torch.ones(4), "b": torch.ones(4), "c": torch.ones(4)}
    three = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    two = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    expected = {1000: [MODEL], 16: [*three, INDEX], 32: [*two, INDEX], 999: [MODEL]}
    for max_shard_bytes, files in expected.items():
        save_state_dict(folder, state, max_shard_bytes=max_shard_bytes)
        (folder / "adapter.safetensors").touch()
        assert sorted(os.listdir(folder)) == sorted([*files, "adapter.safetensors"])
        assert open_checkpoint(folder).tensors.keys() == state.keys()


@pytest.mark.parametrize("max_shard_bytes", [100_000, 20_000])
def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(
    max_shard_bytes: int, tmp_path: Path
) -> None:
    save_state_dict(tmp_path, {"a": torch.ones(4), "b": torch.ones(4)}, max_shard_bytes=16)
    files = sorted(os.listdir(tmp_path))
    state = {"a": torch.zeros(100), "b": torch.zeros(5000)}
    with (
        pytest.raises(LocalIOError, match=r"cannot write to .*File too large"),
        attacks.full_disk(10_000),
    ):
        save_state_dict(tmp_path, state, max_shard_bytes=max_shard_bytes)
    assert sorted(os.listdir(tmp_path)) == files
    assert all(torch.equal(tensor, torch.ones(4)) for _, tensor in open_checkpoint(tmp_path))


def test_a_folder_that_cannot_be_made_is_a_local_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalIOError, match="cannot write to"):
        save_state_dict(tmp_path / "file", {"a": torch.ones(1)})


# ----------------------------------------------------------------------------------------------
# transformers


@pytest.mark.parametrize("kind", ["plain", "tied", "biases"])
@pytest.mark.parametrize("max_shard_size", [20_000, 5_000_000_000])
def test_transformers_and_we_write_the_same_files_and_read_each_other(
    kind: str, max_shard_size: int, tmp_path: Path
) -> None:
    theirs, ids = reference(kind), random_ids(1, 5)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=max_shard_size)
    config = LlamaConfig.from_file(tmp_path / "theirs" / "config.json")
    with torch.device("meta"):
        ours = LlamaForCausalLM(config)
    load_into(ours, open_checkpoint(tmp_path / "theirs"))
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)

    save_state_dict(tmp_path / "ours", theirs.state_dict(), max_shard_bytes=max_shard_size)
    config_text = (tmp_path / "theirs" / "config.json").read_text()
    (tmp_path / "ours" / "config.json").write_text(config_text)
    again = Reference.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert torch.equal(again(ids).logits, theirs(ids).logits)
    assert weight_files(tmp_path / "ours") == weight_files(tmp_path / "theirs")


def weight_files(folder: Path) -> dict[str, object]:
    """Weight file → names in it, or the index's weight map."""
    files: dict[str, object] = {path.name: set(load_file(path)) for path in folder.glob("model*s")}
    if (folder / INDEX).exists():
        files[INDEX] = json.loads((folder / INDEX).read_text())["weight_map"]
    return files
