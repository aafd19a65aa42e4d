"""`llamacli quantize`: its options, the plan, the report, the quality."""

import json
import re
from dataclasses import fields
from math import prod
from pathlib import Path

import pytest
import torch

from llamacli.checkpoint_writer import CheckpointWriter, Layout
from llamacli.cli.quantize_options import QuantizeOptions
from llamacli.config import LlamaConfig
from llamacli.model import LlamaForCausalLM
from tests.command_line import Done, here, in_shell, refused
from tests.quantizing import (
    PROJECTIONS,
    files,
    quantize,
    report_of,
    stored_bits,
    tensor_bytes,
    weights,
    write_wide,
)

NOTE_OF_DEMO = "llamacli: note: using the small demo model; the argument MODEL names another\n"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide(tmp_path_factory.mktemp("models") / "wide")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


# ---------------------------------------------------------------------------- stdout and stderr


def test_stdout_is_the_name_of_the_folder_and_stderr_tells_the_rest(wide: Path, out: Path) -> None:
    done = quantize(wide, out)
    phase, sizes, heading, *worst, exception = done.err.splitlines()
    assert re.fullmatch(r"llamacli: quantizing \d+ tensors, [\d.]+ kB …", phase)
    assert re.match(r"[\d.]+ kB → [\d.]+ kB; [\d.]+ bits per weight in 15 quantized layers", sizes)
    assert heading == "relative error of the worst layers:"
    assert len(worst) == 5
    errors = [float(line.split()[0]) for line in worst]
    assert errors == sorted(errors, reverse=True)
    assert 0.05 < errors[-1] <= errors[0] < 0.2
    assert exception == (
        "int4, groups of 64: model.layers.0.mlp.gate_proj.weight and 11 more"
        " (128 does not divide 64)"
    )


def test_a_pipe_gets_no_escapes_and_quiet_no_word(wide: Path, tmp_path: Path) -> None:
    line = f"{{llamacli}} quantize {wide} -o {tmp_path}/"
    done = in_shell(f"{line}a", FORCE_COLOR="1")
    assert (done.code, done.out) == (0, f"{tmp_path}/a\n".encode())
    assert "\x1b" not in done.err
    assert "\r" not in done.err
    assert in_shell(f"{line}b --quiet --evaluate -t 1") == Done(0, f"{tmp_path}/b\n".encode(), "")


def test_without_a_model_it_is_the_demo_and_run_continues_from_the_copy(out: Path) -> None:
    done = here("quantize", "-o", out)
    assert (done.code, done.out.decode()) == (0, f"{out}\n")
    assert done.err.startswith(NOTE_OF_DEMO)
    text = here("run", "-m", out, "--greedy", "-n", 12, "The sun").text
    assert text == here("run", "--greedy", "-n", 12, "-q", "The sun").text
    assert len(text.split()) > 5


# ---------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--dequantize", "--bits", 4], "--dequantize and --bits"),
        (["--dequantize", "--group-size", 32], "--dequantize and --group-size"),
        (["--dequantize", "--algorithm", "mse"], "--dequantize and --algorithm"),
        (["--dequantize", "--skip", "*"], "--dequantize and --skip"),
        (["--dequantize", "--mixed", "*=8"], "--dequantize and --mixed"),
        (["--dequantize", "--target-kl", 1], "--dequantize and --target-kl"),
        (["--dry-run", "--evaluate"], "--dry-run and --evaluate"),
        (["--dry-run", "--text", "a"], "--dry-run and --text"),
        (["--dry-run", "--target-kl", 1], "--dry-run and --target-kl"),
        (["--bits", 8, "--group-size", 32], "--bits and --group-size"),
        (["--bits", 8, "--algorithm", "hqq"], "--bits and --algorithm"),
        (["--bits", 8, "--mixed", "*.k_proj=8", "--group-size", 32], "--bits and --group-size"),
    ],
)
def test_what_would_be_ignored_is_refused(out: Path, args: list[object], words: str) -> None:
    refused(here("quantize", "-o", out, *args), f"{words} contradict each other")


def test_without_a_name_for_the_output_nothing_is_done(wide: Path) -> None:
    refused(here("quantize", wide), "-o names the folder to write", "quantize MODEL -o DIR")


def test_variables_are_options_and_yield_to_them(wide: Path, tmp_path: Path) -> None:
    def bits(*args: object, **variables: str) -> set[tuple[int, int]]:
        out = tmp_path / str(len([*tmp_path.iterdir()]))
        with pytest.MonkeyPatch.context() as environ:  # typer looks there
            for name, value in variables.items():
                environ.setenv(f"LLAMACLI_{name}", value)
            quantize(wide, out, *args)
        return {scheme for name, scheme in stored_bits(out).items() if "down_proj" in name}

    assert bits(BITS="8") == {(8, 256)}
    assert bits("--bits", 4, BITS="8") == {(4, 128)}
    assert bits(GROUP_SIZE="64", ALGORITHM="mse", SKIP="*.q_proj *.k_proj") == {(4, 64)}
    assert bits("--bits", 8, GROUP_SIZE="32", ALGORITHM="hqq") == {(8, 256)}
    assert bits("--group-size", 32, BITS="8", ALGORITHM="hqq") == {(4, 32)}
    assert bits("--bits", 4, DEQUANTIZE="1") == {(4, 128)}
    assert bits("--evaluate", DRY_RUN="1") == {(4, 128)}


def test_variables_that_contradict_each_other_are_refused(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMACLI_BITS", "8")
    monkeypatch.setenv("LLAMACLI_GROUP_SIZE", "32")
    words = "LLAMACLI_BITS and LLAMACLI_GROUP_SIZE contradict each other"
    refused(here("quantize", "-o", out), words)


def test_help_shows_examples_and_every_option() -> None:
    text = here("quantize", "--help").text
    assert text.index("Examples:") < text.index("The weights:") < text.index("Quality:")
    for field in fields(QuantizeOptions)[1:]:
        assert f"--{field.name.replace('_', '-')} " in text


def test_a_model_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    done = here("quantize", tmp_path / "absent", "--offline", "-o", tmp_path / "out")
    refused(done, "there is no folder", code=6)


# --------------------------------------------------------------------------------- the dry run


def row_of(line: str) -> tuple[str, str, str]:
    """Name, count and format of a row of the plan."""
    found = re.match(r"(\S+) +(\d+) × (.+?)   ", line)
    assert found, line
    return found[1], found[2], found[3]


def test_a_dry_run_writes_nothing_and_foresees_every_byte(wide: Path, tmp_path: Path) -> None:
    planned = here("quantize", wide, "--dry-run")
    assert (planned.code, planned.err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    *rows, sizes = planned.out.decode().splitlines()
    found = {name: (int(count), stored) for name, count, stored in map(row_of, rows)}
    assert len(found) == len(rows) == 12
    assert found["model.layers.*.mlp.down_proj.weight"] == (2, "int4, groups of 128")
    assert found["model.layers.*.input_layernorm.weight"] == (2, "bfloat16")
    assert found["lm_head.weight"] == (1, "int8")
    written = quantize(wide, tmp_path / "out")
    assert sizes in written.err.splitlines()
    again = here("quantize", wide, "--dry-run", "-o", tmp_path / "absent")
    assert again.out == planned.out
    assert not (tmp_path / "absent").exists()


def test_a_dry_run_names_what_is_not_as_asked(wide: Path) -> None:
    table = here("quantize", wide, "--dry-run", "--skip", "*.q_proj", "--group-size", 256).out
    lines = table.decode().splitlines()
    assert sum(line.endswith("  skipped") for line in lines) == 1
    assert sum(line.endswith("  256 does not divide 64") for line in lines) == 5


def test_a_dry_run_needs_only_the_headers(tmp_path: Path) -> None:
    """The weights of Llama 2 7B, as a file with holes."""
    sizes = {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    }
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes)).bfloat16()
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"model_type": "llama"}))
    layouts = {name: Layout(tuple(t.shape), t.dtype) for name, t in model.state_dict().items()}
    with CheckpointWriter(tmp_path, layouts, {}, max_shard_bytes=5_000_000_000):
        pass
    done = here("quantize", tmp_path, "--dry-run")
    assert done.code == 0, done.err
    assert done.out.decode().splitlines()[-1] == (
        "13.5 GB → 3.8 GB; 4.32 bits per weight in 225 quantized layers, 4.55 in all,"
        " scales counted"
    )


# ----------------------------------------------------------------------------------- the report


def test_the_report_counts_what_is_on_the_disk(wide: Path, out: Path, tmp_path: Path) -> None:
    before = report_of(wide, "--dry-run", at=tmp_path / "before.json")
    after = report_of(wide, "-o", out, at=tmp_path / "after.json")
    assert before.keys() == after.keys()
    assert after.keys() == {
        "schema_version", "bytes_before", "bytes_after", "bits_per_weight",
        "bits_per_quantized_weight", "weights", "worst", "evaluation",
    }  # fmt: skip
    assert after["bytes_before"] == tensor_bytes(wide)
    assert after["bytes_after"] == tensor_bytes(out) == sum(w["bytes"] for w in after["weights"])
    values = sum(prod(w["shape"]) for w in after["weights"])
    assert after["bits_per_weight"] == pytest.approx(8 * tensor_bytes(out) / values)
    known = {w["name"]: w.pop("relative_error") for w in after["weights"]}
    planned = {w["name"]: w.pop("relative_error") for w in before["weights"]}
    assert before["weights"] == after["weights"]
    assert set(planned.values()) == {None}
    assert after["worst"] == sorted(after["worst"], key=lambda name: -known[name])
    assert (before["worst"], before["evaluation"], after["evaluation"]) == ([], None, None)


def test_the_report_and_stderr_tell_the_same(wide: Path, out: Path, tmp_path: Path) -> None:
    at = tmp_path / "report.json"
    told = quantize(wide, out, "--report", at, "--evaluate").err
    report = json.loads(at.read_text())
    errors = {w["name"]: w["relative_error"] for w in report["weights"]}
    for name in report["worst"]:
        assert f"  {errors[name]:.4f}  {name} (int4" in told
    phases = [line for line in told.splitlines() if line.startswith("llamacli: ")]
    assert len(phases) == 3
    assert phases[::2] == ["llamacli: evaluating the original …", "llamacli: evaluating the copy …"]
    found = report["evaluation"]
    assert (
        f"perplexity {found['reference_perplexity']:.3f} → {found['perplexity']:.3f},"
        f" mean KL divergence {found['mean_kl']:.4g},"
        f" same best token {found['top1_agreement']:.1%} ({found['tokens']:,} tokens)\n"
    ) in told
    original, quantized = weights(wide), weights(out)
    for name in report["worst"]:
        error = (quantized[name] - original[name]).norm() / original[name].norm()
        assert errors[name] == pytest.approx(error.item(), rel=2e-2)  # the weights are bfloat16


def test_the_place_of_the_report_is_checked_before_the_work(wide: Path, tmp_path: Path) -> None:
    command = ["quantize", wide, "-o", tmp_path / "out", "--report"]
    missing = here(*command, tmp_path / "no" / "report.json")
    refused(missing, f"the folder {tmp_path}/no does not exist", "make it first", code=7)
    refused(here(*command, tmp_path), "is a folder, not a file to write", code=7)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------- the quality


def test_the_text_can_be_chosen(wide: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The sun sees the moon.\n" * 4)
    at = tmp_path / "report.json"
    quantize(wide, tmp_path / "a", "--text", text, "--report", at)
    tokens = json.loads(at.read_text())["evaluation"]["tokens"]
    assert 20 < tokens < 100
    text.write_text("The sun sees the moon.\n" * 1000)
    told = quantize(wide, tmp_path / "b", "--text", text, "--report", at).err
    assert re.search(r"note: of the text's \d+,\d+ tokens the first 2,048 are used\n", told)
    assert json.loads(at.read_text())["evaluation"]["tokens"] == 2048


def test_a_text_that_cannot_be_used_is_refused_before_the_work(wide: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"")
    command = ["quantize", wide, "-o", tmp_path / "out", "--quiet", "--text"]
    refused(here(*command, tmp_path / "absent"), "there is no file", code=6)
    refused(here(*command, tmp_path), "Is a directory", code=7)
    refused(here(*command, text), "nothing to predict")
    text.write_text("sun", encoding="utf-16")
    refused(here(*command, text), "UTF-16", "iconv")
    assert list(tmp_path.iterdir()) == [text]


@pytest.mark.parametrize("target", [0.3, 1.0])
def test_the_target_is_met_with_the_fewest_of_the_worst_layers(
    target: float, wide: Path, tmp_path: Path
) -> None:
    first = report_of(wide, "-o", tmp_path / "first", at=tmp_path / "first.json")
    int4 = [weight for weight in first["weights"] if weight["bits"] == 4]
    worst = [w["name"] for w in sorted(int4, key=lambda w: -w["relative_error"])]

    command = [wide, "-o", tmp_path / "out", "--target-kl", target]
    met = report_of(*command, at=tmp_path / "met.json")
    raised = [w["name"] for w in met["weights"] if w["reason"] == "raised to meet the target"]
    assert sorted(raised) == sorted(worst[: len(raised)])
    assert 1 < len(raised) < PROJECTIONS
    assert met["evaluation"]["mean_kl"] <= target

    def by_hand(count: int) -> float:
        mixed = [arg for name in worst[:count] for arg in ("--mixed", f"{name[:-7]}=8")]
        command = [wide, "-o", tmp_path / "by-hand", "--force", "--evaluate", *mixed]
        return float(report_of(*command, at=tmp_path / "report.json")["evaluation"]["mean_kl"])

    assert by_hand(len(raised) - 1) > target
    assert by_hand(len(raised)) == met["evaluation"]["mean_kl"]
    assert files(tmp_path / "by-hand") == files(tmp_path / "out")


def test_a_target_that_is_met_raises_nothing(wide: Path, tmp_path: Path) -> None:
    done = quantize(wide, tmp_path / "out", "--target-kl", 1000)
    assert "with 0 of 14 layers raised to 8 bits\n" in done.err
    quantize(wide, tmp_path / "plain")
    assert files(tmp_path / "out") == files(tmp_path / "plain")


@pytest.mark.parametrize("args", [(), ("--bits", 8)])
def test_a_target_that_int8_misses_is_refused(
    wide: Path, tmp_path: Path, args: tuple[object, ...]
) -> None:
    done = here("quantize", wide, "-o", tmp_path / "out", "--target-kl", 0, "--quiet", *args)
    refused(done, "with all layers in int8 the mean KL divergence is 0.0", "above 0", "--skip")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["-1", "nan", "few"])
def test_a_target_that_is_no_distance_is_refused(wide: Path, out: Path, target: str) -> None:
    refused(here("quantize", wide, "-o", out, "--target-kl", target), "--target-kl")
