"""Loads what is to be measured, and measures it: one row after the other."""

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol, Union

import torch
from torch.distributed.device_mesh import DeviceMesh

from llamacli.benchmark.cases import Case
from llamacli.benchmark.machine import commit, device_name
from llamacli.benchmark.measure import Sample, samples
from llamacli.benchmark.neighbors import Neighbors
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

if TYPE_CHECKING:
    from llamacli.flax_engine import FlaxEngine

Model = Union[LlamaForCausalLM, "FlaxEngine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How models are loaded and measured; names as in `load_model`."""

    cases: Sequence[Case]
    threads: Sequence[int]
    repetitions: int
    dtype: str = "auto"
    device: str = "auto"
    activations: str = "auto"
    backend: str = "torch"
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

    def require_memory(
        self, settings: Settings, peers: "Sequence[Peer]" = (), ranks: int = 1
    ) -> None:
        """Refuse, before anything is read, what the machine cannot hold.

        All cases have their cache at the same time, and peers hold the model once more.

        Raises:
            ResourceError: the sum is more than what is free.
        """
        weights, dtype = self.weights, settings.dtype
        if settings.backend == "flax":
            from llamacli.flax_loading import as_loaded

            weights, dtype = as_loaded(weights, dtype, settings.device)
        needed = [
            estimate_memory(
                self.config,
                weights,
                dtype=dtype,
                device=settings.device,
                recipe=self.recipe,
                rows=case.batch,
                tokens=case.length,
                ranks=ranks,
            )
            for case in settings.cases
        ]
        replace(
            needed[0],
            weights_bytes=sum(
                [needed[0].weights_bytes, *(peer.memory_bytes(self.config) for peer in peers)]
            ),
            cache_bytes=sum(each.cache_bytes for each in needed),
            # the roofs are measured beside it
            scratch_bytes=max(READ_BYTES, *(each.scratch_bytes for each in needed)),
        ).require()

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

    def memory_bytes(self, config: LlamaConfig) -> int:
        """What its model of this shape takes."""

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
    """The rows of one source; when it is interrupted, as far as they came.

    The repetitions of all cases take turns: what changes slowly, such as the clock of the CPU, so
    shows in the spread of each row. Threads are those of all ranks.

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
    model = _load(source, settings, mesh)
    load_s = time.perf_counter() - started
    for peer in peers:
        show(f"starting {peer.name}")
        peer.open(source.config)
    for threads in settings.threads:
        torch.set_num_threads(max(1, threads // _ranks(model)))
        show("how fast this machine reads and multiplies")
        subject = describe(source, settings, model, load_s)
        _reset_peak(model.device)
        yield from _rows(model, subject, settings, peers, show)


def _load(source: Source, settings: Settings, mesh: DeviceMesh | None) -> Model:
    if settings.backend == "flax":
        from llamacli.flax_engine import load_engine

        return load_engine(
            source.config, source.weights, dtype=settings.dtype, device=settings.device
        )
    return load_model(
        LlamaForCausalLM,
        source.config,
        source.weights,
        dtype=settings.dtype,
        device=settings.device if mesh is None else mesh,
        recipe=source.recipe,
        activations=settings.activations,
    )


def _rows(
    model: Model,
    subject: Subject,
    settings: Settings,
    peers: Sequence[Peer],
    show: Show,
) -> Iterator[Row]:
    tests = [Test(model, case, peers) for case in settings.cases]
    neighbors, work = Neighbors(subject.threads, ranks=subject.tp), _work(model)

    def rows() -> list[Row]:
        now = replace(subject, taken_by_others=neighbors.taken)
        return [test.row(now, work, _peak(model.device)) for test in tests if test.count]

    try:
        for number in range(1, settings.repetitions + 1):
            show(f"round {number} of {settings.repetitions}")
            for test in tests:
                show(f"round {number} of {settings.repetitions}", f", {test.case.test}")
                test.repeat(subject.threads, neighbors)
    except GeneratorExit:
        raise
    except BaseException:
        yield from rows()
        raise
    yield from rows()


def _ranks(model: Model) -> int:
    return model.tp_size if isinstance(model, LlamaForCausalLM) else 1


def _work(model: Model) -> Work:
    if isinstance(model, LlamaForCausalLM):
        return Work.of(model)
    return Work.of_sizes(model.config, model.step_bytes, model.dtype.itemsize)


def describe(source: Source, settings: Settings, model: Model, load_s: float) -> Subject:
    """A loaded model, and the roofs of the machine with torch's present number of threads."""
    dtype, device = str(model.dtype).removeprefix("torch."), model.device
    roof = roofs(device, model.dtype, settings.roof_s)
    rounds = " int8" if settings.activations == "int8" else ""
    return Subject(
        model=source.name,
        revision=source.revision,
        weights=source.form(dtype) if settings.backend == "torch" else dtype,
        dtype=dtype,
        parameters=source.parameters,
        model_bytes=source.model_bytes,
        device=str(device),
        device_name=device_name(device),
        threads=torch.get_num_threads() * _ranks(model),
        tp=_ranks(model),
        kernels=kernel_set(model) + rounds if isinstance(model, LlamaForCausalLM) else "xla",
        torch=str(torch.__version__),
        version=version("llamacli"),
        commit=commit(),
        load_s=load_s,
        bandwidth=roof.bytes_per_second * _ranks(model),
        peak_flops=roof.flops_per_second * _ranks(model),
        taken_by_others=0.0,
    )


class Test:
    """Repetitions of one case, each followed by one of every peer."""

    def __init__(self, model: Model, case: Case, peers: Sequence[Peer]) -> None:
        self.case, self._peers = case, peers
        self._samples = samples(model, case)
        self._ours: list[Sample] = []
        self._theirs: list[list[float]] = [[] for _ in peers]

    @property
    def count(self) -> int:
        """Repetitions that are whole."""
        return min([len(self._ours), *map(len, self._theirs)])

    def repeat(self, threads: int, neighbors: Neighbors) -> None:
        """One repetition more."""
        with neighbors.watched():
            self._ours.append(next(self._samples))
        for peer, theirs in zip(self._peers, self._theirs, strict=True):
            theirs.append(peer.sample(self.case, threads))

    def row(self, subject: Subject, work: Work, peak: int) -> Row:
        """All of them."""
        found, case = self._ours[: self.count], self.case
        speeds = [case.tokens / sample.seconds for sample in found]
        return Row(
            subject=subject,
            case=case,
            seconds=[sample.seconds for sample in found],
            prefill_s=[sample.prefill_s for sample in found if case.prompt_tokens],
            steps_s=[step for sample in found for step in sample.steps_s],
            step_bytes=work.step_bytes(case),
            prefill_flops=work.prefill_flops(case),
            peak_memory_bytes=peak,
            versus=[
                Versus(
                    peer=peer.name,
                    about=peer.about(),
                    samples=theirs[: self.count],
                    ratios=[ours / other for ours, other in zip(speeds, theirs, strict=False)],
                )
                for peer, theirs in zip(self._peers, self._theirs, strict=True)
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
