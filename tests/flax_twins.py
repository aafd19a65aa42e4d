"""Tiny random Llamas of torch and their Flax twins, which read them from a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import torch
from torch import Tensor

from llamacli.flax_model import FlaxLlamaForCausalLM
from llamacli.model import LlamaForCausalLM
from tests.tiny import KINDS, reference, twin

# JAX reads it when it first computes.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
jax.config.update("jax_disable_most_optimizations", True)  # what is compiled runs only once

CONTEXT = 256  # of every kind: what scales positions starts at 64
TWO_LAYERS = ("gqa", "dynamic")  # one shows as much of the other kinds, and compiles twice as fast


@cache
def pair(kind: str, **sizes: Any) -> tuple[LlamaForCausalLM, FlaxLlamaForCausalLM]:
    """A torch model and its twin."""
    if kind not in TWO_LAYERS:
        sizes = {"num_hidden_layers": 1} | sizes
    if KINDS[kind].keys().isdisjoint({"rope_parameters", "max_position_embeddings"}):
        sizes = {"max_position_embeddings": CONTEXT} | sizes
    ours = twin(reference(kind, **sizes))
    with TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        return ours, FlaxLlamaForCausalLM.from_pretrained(Path(folder))


def logits(model: LlamaForCausalLM, ids: Tensor, **inputs: Any) -> Tensor:
    """(B, T, V)."""
    with torch.no_grad():
        outputs = model(ids, **inputs)
    return outputs if isinstance(outputs, Tensor) else outputs.logits


@contextmanager
def no_compilation() -> Iterator[None]:
    """Within it XLA must compile nothing."""
    events: list[str] = []

    def listen(event: str, duration: float, **rest: object) -> None:
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert [event for event in events if "compile" in event] == []
