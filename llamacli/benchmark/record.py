"""A row of the report: what ran, how long it took, and what follows from that."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import fmean, quantiles, stdev
from typing import Any, NamedTuple

from llamacli.benchmark.cases import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured, and where.

    Attributes:
        model: as it was named.
        revision: commit hash of a hub model.
        weights: "int4", "int8" or a dtype: how most of them are kept.
        dtype: of what is computed.
        parameters: how many numbers the weights hold.
        model_bytes: of the weights, as in files.
        device_name: of the CPU or GPU.
        kernels: what computes short steps: "avx512", …, or "torch".
        commit: of llamacli, where it runs from a repository.
        load_s: from the files (or random numbers) to a model.
        bandwidth, peak_flops: the roofs, in bytes and operations per second.
        taken_by_others: share of the threads' cores that other programs wanted, too.
        tp: how many ranks share the model, and the threads.
    """

    model: str
    revision: str | None
    weights: str
    dtype: str
    parameters: int
    model_bytes: int
    device: str
    device_name: str
    threads: int
    kernels: str
    torch: str
    version: str
    commit: str | None
    load_s: float
    bandwidth: float
    peak_flops: float
    taken_by_others: float
    tp: int = 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case on one subject.

    Attributes:
        seconds: of each repetition.
        prefill_s: of each repetition's prompts; empty where there is none.
        steps_s: of all decode steps of all repetitions.
        step_bytes: that a decode step reads, on average.
        prefill_flops: operations of the prompts.
        peak_memory_bytes: of the process since the model was loaded, or of the GPU.
        versus: the peers' results.
        change: since an earlier report, where there is one.
        efficiency: speed for each thread, or GPU, beside that of one rank; None if not measured.
    """

    subject: Subject
    case: Case
    seconds: Sequence[float]
    prefill_s: Sequence[float]
    steps_s: Sequence[float]
    step_bytes: float
    prefill_flops: float
    peak_memory_bytes: int
    versus: Sequence["Versus"] = ()
    change: "Change | None" = None
    efficiency: float | None = None

    @cached_property
    def samples(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [self.case.tokens / seconds for seconds in self.seconds]

    @property
    def tokens_per_second(self) -> float:
        """The mean of the samples."""
        return fmean(self.samples)

    @property
    def bytes_per_second(self) -> float | None:
        """Of decode steps."""
        return len(self.steps_s) * self.step_bytes / sum(self.steps_s) if self.steps_s else None

    @property
    def flops_per_second(self) -> float | None:
        """Of prompts."""
        if not self.prefill_s:
            return None
        return len(self.prefill_s) * self.prefill_flops / sum(self.prefill_s)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as in the JSON report."""
        speed, steps = self.bytes_per_second, percentiles(self.steps_s)
        return {
            "test": self.case.test,
            "tokens_per_second": self.tokens_per_second,
            "stddev": spread(self.samples),
            "samples": self.samples,
            "percentiles": percentiles(self.samples),
            "time_to_first_token_s": fmean(self.prefill_s) if self.prefill_s else None,
            "step_s": steps,
            "bytes_per_token": self.step_bytes / self.case.batch if speed else None,
            "bytes_per_second": speed,
            "bandwidth_share": speed and speed / self.subject.bandwidth,
            "flops_per_second": (flops := self.flops_per_second),
            "peak_flops_share": flops and flops / self.subject.peak_flops,
            "peak_memory_bytes": self.peak_memory_bytes,
            **asdict(self.case),
            **asdict(self.subject),
            "versus": [other.to_dict() for other in self.versus],
            "efficiency": self.efficiency,
            "change": self.change and self.change._asdict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Versus:
    """The same case by another program, in turns with ours.

    Attributes:
        peer: its name.
        about: version, model and whatever else it says of itself.
        samples: tokens per second of each round.
        ratios: ours, divided by them, round by round.
    """

    peer: str
    about: str
    samples: Sequence[float]
    ratios: Sequence[float]

    def to_dict(self) -> dict[str, Any]:
        """For the JSON report."""
        return asdict(self) | {
            "tokens_per_second": fmean(self.samples),
            "stddev": spread(self.samples),
            "ratio": fmean(self.ratios),
            "ratio_stddev": spread(self.ratios),
        }


class Change(NamedTuple):
    """How a row differs from the earlier one.

    Attributes:
        ratio: of the mean speeds, new to old; None where the earlier report lacks the row.
        noise: by which share of the speed two runs may differ without a reason; None where it is
            not known.
        verdict: "faster" or "slower" beyond the noise, "same" within it, "unknown" with a single
            sample on a side, "new" without an earlier row.
    """

    ratio: float | None
    noise: float | None
    verdict: str

    def __str__(self) -> str:
        noise = "" if self.noise is None else f" (±{self.noise:.0%})"
        return (
            self.verdict if self.ratio is None else f"{self.ratio - 1:+.1%}{noise} {self.verdict}"
        )

    def is_under(self, limit: float) -> bool:
        """Whether it is slower than a limit, and noise does not explain it."""
        return self.ratio is not None and self.ratio < limit and self.verdict != "same"


def spread(values: Sequence[float]) -> float:
    """The standard deviation of a sample; 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """p10, p50, p90 and p99, between the least and the greatest value; None of no values."""
    if not values:
        return None
    if len(values) == 1:
        values = [values[0]] * 2
    cuts = quantiles(values, n=100, method="inclusive")
    return {f"p{percent}": cuts[percent - 1] for percent in (10, 50, 90, 99)}
