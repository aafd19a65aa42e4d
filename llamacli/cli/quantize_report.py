"""What `quantize` tells people: the plan before, the damage after."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from llamacli.errors import printable

if TYPE_CHECKING:
    from llamacli.evaluation import Fidelity
    from llamacli.quantization_plan import PlannedWeight
    from llamacli.quantization_report import Report

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def plan_table(report: "Report") -> str:
    """The weights, those of all layers in one line, and the sizes."""
    rows: dict[tuple[str, str, str], tuple[int, int]] = {}
    for name, planned in report.plan.items():
        key = (_NUMBER.sub("*", printable(name)), _stored(planned), planned.reason)
        count, nbytes = rows.get(key, (0, 0))
        rows[key] = (count + 1, nbytes + planned.nbytes)
    width = max(len(name) for name, _, _ in rows)
    lines = [
        f"{name:<{width}} {count:>5} × {stored:<22} {_size(nbytes):>9}  {reason}".rstrip()
        for (name, stored, reason), (count, nbytes) in rows.items()
    ]
    return "\n".join([*lines, _sizes(report)]) + "\n"


def summary(report: "Report") -> str:
    """Sizes, errors, what is not as asked, and the distance on the text."""
    lines = [_sizes(report)]
    if report.errors:
        lines.append("relative error of the worst layers:")
        for name in report.worst[:5]:
            lines.append(f"  {report.errors[name]:.4f}  {name} ({_stored(report.plan[name])})")
    lines += _exceptions(report)
    if report.fidelity is not None:
        lines.append(_distance(report.fidelity))
    return "\n".join(lines)


def _exceptions(report: "Report") -> Iterable[str]:
    """Layers that are not as asked, by reason."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for name, planned in report.plan.items():
        if planned.reason:
            by_reason.setdefault((_stored(planned), planned.reason), []).append(name)
    for (stored, reason), names in by_reason.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{stored}: {printable(names[0])}{more} ({reason})"


def _sizes(report: "Report") -> str:
    sizes = f"{_size(report.bytes_before)} → {_size(report.bytes_after)}"
    quantized = sum(planned.scheme is not None for planned in report.plan.values())
    if not quantized:
        return f"{sizes}; {report.bits_per_weight:.2f} bits per weight"
    return (
        f"{sizes}; {report.bits_per_quantized_weight:.2f} bits per weight in {quantized} quantized"
        f" layers, {report.bits_per_weight:.2f} in all, scales counted"
    )


def _distance(fidelity: "Fidelity") -> str:
    return (
        f"perplexity {fidelity.reference_perplexity:.3f} → {fidelity.perplexity:.3f},"
        f" mean KL divergence {fidelity.mean_kl:.4g},"
        f" same best token {fidelity.top1_agreement:.1%} ({fidelity.tokens:,} tokens)"
    )


def _stored(planned: "PlannedWeight") -> str:
    if planned.scheme is None:
        return str(planned.dtype).removeprefix("torch.")
    if planned.scheme.bits == 8:
        return "int8"
    return f"int4, groups of {planned.scheme.group_size}"


def _size(nbytes: int) -> str:
    from rich.filesize import decimal

    return decimal(nbytes)
