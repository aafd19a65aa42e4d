"""Other programs that measure the same cases: llama.cpp's llama-bench, and transformers."""

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llamacli.benchmark.cases import Case
from llamacli.benchmark.random_weights import random_weights, values
from llamacli.benchmark.session import Peer
from llamacli.config import LlamaConfig
from llamacli.errors import NotFoundError, RequestError, ResourceError, printable

logger = logging.getLogger(__name__)


def peer(text: str, cases: Sequence[Case]) -> Peer:
    """The peer that `llama.cpp=PATH/llama-bench,MODEL.gguf` or `transformers` means.

    Raises:
        RequestError: neither, or it cannot run one of the cases.
        NotFoundError: it is not there.
    """
    name, _, rest = text.partition("=")
    program, _, model = rest.partition(",")
    if name == "transformers" and not rest:
        return Transformers()
    if name != "llama.cpp" or not program or not model:
        expected = "llama.cpp=PATH/llama-bench,MODEL.gguf or transformers"
        raise RequestError(f"versus must be {expected}, got {printable(repr(text))}")
    if any(case.batch > 1 for case in cases):
        raise RequestError("llama-bench has no batches", hint="leave out -b, or --versus")
    return LlamaBench(Path(program), Path(model))


class LlamaBench:
    """llama.cpp's own benchmark; it is started for every repetition.

    Raises:
        NotFoundError: no such program or model.
    """

    name = "llama.cpp"

    def __init__(self, program: Path, model: Path) -> None:
        for path, hint in ((program, "build llama.cpp"), (model, "convert the model to GGUF")):
            if not path.is_file():
                raise NotFoundError(
                    f"llama.cpp needs {printable(path)}, which is not there", hint=hint
                )
        self._program, self._model = program, model
        self._row: dict[str, Any] = {}
        self._parameters = 0

    def memory_bytes(self, config: LlamaConfig) -> int:
        """The file, whatever its shape is."""
        return self._model.stat().st_size

    def open(self, config: LlamaConfig) -> None:
        """Expect a file of this shape."""
        self._row, self._parameters = {}, values(random_weights(config))

    def sample(self, case: Case, threads: int) -> float:
        """Tokens per second of one repetition, after llama-bench's own warm-up."""
        prompt, new = case.prompt_tokens, case.new_tokens
        both = bool(prompt and new)
        options = {
            "-m": self._model,
            "-p": 0 if both else prompt,
            "-n": 0 if both else new,
            "-pg": f"{prompt},{new}" if both else None,
            "-d": case.depth,
            "-t": threads,
            "-r": 1,
            "-o": "json",
        }
        given = [str(part) for pair in options.items() if pair[1] is not None for part in pair]
        is_first = not self._row
        self._row = self._run([str(self._program), *given])
        if is_first:
            self._note_other_shape()
        return float(self._row["avg_ts"])

    def _note_other_shape(self) -> None:
        count = self._row.get("model_n_params", self._parameters)
        if abs(count - self._parameters) > self._parameters / 100:
            logger.warning(
                "%s has %.2f B parameters, the model %.2f B: the ratio is one of two shapes",
                printable(self._model),
                count / 1e9,
                self._parameters / 1e9,
            )

    def _run(self, command: list[str]) -> dict[str, Any]:
        try:
            done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
        except OSError as problem:
            raise failure(self.name, problem.strerror or "it cannot be started") from problem
        try:
            (row,) = json.loads(done.stdout)
            if float(row["avg_ts"]) > 0:
                return dict(row)
        except (ValueError, TypeError, KeyError):
            pass
        lines = done.stderr.decode(errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "it printed no result")
        raise failure(self.name, f"exit code {done.returncode}: {said}")

    def about(self) -> str:
        """Build, model and backend."""
        names = ("build_commit", "model_type", "model_n_params", "backends")
        return ", ".join(printable(self._row.get(name, "?")) for name in names)


class Transformers:
    """transformers with random bfloat16 weights of the same shape, in a process that stays.

    Raises:
        NotFoundError: it is not installed.
    """

    name = "transformers"

    def __init__(self) -> None:
        if find_spec("transformers") is None:
            hint = "pip install transformers"
            raise NotFoundError("transformers is not installed", hint=hint)
        self._config: LlamaConfig | None = None
        self._process: subprocess.Popen[str] | None = None
        self._version = "?"

    def memory_bytes(self, config: LlamaConfig) -> int:
        """Plain weights."""
        return random_weights(config).total_bytes

    def open(self, config: LlamaConfig) -> None:
        """Start a process for this shape, unless it runs."""
        if config == self._config:
            return
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llamacli.benchmark.transformers_peer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._version = self._ask(config.to_dict())
        self._config = config

    def sample(self, case: Case, threads: int) -> float:
        """Tokens per second of one repetition."""
        return float(case.tokens / self._ask({"case": asdict(case), "threads": threads}))

    def _ask(self, question: object) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
        except (OSError, ValueError):
            raise failure(self.name, "its process ended") from None
        if isinstance(answer, dict):
            raise failure(self.name, answer["error"])
        return answer

    def about(self) -> str:
        """Version and dtype."""
        return f"{self._version}, random {(self._config and self._config.dtype) or 'bfloat16'}"

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def failure(name: str, reason: str) -> ResourceError:
    """A peer that could not do its part."""
    return ResourceError(f"{name} failed: {printable(reason)}")
