"""Loads what is to be measured, and measures it: one row after the other."""

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Protocol

import torch
from torch.distributed.device_mesh import DeviceMesh

from llamacli.benchmark.cases import Case
from llamacli.benchmark.machine import commit, device_name
from llamacli.benchmark.measure import Sample, samples
from llamacli.benchmark.random_weights import random_weights, values
from llamacli.benchmark.record import Row, Subject, Versus
from llamacli.benchmark.roofs import READ_BYTES, roofs
from llamacli.benchmark.shapes import shape
from llamacli.benchmark.work import Work
from llamacli.checkpoint import Checkpoint
from llamacli.config import LlamaConfig
from llamacli.kernels.decode_step import kernel_set
from llamacli.loading import load_model
from llamacli.machine_memory import peak_memory_bytes, reset_peak_memory
from llamacli.memory_estimate import estimate_memory
from llamacli.model import LlamaForCausalLM
from llamacli.quantization_plan import Recipe, plan_quantization
from llamacli.torchao_format import QuantizedInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How models are loaded and measured; names as in `load_model`."""

    cases: Sequence[Case]
    threads: Sequence[int]
    repetitions: int
    dtype: str = "auto"
    device: str = "auto"
    activations: str = "auto"
    roof_s: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model that is to be measured, in one form; its weights are not read yet.

    Attributes:
        name: as the user called it.
        revision: commit hash of a hub model.
        weights: of a file, or random ones that have their final form.
        recipe: how weights become quantized while they are read.
    """

    name: str
    revision: str | None
    config: LlamaConfig
    weights: Checkpoint
    recipe: Recipe | None

    @classmethod
    def of_shape(cls, name: str, recipe: Recipe | None) -> "Source":
        """Random weights in the form that the recipe would give them.

        Raises:
            RequestError: there is no such shape.
        """
        config = shape(name)
        weights = random_weights(config, recipe)
        return cls(name=name, revision=None, config=config, weights=weights, recipe=None)

    @cached_property
    def parameters(self) -> int:
        """How many numbers the weights hold."""
        return values(self.weights)

    @cached_property
    def model_bytes(self) -> int:
        """Of the weights, as files hold them."""
        if self.recipe is None:
            return self.weights.total_bytes
        tied = self.config.tie_word_embeddings
        plan = plan_quantization(self.weights, self.recipe, tied=tied)
        return sum(planned.nbytes for planned in plan.values())

    def require_memory(self, settings: Settings, ranks: int = 1) -> None:
        """Refuse, before anything is read, what the machine cannot hold.

        Raises:
            ResourceError: the sum is more than what is free.
        """
        for case in settings.cases:
            needed = estimate_memory(
                self.config,
                self.weights,
                dtype=settings.dtype,
                device=settings.device,
                recipe=self.recipe,
                rows=case.batch,
                tokens=case.length,
                ranks=ranks,
            )
            scratch = max(needed.scratch_bytes, READ_BYTES)  # the roofs are measured beside it
            replace(needed, scratch_bytes=scratch).require()

    def form(self, dtype: str) -> str:
        """What most weights are, in a model of this dtype: "int4", "int8" or the dtype."""
        infos = self.weights.tensors.values()
        stored = [info.scheme.bits for info in infos if isinstance(info, QuantizedInfo)]
        bits = self.recipe.bits if self.recipe else min(stored, default=None)
        return f"int{bits}" if bits else dtype


class Show(Protocol):
    """Tells what is being done, and how far it is."""

    def __call__(self, phase: str, step: str = "") -> object:
        """A phase begins, or takes a step."""


class Peer(Protocol):
    """Another program that measures the same case."""

    name: str

    def open(self, config: LlamaConfig) -> None:
        """Be ready for a model of this shape."""

    def sample(self, case: Case, threads: int) -> float:
        """Tokens per second of one repetition."""

    def about(self) -> str:
        """Its version, and what it runs."""


def measure(
    source: Source,
    settings: Settings,
    peers: Sequence[Peer],
    show: Show,
    mesh: DeviceMesh | None = None,
) -> Iterator[Row]:
    """The rows of one source; threads are those of all ranks.

    Args:
        source: what is measured.
        settings: how.
        peers: measured in turns with it.
        show: called with what is being done.
        mesh: the ranks that share the model, each of which measures.
    """
    show("loading the weights")
    gc.collect()  # the model before this one
    started = time.perf_counter()
    model = load_model(
        LlamaForCausalLM,
        source.config,
        source.weights,
        dtype=settings.dtype,
        device=settings.device if mesh is None else mesh,
        recipe=source.recipe,
        activations=settings.activations,
    )
    load_s = time.perf_counter() - started
    for peer in peers:
        show(f"starting {peer.name}")
        peer.open(source.config)
    work = Work.of(model)
    for threads in settings.threads:
        torch.set_num_threads(max(1, threads // model.tp_size))
        show("how fast this machine reads and multiplies")
        subject = describe(source, settings, model, load_s)
        _reset_peak(model.model.norm.weight.device)
        for case in settings.cases:
            yield _row(model, work, subject, case, settings.repetitions, peers, show)


def describe(source: Source, settings: Settings, model: LlamaForCausalLM, load_s: float) -> Subject:
    """A loaded model, and the roofs of the machine with torch's present number of threads."""
    weight = model.model.norm.weight  # never quantized
    dtype, device = str(weight.dtype).removeprefix("torch."), weight.device
    roof = roofs(device, weight.dtype, settings.roof_s)
    rounds = " int8" if settings.activations == "int8" else ""
    return Subject(
        model=source.name,
        revision=source.revision,
        weights=source.form(dtype),
        dtype=dtype,
        parameters=source.parameters,
        model_bytes=source.model_bytes,
        device=str(device),
        device_name=device_name(device),
        threads=torch.get_num_threads() * model.tp_size,
        tp=model.tp_size,
        kernels=kernel_set(model) + rounds,
        torch=str(torch.__version__),
        version=version("llamacli"),
        commit=commit(),
        load_s=load_s,
        bandwidth=roof.bytes_per_second * model.tp_size,
        peak_flops=roof.flops_per_second * model.tp_size,
    )


def _row(
    model: LlamaForCausalLM,
    work: Work,
    subject: Subject,
    case: Case,
    repetitions: int,
    peers: Sequence[Peer],
    show: Show,
) -> Row:
    """Repetitions of one case, each followed by one of every peer."""
    found: list[Sample] = []
    others: list[list[float]] = [[] for _ in peers]
    show(case.test)
    rounds = samples(model, case)
    for number in range(1, repetitions + 1):
        found.append(next(rounds))
        show(case.test, f", {number} of {repetitions}")
        for peer, theirs in zip(peers, others, strict=True):
            theirs.append(peer.sample(case, subject.threads))
    speeds = [case.tokens / sample.seconds for sample in found]
    return Row(
        subject=subject,
        case=case,
        seconds=[sample.seconds for sample in found],
        prefill_s=[sample.prefill_s for sample in found if case.prompt_tokens],
        steps_s=[step for sample in found for step in sample.steps_s],
        step_bytes=work.step_bytes(case),
        prefill_flops=work.prefill_flops(case),
        peak_memory_bytes=_peak(model.model.norm.weight.device),
        versus=[
            Versus(
                peer=peer.name,
                about=peer.about(),
                samples=theirs,
                ratios=[ours / other for ours, other in zip(speeds, theirs, strict=True)],
            )
            for peer, theirs in zip(peers, others, strict=True)
        ],
    )


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    reset_peak_memory()


def _peak(device: torch.device) -> int:
    """Of the GPU if there is one, else of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_memory_bytes()
