"""The three heads that classify, against transformers with the same random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import llamacli
from llamacli import heads
from llamacli.config import LlamaConfig
from llamacli.errors import ConfigError, RequestError
from llamacli.loading import PreTrainedModel
from tests.tiny import KINDS, SIZES, random_ids

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
PAD = 2
NAMES = (
    "LlamaForSequenceClassification",
    "LlamaForTokenClassification",
    "LlamaForQuestionAnswering",
)


def reference(name: str, kind: str = "gqa", **settings: Any) -> Any:
    torch.manual_seed(0)
    values = {**SIZES, **KINDS[kind], "pad_token_id": PAD, "classifier_dropout": 0.0, **settings}
    if name in ("LlamaForSequenceClassification", "LlamaForTokenClassification"):
        values.setdefault("num_labels", 3)
    return getattr(transformers, name)(transformers.LlamaConfig(**values)).eval()


def twin(theirs: Any) -> PreTrainedModel:
    config = LlamaConfig.from_dict(theirs.config.to_dict())
    ours: PreTrainedModel = getattr(llamacli, type(theirs).__name__)(config).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours


def batch(side: str = "right") -> dict[str, torch.Tensor]:
    ids, mask = random_ids(3, 9), torch.ones(3, 9, dtype=torch.long)
    for row, padding in ((0, 4), (2, 8)):
        where = slice(0, padding) if side == "left" else slice(9 - padding, 9)
        ids[row, where], mask[row, where] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def labels_for(name: str) -> dict[str, torch.Tensor]:
    if name == "LlamaForSequenceClassification":
        return {"labels": torch.tensor([2, 0, 1])}
    if name == "LlamaForQuestionAnswering":
        return {
            "start_positions": torch.tensor([1, 99, 0]),
            "end_positions": torch.tensor([3, 2, 0]),
        }
    labels = torch.arange(27).reshape(3, 9) % 3  # of tokens, and of what follows
    labels[0, 5:] = labels[2, 1:] = -100
    return {"labels": labels}


def assert_outputs_equal(ours: Any, theirs: Any, mask: torch.Tensor) -> None:
    for field in ("logits", "start_logits", "end_logits"):
        if hasattr(ours, field):
            found, expected = getattr(ours, field), getattr(theirs, field)
            if found.shape[:2] == mask.shape:  # what stands at padding means nothing
                found, expected = found[mask.bool()], expected[mask.bool()]
            torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_logits_of_a_padded_batch_equal(name: str, side: str) -> None:
    theirs, inputs = reference(name), batch(side)
    assert_outputs_equal(twin(theirs)(**inputs), theirs(**inputs), inputs["attention_mask"])


@pytest.mark.parametrize("name", ["LlamaForCausalLM", *NAMES])
def test_the_loss_and_a_step_along_its_gradient_equal(name: str) -> None:
    theirs, inputs = reference(name), batch() | labels_for(name)
    if name == "LlamaForQuestionAnswering":  # its softmax counts padding, which has no set value
        inputs = {"input_ids": random_ids(3, 9)} | labels_for(name)
    ours = twin(theirs)
    for _ in range(2):
        losses = [model(**inputs).loss for model in (ours, theirs)]
        torch.testing.assert_close(*losses, **TOLERANCE)
        for model, loss in zip((ours, theirs), losses, strict=True):
            loss.backward()
            torch.optim.SGD(model.parameters(), lr=0.01).step()
            model.zero_grad()
    expected = theirs.state_dict()
    for parameter, value in ours.state_dict().items():
        torch.testing.assert_close(value, expected[parameter], **TOLERANCE)


@torch.no_grad()
def test_outputs_have_the_names_and_places_of_transformers() -> None:
    theirs, ids = reference("LlamaForCausalLM"), random_ids(2, 9)
    ours, inputs = twin(theirs), {"labels": ids, "output_hidden_states": True}
    found, expected = (model(ids, **inputs) for model in (ours, theirs))
    torch.testing.assert_close(found.hidden_states, expected.hidden_states, **TOLERANCE)
    for key in (0, 1, "loss", "logits"):
        torch.testing.assert_close(found[key], expected[key], **TOLERANCE)
    assert len(found.to_tuple()) == len(expected.to_tuple())
    base = ours.model(ids, use_cache=False)
    assert torch.equal(base[0], base.last_hidden_state)
    assert torch.equal(base.last_hidden_state, found.hidden_states[-1])
    assert (base.cache, base.hidden_states, base.to_tuple()[1:]) == (None, None, ())


@torch.no_grad()
def test_a_cache_that_was_given_is_continued_by_either_name() -> None:
    ours, ids = twin(reference("LlamaForCausalLM")), random_ids(2, 9)
    expected = ours(ids).logits[:, -1:]
    for name in ("cache", "past_key_values"):
        outputs = ours(ids[:, :5], logits_to_keep=2)
        torch.testing.assert_close(outputs.logits, ours(ids).logits[:, 3:5], **TOLERANCE)
        outputs = ours(ids[:, 5:], logits_to_keep=1, **{name: outputs.past_key_values})
        torch.testing.assert_close(outputs.logits, expected, **TOLERANCE)
        assert outputs.past_key_values.length == 9
    assert ours(ids, use_cache=False).cache is None
    assert ours.train()(ids).cache is None
    assert ours(ids, use_cache=True).cache.length == 9


@pytest.mark.parametrize("name", ["LlamaForCausalLM", *NAMES])
@torch.no_grad()
def test_embeddings_stand_in_for_ids(name: str) -> None:
    theirs, ids = reference(name), random_ids(1, 9)
    inputs = {"inputs_embeds": theirs.get_input_embeddings()(ids)}
    ours = twin(theirs)
    assert_outputs_equal(ours(**inputs), theirs(**inputs), torch.ones(1, 9))
    with pytest.raises(TypeError, match="output_attentions"):
        ours(**inputs, output_attentions=True)


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0])),
        ({"problem_type": "regression"}, torch.rand(3, 3)),
        ({}, torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])),
        ({"problem_type": "multi_label_classification"}, torch.ones(3, 3)),
    ],
)
def test_the_loss_of_sequences_follows_the_problem(settings: Any, labels: torch.Tensor) -> None:
    theirs = reference("LlamaForSequenceClassification", **settings)
    ours, inputs = twin(theirs), batch() | {"labels": labels}
    torch.testing.assert_close(ours(**inputs).loss, theirs(**inputs).loss, **TOLERANCE)


def test_several_sequences_need_a_padding_token() -> None:
    ours = twin(reference("LlamaForSequenceClassification", pad_token_id=None))
    assert ours(random_ids(1, 4)).logits.shape == (1, 3)
    with pytest.raises(RequestError, match="pad_token_id"):
        ours(random_ids(2, 4))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_each_reads_what_the_other_saved(name: str, tmp_path: Path) -> None:
    theirs, inputs = reference(name, id2label={0: "no", 1: "yes", 2: "maybe"}), batch()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = getattr(heads, name).from_pretrained(tmp_path / "theirs", device="cpu")
    assert_outputs_equal(ours(**inputs), theirs(**inputs), inputs["attention_mask"])
    assert ours.config.id2label == theirs.config.id2label
    ours.save_pretrained(tmp_path / "ours")
    back = getattr(transformers, name).from_pretrained(tmp_path / "ours")
    assert back.config.id2label == theirs.config.id2label
    assert_outputs_equal(ours(**inputs), back(**inputs), inputs["attention_mask"])


def test_dropout_is_that_of_the_config_else_a_tenth() -> None:
    def rate(**settings: Any) -> float:
        config = LlamaConfig(**SIZES | {"pad_token_id": PAD} | settings)
        return heads.LlamaForTokenClassification(config).dropout.p

    assert (rate(), rate(classifier_dropout=0.3)) == (0.1, 0.3)


def test_labels_are_counted_or_named() -> None:
    assert LlamaConfig().id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert LlamaConfig(num_labels=3).num_labels == len(LlamaConfig(num_labels=3).id2label) == 3
    named = LlamaConfig(id2label={"1": "b", "0": "a"})
    assert (named.id2label, named.num_labels) == ({0: "a", 1: "b"}, 2)
    assert "id2label" not in LlamaConfig().to_dict()
    assert LlamaConfig.from_dict(named.to_dict()) == named


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_labels": 0}, "num_labels"),
        ({"id2label": {"a": "b"}}, "id2label"),
        ({"id2label": []}, "id2label"),
        ({"id2label": {0: "a"}, "num_labels": 2}, "num_labels is 2"),
        ({"problem_type": "other"}, "problem_type"),
        ({"classifier_dropout": 1.0}, "classifier_dropout"),
    ],
)
def test_labels_that_contradict_themselves_are_refused(settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LlamaConfig(**settings)
