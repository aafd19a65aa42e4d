import os
import random
import shutil
import site
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.downloading import Place
    from tests.fake_hub import FakeHub
    from tests.fork_server import ForkServer

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")

# Before anything is imported: this process, and all that tests start, stay off the network.
GUARD = str(Path(__file__).parent / "network_guard")
if GUARD not in sys.path:
    sys.path.insert(0, GUARD)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (GUARD, os.environ.get("PYTHONPATH"))))
    sys.modules.pop("sitecustomize", None)
    import sitecustomize  # noqa: F401

os.environ["HF_HUB_OFFLINE"] = "1"
SHARED = Path(__file__).parents[2] / "shared"


def pytest_configure() -> None:
    """Tests import this folder; where `pip install .` compiled the kernels is another one."""
    import llamacli.kernels

    llamacli.kernels.__path__ += [f"{path}/llamacli/kernels" for path in site.getsitepackages()]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests share two cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama2_tokenizer_file() -> Path:
    """Meta's Llama 2 tokenizer.model, which is not part of the project."""
    path = SHARED / "data" / "llama2-tokenizer" / "tokenizer.model"
    if not path.exists():
        pytest.skip("no ../shared/data here")
    return path


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model: its text is noise, and depends on every token of the prompt."""
    from tests.tiny import write_model

    folder = tmp_path_factory.mktemp("models") / "noise"
    write_model(folder, max_position_embeddings=128)
    return folder


@pytest.fixture(scope="session")
def tale(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that always says " moon sees river. The bird follows sun" and ends."""
    from tests.command_line import TALE, write_chain

    folder = tmp_path_factory.mktemp("models") / "tale"
    write_chain(folder, TALE)
    return folder


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that can be downloaded: weights of 9 MB, which are noise, and more files."""
    folder = tmp_path_factory.mktemp("repository")
    files = {
        "config.json": b'{"model_type": "llama"}',
        "generation_config.json": b"{}",
        "tokenizer.model": bytes(range(256)) * 20,
        "model.safetensors": random.Random(0).randbytes(9_000_000),
        "README.md": b"Read me.",
        "pytorch_model.bin": bytes(5_000),
        "original/consolidated.00.pth": bytes(5_000),
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def download_server() -> Iterator["ForkServer"]:
    """Starts `llamacli download` at once."""
    from tests.fork_server import DOWNLOADING, ForkServer

    with ForkServer(DOWNLOADING) as running:
        yield running


@pytest.fixture(scope="module")
def shared_hub(repository: Path) -> Iterator["FakeHub"]:
    """A hub that serves the repository to all tests of a file."""
    from tests.fake_hub import fake_hub

    with fake_hub(repository) as running:
        yield running


@pytest.fixture
def place(download_server: "ForkServer", shared_hub: "FakeHub", tmp_path: Path) -> "Place":
    """The program, the hub and an empty cache."""
    from tests.downloading import Place

    shared_hub.forget()
    return Place(download_server, shared_hub, tmp_path / "home")


@pytest.fixture(params=["portable", "avx2", "avx512", "amx"])
def kernel_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each set of kernels that this CPU can run, in use."""
    from llamacli.kernels.native import kernels

    library = kernels()
    if library is None:
        if os.environ.get("CI") and shutil.which("cc"):
            pytest.fail("there is a C compiler, but the kernels were not compiled")
        pytest.skip("the kernels are not compiled")
    before = library.llamacli_name()
    if not library.llamacli_use(request.param.encode()):
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    library.llamacli_use(before)


@pytest.fixture
def changed(tale: Path, tmp_path: Path) -> Path:
    """The tale, for a test that changes its files."""
    return Path(shutil.copytree(tale, tmp_path / "changed"))
