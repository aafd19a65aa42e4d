"""The mask from Python, and the attention weights, against transformers and the model itself."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from llamacli import AttentionMaskVisualizer
from llamacli.attention_visualizer import attention_weights
from llamacli.errors import NotFoundError, RequestError
from llamacli.mask_view.layout import MaskOptions
from llamacli.mask_view.rows import text_rows
from llamacli.model_folder import DEMO_FOLDER
from llamacli.tokenizer_fast import load_tokenizer
from tests.tiny import random_ids, reference, twin


@pytest.mark.parametrize("kind", ["plain", "gqa"])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_the_weights_are_those_of_transformers(kind: str, attn_implementation: str) -> None:
    theirs, ids = reference(kind), random_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = theirs(
        ids, attention_mask=mask, position_ids=positions, output_attentions=True
    ).attentions
    ours = twin(theirs, attn_implementation=attn_implementation).model
    before = [layer.self_attn.attend for layer in ours.layers]
    rows = [[None if not m else i for i, m in zip(*row, strict=True)]
            for row in zip(ids.tolist(), mask.tolist(), strict=True)]  # fmt: skip
    for layer in range(2):
        for head in (0, 3, None):
            found = attention_weights(ours, rows, layer=layer, head=head)
            wanted = expected[layer].mean(1) if head is None else expected[layer][:, head]
            real = mask.bool()
            torch.testing.assert_close(found[real], wanted[real], rtol=0, atol=1e-5)
    assert [layer.self_attn.attend for layer in ours.layers] == before


@pytest.mark.parametrize("padding", ["left", "right"])
def test_the_weights_are_zero_just_where_the_picture_hides(padding: str) -> None:
    tokenizer = load_tokenizer(DEMO_FOLDER)
    options = MaskOptions(padding=padding)  # type: ignore[arg-type]
    rows = text_rows(["The sun", "The moon sees the river"], tokenizer, options)
    model = twin(reference(vocab_size=2048, initializer_range=0.1)).model
    found = attention_weights(model, [row.token_ids for row in rows], layer=1, head=2)
    assert [(each > 0).tolist() for each in found] == [row.mask() for row in rows]
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:2]))


def test_the_visualizer_prints_the_picture_and_returns_the_mask(
    capsys: pytest.CaptureFixture[str],
) -> None:
    visualizer = AttentionMaskVisualizer(DEMO_FOLDER)
    mask = visualizer("The sun warms")
    assert mask.dtype == torch.bool
    length = mask.shape[-1]
    assert mask.tolist() == torch.ones(1, 1, length, length).tril().bool().tolist()
    out, err = capsys.readouterr()
    assert err == ""
    assert "·sun" in out
    assert "\x1b" not in out
    assert f"{length * (length + 1) // 2} of {length**2} pairs visible" in out


def test_the_visualizer_takes_a_batch_and_other_masks(capsys: pytest.CaptureFixture[str]) -> None:
    visualizer = AttentionMaskVisualizer(str(DEMO_FOLDER))
    mask = visualizer(["The sun", "The moon sees"], sliding_window=2)
    assert mask.shape[:2] == (2, 1)
    assert mask.sum(-1).max() == 2
    assert "row 2 of 2" in capsys.readouterr().out
    with pytest.raises(RequestError, match="sliding_window must be 1 or more"):
        visualizer("The sun", sliding_window=0)
    with pytest.raises(NotFoundError):
        AttentionMaskVisualizer("no/such/model/here")


def test_a_notebook_shows_the_last_picture() -> None:
    visualizer = AttentionMaskVisualizer(DEMO_FOLDER)
    assert visualizer._repr_html_() == ""
    visualizer("The sun & the moon")
    root = ET.fromstring(visualizer._repr_html_())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_no_weights_are_needed(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((DEMO_FOLDER / name).read_bytes())
    assert AttentionMaskVisualizer(tmp_path)("The sun").any()
