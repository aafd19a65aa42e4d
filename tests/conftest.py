import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def _one_thread_and_no_hub() -> None:
    """Tests share two cores, and must pass without any network."""
    import torch

    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def llama2_tokenizer_file() -> Path:
    """Meta's Llama 2 tokenizer.model, which is not part of the project."""
    path = SHARED / "data" / "llama2-tokenizer" / "tokenizer.model"
    if not path.exists():
        pytest.skip("no ../shared/data here")
    return path
