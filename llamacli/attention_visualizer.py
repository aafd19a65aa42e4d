"""What a model attends to: the mask of a text from Python, and the weights of its attention."""

import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llamacli import hub
from llamacli.mask_view.drawing import draw as draw_shapes
from llamacli.mask_view.layout import MaskOptions
from llamacli.mask_view.rows import MaskRow, text_rows
from llamacli.mask_view.svg import svg
from llamacli.mask_view.text import Paper, draw
from llamacli.model import LlamaModel, eager_attention
from llamacli.model_folder import ModelFolder


class AttentionMaskVisualizer:
    """Prints which tokens of a text see which; no weights are read.

        mask = AttentionMaskVisualizer("my-model")("Plants create energy")

    In a notebook the object itself shows the last picture in color.

    Args:
        model_name: a folder, or a hub name such as "meta-llama/Llama-3.2-1B".
        revision: branch, tag or commit of a hub model.

    Raises:
        LlamacliError: see `hub.resolve` and `ModelFolder.open`.
    """

    def __init__(self, model_name: str | os.PathLike[str], *, revision: str | None = None) -> None:
        self._folder = ModelFolder.open(hub.resolve(model_name, revision=revision, weights=False))
        self._rows: list[MaskRow] = []

    def __call__(self, text: str | Sequence[str], **options: Any) -> Tensor:
        """Print the picture of a text, or of a batch of texts.

        Args:
            text: one text, or the rows of a batch.
            options: fields of `MaskOptions`, as `sliding_window=4`.

        Returns:
            the mask (B, 1, T, S), True = may attend.

        Raises:
            RequestError: a value outside its range.
        """
        texts = [text] if isinstance(text, str) else text
        self._rows = text_rows(texts, self._folder.tokenizer, MaskOptions(**options))
        sys.stdout.write(draw(self._rows, _paper()))
        layouts = [row.layout for row in self._rows]
        queries, keys = torch.tensor(layouts[0].queries)[:, None], torch.tensor(layouts[0].keys)
        return torch.stack([layout.rule(queries, keys) for layout in layouts])[:, None]

    def _repr_html_(self) -> str:
        """The last picture, for a notebook."""
        return svg(draw_shapes(self._rows)) if self._rows else ""


def _paper() -> Paper:
    if not sys.stdout.isatty():
        return Paper()
    size = shutil.get_terminal_size()
    color = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Paper(width=size.columns, height=size.lines, color=color)


@torch.inference_mode()
def attention_weights(
    model: LlamaModel, token_ids: Sequence[Sequence[int | None]], *, layer: int, head: int | None
) -> Tensor:
    """How much each token attends to each other one.

    Args:
        model: reads the texts in one go.
        token_ids: B rows of T ids, None for padding.
        layer: number of the layer.
        head: number of the head; None is the mean of all.

    Returns:
        (B, T, T), float32; the weights of a query add up to 1.
    """
    attention: Any = model.layers[layer].self_attn
    attend, seen = attention.attend, []

    def watch(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
        values = torch.eye(k.shape[2], device=k.device).expand(*k.shape[:2], -1, -1)
        seen.append(eager_attention(q, k, values, mask, 0.0))  # weights times one: (B, H, T, S)
        out: Tensor = attend(q, k, v, mask, dropout)
        return out

    device = model.embed_tokens.weight.device
    ids = torch.tensor([[0 if i is None else i for i in row] for row in token_ids], device=device)
    is_token = torch.tensor([[i is not None for i in row] for row in token_ids], device=device)
    attention.attend = watch
    try:
        model(ids, attention_mask=None if is_token.all() else is_token)
    finally:
        attention.attend = attend
    return seen[0].mean(dim=1) if head is None else seen[0][:, head]
