"""The Flax twins against the torch classes, on every kind of the parity tests."""

import ast
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("flax")

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

import llamacli
from llamacli import flax_model, model
from llamacli.errors import RequestError
from llamacli.flax_model import FlaxLlamaForCausalLM, FlaxLlamaModel
from llamacli.flax_outputs import FlaxBaseModelOutput, FlaxCausalLMOutput
from llamacli.model import LlamaForCausalLM
from tests.flax_twins import logits, no_compilation, pair
from tests.tiny import KINDS, random_ids

TOLERANCE = {"rtol": 0, "atol": 1e-4}
PROMPT, NEW = 20, 100


def outline(module: Any) -> tuple[list[str], list[str]]:
    """Names of classes, and titles of sections."""
    text = Path(module.__file__).read_text()
    lines = text.splitlines()
    titles = [after[2:] for line, after in pairwise(lines) if line[:3] == "# -"]
    classes = [node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    return classes, titles


def test_classes_and_sections_are_those_of_the_torch_file() -> None:
    theirs, their_titles = outline(model)
    ours, our_titles = outline(flax_model)
    # A model is two classes in Flax; its module stands before it.
    assert [name for name in ours if not name.endswith("Module")] == [f"Flax{n}" for n in theirs]
    assert [title.partition(".")[0] for title in our_titles] == [
        title.partition(".")[0] for title in their_titles
    ]


def test_the_public_names_are_there_but_not_among_those_of_a_star_import() -> None:
    assert llamacli.FlaxLlamaModel is FlaxLlamaModel
    assert llamacli.FlaxLlamaForCausalLM is FlaxLlamaForCausalLM
    assert {"FlaxLlamaModel", "FlaxLlamaForCausalLM"} <= set(dir(llamacli)) - set(llamacli.__all__)


def test_parameters_have_the_paths_of_hugging_face() -> None:
    _, biased = pair("biases")
    paths = {"/".join(path) for path in flatten_dict(biased.params)}
    layer = "model/layers/0"
    projections = [f"self_attn/{name}_proj" for name in "qkvo"]
    projections += [f"mlp/{name}_proj" for name in ("gate", "up", "down")]
    assert {path for path in paths if path.startswith(layer)} == {
        f"{layer}/input_layernorm/weight",
        f"{layer}/post_attention_layernorm/weight",
        *(f"{layer}/{name}/{leaf}" for name in projections for leaf in ("kernel", "bias")),
    }
    assert {path for path in paths if "layers" not in path} == {
        "model/embed_tokens/embedding",
        "model/norm/weight",
        "lm_head/kernel",
    }


# ---------------------------------------------------------------------------------------- parity


def greedy(ours: LlamaForCausalLM, ids: Tensor) -> Tensor:
    return ours.generate(ids, max_new_tokens=NEW, eos_token_id=())


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_with_left_padding_and_without(kind: str) -> None:
    ours, flax = pair(kind)
    ids = random_ids(2, PROMPT + NEW)
    mask = torch.ones_like(ids)
    mask[1, :17] = 0
    found = np.asarray(flax(ids.numpy(), attention_mask=mask.numpy()).logits)
    expected = logits(ours, ids, attention_mask=mask)
    torch.testing.assert_close(torch.tensor(found)[mask.bool()], expected[mask.bool()], **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_ids_equal_over_100_cached_and_uncached_steps(kind: str) -> None:
    ours, flax = pair(kind)
    ids = random_ids(1, PROMPT)
    expected = greedy(ours, ids)
    found = flax.generate(ids.numpy(), max_new_tokens=NEW, eos_token_id=()).sequences
    assert found.tolist() == expected.tolist()
    if kind != "dynamic":  # what follows a token changes nothing at it: one pass is all steps
        rows = expected.repeat(2, 1).numpy()  # the shape that is compiled
        best = np.asarray(flax(rows, attention_mask=np.ones_like(rows)).logits).argmax(-1)
        assert best[0, PROMPT - 1 : -1].tolist() == expected[0, PROMPT:].tolist()


def test_greedy_ids_equal_uncached_where_frequencies_follow_the_length() -> None:
    ours, flax = pair("dynamic")
    ids = random_ids(1, PROMPT)
    expected = ids
    row = np.zeros((2, PROMPT + NEW), np.int32)
    row[:, :PROMPT] = ids
    for end in range(PROMPT, PROMPT + NEW):
        expected = torch.cat((expected, logits(ours, expected)[:, -1:].argmax(-1)), dim=1)
        positions = np.minimum(np.arange(row.shape[1]), end - 1)[None].repeat(2, axis=0)
        out = flax(row, attention_mask=np.ones_like(row), position_ids=positions)
        row[:, end] = np.asarray(out.logits)[:, end - 1].argmax(-1)
    assert row[0].tolist() == expected[0].tolist()


def test_cached_calls_give_what_one_call_gives() -> None:
    ours, flax = pair("gqa")
    ids, mask = random_ids(2, 40), np.ones((2, 40), int)
    mask[0, :9] = 0
    expected = logits(ours, ids, attention_mask=torch.tensor(mask))
    cache = flax.init_cache(2, 64)
    assert cache.keys[1].shape == cache.values[0].shape == (2, 64, 2, 8)
    out = flax(ids[:, :30].numpy(), mask[:, :30], past_key_values=cache)
    found = [out.logits]
    for position in range(30, 40):
        step = ids[:, position, None].numpy()
        with nullcontext() if position == 30 else no_compilation():
            out = flax(step, mask[:, :30], past_key_values=out.past_key_values)
        found.append(out.logits)
    assert out.past_key_values.length == 40
    together = torch.tensor(np.concatenate(found, axis=1))
    is_token = torch.tensor(mask).bool()
    torch.testing.assert_close(together[is_token], expected[is_token], **TOLERANCE)


@pytest.mark.parametrize("kind", ["biases", "tied", "llama3"])
def test_gradients_of_the_loss_equal(kind: str) -> None:
    ours, flax = pair(kind)
    ids = random_ids(2, 40)
    outputs = ours(ids)
    given = outputs if isinstance(outputs, Tensor) else outputs.logits
    torch.nn.functional.cross_entropy(given[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()

    @jax.jit
    def gradients(params: Any) -> Any:
        def loss(params: Any) -> Any:
            scores = jax.nn.log_softmax(flax(ids.numpy(), params=params, train=True).logits[:, :-1])
            return -jnp.take_along_axis(scores, jnp.asarray(ids[:, 1:])[..., None], -1).mean()

        return jax.grad(loss)(params)

    found = flatten_dict(gradients(flax.params), sep=".")
    for name, parameter in ours.named_parameters():
        leaf = next(leaf for leaf in candidates(name) if leaf in found)
        gradient = torch.tensor(np.asarray(found[leaf]))
        turned = gradient.T if leaf.endswith("kernel") else gradient
        torch.testing.assert_close(turned, parameter.grad, rtol=1e-3, atol=1e-5)
        parameter.grad = None


def candidates(name: str) -> list[str]:
    owner = name.removesuffix("weight")
    return [f"{owner}kernel", f"{owner}embedding", name]


# ---------------------------------------------------------------------------------------- calls


def test_outputs_have_the_documented_fields() -> None:
    _, flax = pair("gqa")
    ids = random_ids(2, 6).numpy()
    out = flax(ids, output_hidden_states=True, output_attentions=True)
    assert isinstance(out, FlaxCausalLMOutput)
    assert [state.shape for state in out.hidden_states] == [(2, 6, 32)] * 3
    assert [weights.shape for weights in out.attentions] == [(2, 4, 6, 6)] * 2
    np.testing.assert_allclose(np.asarray(out.attentions).sum(-1), 1, atol=1e-6)
    assert np.triu(out.attentions[0][0, 0], 1).max() == 0
    assert out["logits"] is out[0] is out.logits
    assert out.past_key_values is None
    as_tuple = flax(ids, past_key_values=flax.init_cache(2, 6), return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert as_tuple[0].shape == (2, 6, 97)
    assert as_tuple[1].length == 6


def test_the_model_without_a_head_reads_the_same_folder(tmp_path: Path) -> None:
    ours, flax = pair("gqa")
    flax.save_pretrained(tmp_path)
    base = FlaxLlamaModel.from_pretrained(tmp_path)
    ids = random_ids(1, 6)
    out = base(ids.numpy(), output_hidden_states=True)
    assert isinstance(out, FlaxBaseModelOutput)
    with torch.no_grad():
        outputs = ours.model(ids)
    expected = outputs if isinstance(outputs, Tensor) else outputs.last_hidden_state
    np.testing.assert_allclose(out.last_hidden_state, expected, atol=1e-4)
    np.testing.assert_array_equal(out.hidden_states[-1], out.last_hidden_state)


def test_params_can_be_given_and_random_ones_follow_the_seed() -> None:
    _, flax = pair("plain")
    config = flax.config
    one, other = (FlaxLlamaForCausalLM(config, seed=seed) for seed in (0, 1))
    flat = [flatten_dict(each.params) for each in (one, other)]
    assert flat[0].keys() == flatten_dict(flax.params).keys()
    kernel = ("model", "layers", "0", "mlp", "up_proj", "kernel")
    assert float(flat[0][kernel].std()) == pytest.approx(config.initializer_range, rel=0.1)
    assert (flat[0][kernel] != flat[1][kernel]).any()
    ids = random_ids(1, 6).numpy()
    np.testing.assert_array_equal(one(ids, params=flax.params).logits, flax(ids).logits)


def test_dropout_acts_in_training_alone_and_follows_its_key() -> None:
    _, flax = pair("plain", attention_dropout=0.5)
    ids = random_ids(1, 6).numpy()
    with pytest.raises(RequestError, match="dropout_rng"):
        flax(ids, train=True)
    one, again, other = (
        flax(ids, train=True, dropout_rng=jax.random.key(key)).logits for key in (0, 0, 1)
    )
    assert (one == again).all()
    assert (one != other).any()
    assert (flax(ids).logits != one).any()


def test_what_makes_no_sense_is_refused() -> None:
    _, flax = pair("gqa")
    ids = random_ids(1, 6).numpy()
    with pytest.raises(RequestError, match="attention_mask covers 7 tokens, but there are 6"):
        flax(ids, attention_mask=np.ones((1, 7)))
    with pytest.raises(RequestError, match="two dimensions"):
        flax(ids[0])
    with pytest.raises(RequestError, match="static cache holds 5 tokens, not 6"):
        flax(ids, past_key_values=flax.init_cache(1, 5))
    with pytest.raises(RequestError, match="attn_implementation must be one of sdpa, eager"):
        FlaxLlamaForCausalLM(flax.config, attn_implementation="flash")(ids)
