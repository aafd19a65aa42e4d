import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from llamacli.errors import ArtifactError, CheckpointError, ConfigError, RequestError
from llamacli.hub.listing import (
    HubFile,
    Listing,
    check_name,
    choose,
    listing_text,
    read_listing,
)
from tests.fake_hub import SHA

SMALL, LARGE = "a" * 40, "b" * 64


def listing(*paths: str) -> Listing:
    files = (HubFile(p, 5, LARGE if p.endswith(".safetensors") else SMALL) for p in paths)
    return Listing(SHA, tuple(sorted(files)))


BASE = ("config.json", "tokenizer.json")
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def wanted(*paths: str, **patterns: list[str]) -> list[str]:
    return [file.path for file in choose(listing(*paths), "org/a", **patterns).wanted]


def test_a_run_needs_weights_once() -> None:
    kept = sorted((*BASE, INDEX, *SHARDS))
    others = ["consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "a.gguf"]
    assert wanted(*kept, *others, "README.md", "original/consolidated.00.pth") == kept
    assert wanted(*kept, "model.safetensors") == [*BASE[:1], "model.safetensors", BASE[1]]


def test_what_is_skipped_has_a_reason() -> None:
    files = (*BASE, "model.safetensors", *SHARDS, "x.bin", "README.md", "onnx/a.json")
    skipped = choose(listing(*files), "org/a").skipped
    assert {reason: [f.path for f in files] for reason, files in skipped.items()} == {
        "not needed to run": ["README.md"],
        "the same weights again": [*SHARDS],
        "in a subfolder": ["onnx/a.json"],
        "weights in another format": ["x.bin"],
    }


def test_patterns_choose_instead() -> None:
    files = (*BASE, "x.bin", "onnx/a.json", "README.md")
    assert wanted(*files, include=["*.bin", "onnx/*"]) == ["onnx/a.json", "x.bin"]
    assert wanted(*files, include=["*"], exclude=["*.json"]) == ["README.md", "x.bin"]
    assert "config.json" not in wanted(*BASE, "model.safetensors", exclude=["config.json"])
    with pytest.raises(RequestError, match=r"no file of org/a matches; it has README.md"):
        wanted(*files, include=["*.nothing"])


def test_fault_099_what_no_run_can_use_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no safetensors weights; it has config.json, x.bin"):
        wanted("config.json", "x.bin")
    with pytest.raises(ConfigError, match=r"no config\.json"):
        wanted("model.safetensors")
    with pytest.raises(CheckpointError, match="it is empty"):
        wanted()


@pytest.mark.parametrize("pair", [("A", "a"), ("é", "e\u0301"), ("x/ß", "x/ss")])
def test_fault_096_names_that_some_systems_take_for_one(pair: tuple[str, str]) -> None:
    with pytest.raises(ArtifactError, match="two files of one name"):
        wanted(*pair, include=["*"])


@given(st.text(min_size=1))
def test_fault_096_a_name_that_passes_stays_in_its_folder(name: str) -> None:
    with suppress(ArtifactError):
        check_name(name)
        path = Path("/folder") / name
        assert path.is_relative_to("/folder")
        assert ".." not in path.parts


def test_a_listing_is_kept_in_the_format_of_huggingface_hub(tmp_path: Path) -> None:
    from huggingface_hub._tree_cache import read_tree_cache

    before = listing(*BASE, "model.safetensors")
    (tmp_path / "trees").mkdir()
    path = tmp_path / "trees" / f"{SHA}.json"
    path.write_text(listing_text(before))
    assert read_listing(path) == before
    entries = read_tree_cache(str(tmp_path), SHA)
    assert entries is not None
    assert entries["model.safetensors"].lfs_sha256 == LARGE
    assert entries["config.json"].blob_id == SMALL


@pytest.mark.parametrize(
    "files",
    [
        [],
        {"a": {"size": -1, "blob_id": SMALL}},
        {"a": {"size": 1, "blob_id": "../x"}},
        {"../a": {"size": 1, "blob_id": SMALL}},
        {"a": {"size": 1}},
        {"a": 5},
    ],
)
def test_a_listing_that_somebody_spoiled_is_none(tmp_path: Path, files: object) -> None:
    path = tmp_path / f"{SHA}.json"
    path.write_text(json.dumps({"format_version": 1, "files": files}))
    assert read_listing(path) is None
    path.write_text(json.dumps({"format_version": 2, "files": {}}))
    assert read_listing(path) is None
    assert read_listing(tmp_path / "missing.json") is None
