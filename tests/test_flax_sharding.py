"""The Flax twin over four devices, which XLA makes of one CPU (see `flax_twins.py`)."""

import numpy as np
import pytest

pytest.importorskip("flax")

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, Mesh, PartitionSpec as P

from llamacli.errors import RequestError
from llamacli.flax_sharding import AXIS, FLAX_TP_PLAN, shard, spec_of
from llamacli.parallel import TP_PLAN
from tests.flax_twins import pair
from tests.tiny import random_ids


def mesh(name: str = "tp") -> Mesh:
    return jax.make_mesh((4,), (name,), axis_types=(AxisType.Auto,))


def test_the_plan_is_that_of_the_torch_model() -> None:
    specs = {  # kernels are (in, out); the embedding is (vocabulary, hidden)
        "embedding_rowwise": P(AXIS, None),
        "colwise": P(None, AXIS),
        "colwise_gather_output": P(None, AXIS),
        "rowwise": P(AXIS, None),
    }
    assert {path: specs[style] for path, style in TP_PLAN.items()} == FLAX_TP_PLAN


def test_the_plan_places_kernels_biases_and_embeddings() -> None:
    layer = ("model", "layers", "1", "self_attn")
    assert spec_of((*layer, "q_proj", "kernel")) == P(None, "tp")
    assert spec_of((*layer, "q_proj", "bias")) == P("tp")
    assert spec_of((*layer[1:], "o_proj", "kernel")) == P("tp", None)
    assert spec_of((*layer[1:], "o_proj", "bias")) == P(None)
    assert spec_of(("model", "norm", "weight")) == P()
    assert spec_of(("lm_head", "kernel")) == P(None, "tp")


def test_four_devices_compute_what_one_does() -> None:
    assert len(jax.devices()) == 4
    _, flax = pair("biases", vocab_size=96)
    ids = random_ids(1, 12).clamp(max=95).numpy()
    params = shard(flax.params, mesh())
    out = flax(ids, params=params).logits
    np.testing.assert_allclose(out, flax(ids).logits, rtol=0, atol=1e-4)
    rows = flax.generate(ids, params=params, max_new_tokens=8).sequences
    best = flax(rows, params=params).logits.argmax(-1)
    assert best[0, 11:-1].tolist() == rows[0, 12:].tolist()
    parts = {
        name.removeprefix("model/"): leaf.addressable_shards[0].data.shape
        for name, leaf in flatten_dict(params, sep="/").items()
    }
    layer = "layers/0"
    assert parts["embed_tokens/embedding"] == (24, 32)
    assert parts[f"{layer}/self_attn/q_proj/kernel"] == (32, 8)
    assert parts[f"{layer}/self_attn/q_proj/bias"] == (8,)
    assert parts[f"{layer}/self_attn/o_proj/kernel"] == (8, 32)
    assert parts[f"{layer}/self_attn/o_proj/bias"] == (32,)
    assert parts[f"{layer}/mlp/down_proj/kernel"] == (12, 32)
    assert parts["norm/weight"] == (32,)
    assert parts["lm_head/kernel"] == (32, 24)


def test_what_cannot_be_cut_is_refused() -> None:
    _, flax = pair("gqa")
    expected = r"embed_tokens/embedding of \(97, 32\) cannot be cut into 4 equal parts"
    with pytest.raises(RequestError, match=expected):
        shard(flax.params, mesh())
    with pytest.raises(RequestError, match='the mesh must have an axis "tp", got data'):
        shard(flax.params, mesh("data"))
