"""What quantizing did to a model: sizes, the error of each layer, the distance on a text."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamacli.evaluation import Fidelity
from llamacli.quantization_plan import Plan

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Report:
    """A plan and how it went.

    Attributes:
        errors: name of a quantized weight → ‖w − w'‖ / ‖w‖; empty before it is done.
        fidelity: the distance from the original on a text, if that was measured.
    """

    plan: Plan
    errors: Mapping[str, float]
    fidelity: Fidelity | None = None

    @property
    def bytes_before(self) -> int:
        """Of all weights; one that two layers share counts once."""
        sources = {id(planned.source): planned.source.nbytes for planned in self.plan.values()}
        return sum(sources.values())

    @property
    def bytes_after(self) -> int:
        """Of all weights."""
        return sum(planned.nbytes for planned in self.plan.values())

    @property
    def bits_per_weight(self) -> float:
        """Of all weights, scales and zero points counted."""
        return 8 * self.bytes_after / sum(planned.values for planned in self.plan.values())

    @property
    def bits_per_quantized_weight(self) -> float:
        """Of the quantized ones alone, scales and zero points counted; 0 if there are none."""
        quantized = [planned for planned in self.plan.values() if planned.scheme]
        values = sum(planned.values for planned in quantized)
        return 8 * sum(planned.nbytes for planned in quantized) / values if values else 0.0

    @property
    def worst(self) -> list[str]:
        """Names of quantized weights, the greatest error first."""
        return sorted(self.errors, key=lambda name: (-self.errors[name], name))

    def bits(self, name: str) -> int | None:
        """Of a weight; None if it is stored plainly."""
        scheme = self.plan[name].scheme
        return scheme.bits if scheme else None

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "schema_version": SCHEMA_VERSION,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "bits_per_weight": self.bits_per_weight,
            "bits_per_quantized_weight": self.bits_per_quantized_weight,
            "weights": [self._weight(name) for name in self.plan],
            "worst": self.worst[:5],
            "evaluation": dataclasses.asdict(self.fidelity) if self.fidelity else None,
        }

    def _weight(self, name: str) -> dict[str, Any]:
        planned = self.plan[name]
        bits, group_size = planned.scheme or (None, None)
        return {
            "name": name,
            "shape": [*planned.source.shape],
            "bits": bits,
            "group_size": group_size,
            "bytes": planned.nbytes,
            "relative_error": self.errors.get(name),
            "reason": planned.reason or None,
        }
