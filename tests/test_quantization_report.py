"""Sizes and errors of a report; the numbers can be checked by hand."""

import json
from typing import Any

import pytest
import torch

from llamacli.evaluation import Fidelity
from llamacli.quantization import Scheme
from llamacli.quantization_plan import LM_HEAD, PlannedWeight, raised_to_int8
from llamacli.quantization_report import Report
from llamacli.weight_file import TensorInfo

A, B, NORM, EMBEDDINGS = "a_proj.weight", "b_proj.weight", "norm.weight", "embed_tokens.weight"


def planned(
    *shape: int, scheme: Scheme | None = None, dtype: torch.dtype = torch.float32, reason: str = ""
) -> PlannedWeight:
    source = TensorInfo(shape, dtype, "model.safetensors", 0)
    return PlannedWeight(source, scheme, torch.bfloat16, reason)


PLAN = {
    EMBEDDINGS: planned(100, 256),
    A: planned(10, 256, scheme=Scheme(4, 128)),
    B: planned(20, 96, scheme=Scheme(4, 32), reason="128 does not divide 96"),
    NORM: planned(256),
    LM_HEAD: planned(100, 256, scheme=Scheme(8, 256)),
}
ERRORS = {A: 0.07, B: 0.09, LM_HEAD: 0.004}
FIDELITY = Fidelity(
    tokens=900, perplexity=9.5, reference_perplexity=9.0, mean_kl=0.0625, top1_agreement=0.875
)


def test_sizes_add_up_by_hand() -> None:
    report = Report(PLAN, ERRORS)
    assert report.bytes_before == 4 * (25_600 + 2560 + 1920 + 256 + 25_600)
    int4 = (1280 + 20 * 4) + (960 + 60 * 4)  # a scale and a zero point for each group
    int8 = 25_600 + 100 * 5  # a scale in float32 and a zero point for each row
    assert report.bytes_after == 2 * (25_600 + 256) + int4 + int8
    assert report.bits_per_weight == 8 * report.bytes_after / 55_936
    assert report.bits_per_quantized_weight == 8 * (int4 + int8) / 30_080


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        (Scheme(4, 32), 5.0),
        (Scheme(4, 64), 4.5),
        (Scheme(4, 128), 4.25),
        (Scheme(4, 256), 4.125),
        (Scheme(8, 256), 8 + 40 / 256),
    ],
)
def test_scales_and_zero_points_are_counted(scheme: Scheme, bits: float) -> None:
    report = Report({A: planned(7, 256, scheme=scheme), NORM: planned(256)}, {})
    assert report.bits_per_quantized_weight == bits
    assert report.bits_per_weight == (7 * bits + 16) / 8


def test_nothing_quantized_has_no_bits_of_its_own() -> None:
    report = Report({NORM: planned(256)}, {})
    assert (report.bits_per_weight, report.bits_per_quantized_weight) == (16.0, 0.0)
    assert report.worst == []


def test_a_weight_that_two_layers_share_counts_once_before_and_twice_after() -> None:
    embeddings = planned(100, 256)
    head = PlannedWeight(embeddings.source, Scheme(8, 256), torch.bfloat16)
    report = Report({EMBEDDINGS: embeddings, LM_HEAD: head}, {})
    assert report.bytes_before == 4 * 25_600
    assert report.bytes_after == 2 * 25_600 + 25_600 + 500
    assert Report({EMBEDDINGS: embeddings, LM_HEAD: planned(100, 256)}, {}).bytes_before == (
        8 * 25_600  # of the same size, but another weight
    )


def test_the_greatest_error_comes_first_and_equal_ones_by_name() -> None:
    errors = {"c": 0.1, LM_HEAD: 0.004, "b": 0.3, "a": 0.1}
    assert Report(PLAN, errors).worst == ["b", "a", "c", LM_HEAD]


def test_bits_are_those_of_the_plan() -> None:
    report = Report(PLAN, {})
    assert [report.bits(name) for name in (A, LM_HEAD, NORM)] == [4, 8, None]
    assert Report(raised_to_int8(PLAN, [A]), {}).bits(A) == 8


def weight(name: str, shape: list[int], nbytes: int, **known: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("bits", "group_size", "relative_error", "reason"))
    return nothing | {"name": name, "shape": shape, "bytes": nbytes} | known


def test_the_report_is_json() -> None:
    report = Report(PLAN, ERRORS, FIDELITY)
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found == {
        "schema_version": 1,
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "bits_per_weight": report.bits_per_weight,
        "bits_per_quantized_weight": report.bits_per_quantized_weight,
        "weights": [
            weight(EMBEDDINGS, [100, 256], 51_200),
            weight(A, [10, 256], 1360, bits=4, group_size=128, relative_error=0.07),
            weight(
                B,
                [20, 96],
                1200,
                bits=4,
                group_size=32,
                relative_error=0.09,
                reason="128 does not divide 96",
            ),
            weight(NORM, [256], 512),
            weight(LM_HEAD, [100, 256], 26_100, bits=8, group_size=256, relative_error=0.004),
        ],
        "worst": [B, A, LM_HEAD],
        "evaluation": {
            "tokens": 900,
            "perplexity": 9.5,
            "reference_perplexity": 9.0,
            "mean_kl": 0.0625,
            "top1_agreement": 0.875,
        },
    }


def test_before_it_is_done_errors_and_evaluation_are_null() -> None:
    found = Report(PLAN, {}).to_dict()
    assert {entry["relative_error"] for entry in found["weights"]} == {None}
    assert (found["worst"], found["evaluation"]) == ([], None)


def test_only_the_five_worst_are_listed() -> None:
    errors = {f"layer{number}": number / 10 for number in range(8)}
    assert Report(PLAN, errors).to_dict()["worst"] == [f"layer{n}" for n in (7, 6, 5, 4, 3)]
