"""A Flax twin over several devices: where the parts of each parameter go.

Column-wise layers split what they give, row-wise layers what they take, so that a pair of them
needs one sum. The compiler derives from these places what has to be sent.
"""

from fnmatch import fnmatchcase
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from llamacli.errors import RequestError, printable

AXIS = "tp"  # of the mesh

# Module → the place of its kernel (in, out), or of its embedding (V, C).
FLAX_TP_PLAN = {
    "embed_tokens": P(AXIS, None),
    "layers.*.self_attn.q_proj": P(None, AXIS),
    "layers.*.self_attn.k_proj": P(None, AXIS),
    "layers.*.self_attn.v_proj": P(None, AXIS),
    "layers.*.self_attn.o_proj": P(AXIS, None),
    "layers.*.mlp.gate_proj": P(None, AXIS),
    "layers.*.mlp.up_proj": P(None, AXIS),
    "layers.*.mlp.down_proj": P(AXIS, None),
    "lm_head": P(None, AXIS),
}


def shard(params: Any, mesh: Mesh) -> Any:
    """The same parameters, in parts on the devices of a mesh with the axis "tp".

    A bias goes with the last dimension of its kernel; what the plan leaves out, as norms, is whole
    on each device.

    Args:
        params: of a Flax twin, with or without a head.
        mesh: such as `jax.make_mesh((4,), ("tp",))`.

    Raises:
        RequestError: the mesh has no such axis, or a parameter cannot be cut into as many parts.
    """
    if AXIS not in mesh.axis_names:
        names = printable(", ".join(map(str, mesh.axis_names)))
        raise RequestError(f'the mesh must have an axis "{AXIS}", got {names}')
    leaves = flatten_dict(params)
    return unflatten_dict({path: _place(path, leaf, mesh) for path, leaf in leaves.items()})


def _place(path: tuple[str, ...], leaf: jax.Array, mesh: Mesh) -> jax.Array:
    spec = spec_of(path)
    parts = mesh.shape[AXIS]
    if any(axis and size % parts for size, axis in zip(leaf.shape, spec, strict=False)):
        name = "/".join(path)
        raise RequestError(f"{name} of {leaf.shape} cannot be cut into {parts} equal parts")
    return jax.device_put(leaf, NamedSharding(mesh, spec))


def spec_of(path: tuple[str, ...]) -> P:
    """The place of one parameter, such as ("layers", "0", "mlp", "up_proj", "kernel")."""
    *owner, leaf = path[1:] if path[0] == "model" else path
    name = ".".join(owner)
    spec = next((spec for key, spec in FLAX_TP_PLAN.items() if fnmatchcase(name, key)), P())
    return P(*spec[-1:]) if leaf == "bias" else spec
