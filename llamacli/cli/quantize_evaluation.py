"""The distance between a model and its quantized copies, and how much of it is bearable."""

from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llamacli.cli.console import Terminal
from llamacli.cli.progress import begin
from llamacli.cli.prompt_sources import read_input_file
from llamacli.errors import RequestError, printable

if TYPE_CHECKING:
    from torch import Tensor

    from llamacli.evaluation import Fidelity
    from llamacli.model import LlamaForCausalLM


class Evaluator:
    """Compares models with the one in a folder, on a text; only one is in memory at a time.

    Args:
        text: a file, None for the text that comes with llamacli.
    """

    def __init__(self, terminal: Terminal, folder: Path, text: Path | None) -> None:
        from llamacli.evaluation import EVALUATION_TEXT, log_probabilities

        self._terminal = terminal
        source = EVALUATION_TEXT if text is None else text
        content = terminal.decode(read_input_file(source), printable(source))
        self._windows = self._cut(folder, content, is_ours=text is None)
        begin(terminal, "evaluating the original …")
        self._reference = log_probabilities(
            self._load(folder), self._windows, progress=self._show_progress
        )

    def __call__(self, folder: Path) -> "Fidelity":
        """How far the model in this folder is from the first one."""
        from llamacli.evaluation import compare

        begin(self._terminal, "evaluating the copy …")
        model = self._load(folder)
        return compare(model, self._windows, self._reference, progress=self._show_progress)

    def _cut(self, folder: Path, text: str, *, is_ours: bool) -> "list[Tensor]":
        from llamacli import hub
        from llamacli.evaluation import MAX_TOKENS, windows
        from llamacli.model_folder import ModelFolder

        model = ModelFolder.open(hub.Snapshot(folder, None))
        ids = model.tokenizer.encode(text, add_special_tokens=False)
        if len(ids) > MAX_TOKENS and not is_ours:
            message = f"of the text's {len(ids):,} tokens the first {MAX_TOKENS:,} are used"
            self._terminal.note(message)
        bos = model.tokenizer.bos_token_id if model.tokenizer.add_bos_token else None
        return windows(ids, context_length=model.config.context_length, bos_token_id=bos)

    def _load(self, folder: Path) -> "LlamaForCausalLM":
        from llamacli.loading import load_model, open_weights
        from llamacli.model import LlamaForCausalLM
        from llamacli.model_folder import read_config

        config = read_config(folder)
        return load_model(LlamaForCausalLM, config, open_weights(folder, config))

    def _show_progress(self, done: int, total: int) -> None:
        self._terminal.status(f"reading the text: {done:,} of {total:,} tokens …")


def fewest(count: int, divergence: Callable[[int], float], target: float) -> int:
    """The fewest of so many layers that must be raised, as if more were never worse.

    Args:
        divergence: mean KL divergence with so many layers raised.
        target: what it may be.

    Raises:
        RequestError: all of them are not enough.
    """
    if divergence(0) <= target:
        return 0
    if (best := divergence(count)) > target:
        raise RequestError(
            f"with all layers in int8 the mean KL divergence is {best:.4g}, above {target:.4g}",
            hint="a higher --target-kl, or --skip for the worst layers",
        )
    return 1 + bisect_left(range(1, count), True, key=lambda n: divergence(n) <= target)
