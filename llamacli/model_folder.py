"""Everything of a model but its weights, read without torch: the errors that can come early."""

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llamacli import hub
from llamacli.config import LlamaConfig
from llamacli.errors import ArtifactError, NotFoundError
from llamacli.generation_config import GenerationConfig
from llamacli.tokenizer import Tokenizer
from llamacli.tokenizer_fast import load_tokenizer

DEMO_FOLDER = Path(__file__).parent / "demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A model on the local disk, its small files read and checked against each other.

    Attributes:
        path: the folder.
        revision: commit hash of a hub model, None for a plain folder.
    """

    path: Path
    revision: str | None
    config: LlamaConfig
    generation_config: GenerationConfig
    tokenizer: Tokenizer

    @property
    def weight_files(self) -> list[Path]:
        """Those that are probably read; none has been opened."""
        single = self.path / "model.safetensors"
        return [single] if single.is_file() else sorted(self.path.glob("*-of-*.safetensors"))

    @property
    def weight_bytes(self) -> int:
        """Size of these files; 0 if one cannot be found."""
        with suppress(OSError):
            return sum(path.stat().st_size for path in self.weight_files)
        return 0

    def read_ahead(self) -> None:
        """Have the system read the weights into its cache, while there are other things to do."""
        threading.Thread(target=_read_ahead, args=(self.weight_files,), daemon=True).start()

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Every id that ends a text, by config, generation_config or tokenizer."""
        return (
            self.config.eos_token_ids
            | self.generation_config.eos_token_ids
            | self.tokenizer.eos_token_ids
        )

    @classmethod
    def open(cls, snapshot: hub.Snapshot) -> "ModelFolder":
        """Read a model's folder.

        Raises:
            NotFoundError: config.json or the tokenizer is missing.
            ConfigError, TokenizerError: they cannot be used.
            ArtifactError: the tokenizer has ids that the model has no embedding for.
        """
        path = snapshot.path
        config = read_config(path)
        tokenizer = load_tokenizer(path)
        if tokenizer.vocab_size > config.vocab_size:
            raise ArtifactError(
                f"the tokenizer has {tokenizer.vocab_size:,} ids, the model's embedding only"
                f" {config.vocab_size:,} rows"
            )
        return cls(
            path=path,
            revision=snapshot.revision,
            config=config,
            generation_config=GenerationConfig.from_folder(path),
            tokenizer=tokenizer,
        )


def _read_ahead(files: list[Path]) -> None:
    with suppress(OSError, AttributeError):  # a hint, which macOS does not know
        for path in files:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def read_config(folder: Path) -> LlamaConfig:
    """The folder's config.json.

    Raises:
        NotFoundError: there is none.
        ConfigError: it cannot be used.
    """
    try:
        return LlamaConfig.from_file(folder / "config.json")
    except NotFoundError as problem:
        hint = "a model folder holds config.json, *.safetensors and a tokenizer"
        raise NotFoundError(str(problem), hint=hint) from None
