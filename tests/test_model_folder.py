import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamacli.errors import ArtifactError, ConfigError, NotFoundError, TokenizerError
from llamacli.hub import Snapshot
from llamacli.model_folder import ModelFolder
from tests.tiny import write_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    return tmp_path / "model"


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def open_folder(path: Path) -> ModelFolder:
    return ModelFolder.open(Snapshot(path, None))


def test_every_id_that_any_file_names_ends_a_text(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    change_config(folder, eos_token_id=[9])
    found = open_folder(folder)
    assert found.tokenizer.eos_token_ids == {2}
    assert found.eos_token_ids == {2, 7, 8, 9}


def test_the_revision_is_that_of_the_snapshot(folder: Path) -> None:
    found = ModelFolder.open(Snapshot(folder, "abc"))
    assert (found.path, found.revision) == (folder, "abc")


def test_it_is_read_without_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from llamacli.hub import Snapshot;"
        "from llamacli.model_folder import ModelFolder;"
        "ModelFolder.open(Snapshot(Path(sys.argv[1]), None));"
        "print({'torch', 'numpy', 'tokenizers', 'huggingface_hub', 'jinja2'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "set()\n"


def test_fault_029_without_config_json_it_is_no_model(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(NotFoundError, match=r"config\.json does not exist") as caught:
        open_folder(folder)
    assert "a model folder holds config.json" in str(caught.value.hint)


def test_fault_041_without_a_tokenizer_it_is_no_model_for_text(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    with pytest.raises(NotFoundError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        open_folder(folder)


def test_fault_043_a_tokenizer_larger_than_the_embedding_is_refused(folder: Path) -> None:
    change_config(folder, vocab_size=300)
    with pytest.raises(ArtifactError, match=r"the tokenizer has 400 ids, .* only 300 rows"):
        open_folder(folder)


def test_fault_043_a_tokenizer_smaller_than_the_embedding_is_legal(folder: Path) -> None:
    change_config(folder, vocab_size=512)
    assert open_folder(folder).tokenizer.vocab_size == 400


def test_a_bad_config_comes_before_a_bad_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"<html>")
    with pytest.raises(TokenizerError):
        open_folder(folder)
    change_config(folder, hidden_size="32")
    with pytest.raises(ConfigError, match="hidden_size"):
        open_folder(folder)
