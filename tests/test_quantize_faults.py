"""`llamacli quantize` in a hostile world: faults 14, 27 and 110–117 of the catalogue."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llamacli.model_folder import DEMO_FOLDER
from tests.attacks import full_disk
from tests.command_line import here, in_shell, refused, start
from tests.fork_server import ForkServer
from tests.probe import environment
from tests.quantizing import (
    assert_transformers_reads_the_same,
    files,
    quantize,
    stored_bits,
    write_wide,
)
from tests.test_run_terminal import Window
from tests.tiny import write_model

# Python 3.12 and later warn of a fork beside torch's threads; pexpect starts a program right away.
pytestmark = pytest.mark.filterwarnings("ignore:.*forkpty:DeprecationWarning")

Bytes = dict[str, bytes]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide(tmp_path_factory.mktemp("models") / "wide")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes a second or more with hqq on one thread."""
    folder = tmp_path_factory.mktemp("models") / "slow"
    write_model(folder, hidden_size=512, intermediate_size=2048)
    return folder


@pytest.fixture
def own(model: Path, tmp_path: Path) -> Path:
    """The model, for a test that changes its files."""
    return Path(shutil.copytree(model, tmp_path / "own"))


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def everything(folder: Path) -> Bytes:
    """All that lies below: files with their bytes, links with their target, folders with none."""
    return {
        str(path.relative_to(folder)): os.readlink(path).encode()
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else b""
        for path in folder.rglob("*")
    }


# ------------------------------------------------------------------------------- bad artifacts


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj", "lm_head", "model.norm"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_fault_014_a_value_that_is_not_finite_names_its_weight(
    name: str, value: float, own: Path, out: Path
) -> None:
    tensors = load_file(own / "model.safetensors")
    tensors[f"{name}.weight"].view(-1)[-1] = value
    save_file(tensors, own / "model.safetensors", metadata={"format": "pt"})
    for args in [(), ("--bits", 8), ("--algorithm", "mse"), ("--algorithm", "hqq")]:
        done = here("quantize", own, "-o", out, "--quiet", *args)
        refused(done, f"{name}.weight holds values that are not finite", code=3)
        assert [path.name for path in out.parent.iterdir()] == ["own"]


def test_fault_027_weights_of_another_maker_are_refused_by_name(own: Path, out: Path) -> None:
    config = json.loads((own / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (own / "config.json").write_text(json.dumps(config))
    refused(here("quantize", own, "-o", out), "quantized by gptq", code=3)
    refused(here("quantize", own, "-o", out, "--dequantize"), "quantized by gptq", code=3)


def test_fault_115_a_quantized_model_is_not_quantized_again(model: Path, tmp_path: Path) -> None:
    quantize(model, tmp_path / "int4")
    done = here("quantize", tmp_path / "int4", "-o", tmp_path / "out")
    refused(done, "already quantized: ", "down_proj.weight", "--dequantize makes", code=3)
    assert [path.name for path in tmp_path.iterdir()] == ["int4"]


def test_fault_115_widths_that_no_group_divides_are_kept_and_told(tmp_path: Path) -> None:
    """Rows of 32 and, of the down projections, of 48 values; a vocabulary of an odd size."""
    source, out = tmp_path / "source", tmp_path / "out"
    write_model(source, vocab_size=401)
    done = quantize(source, out, "--report", tmp_path / "report.json")
    assert (
        "bfloat16: model.layers.0.mlp.down_proj.weight and 1 more"
        " (no group size divides its width of 48)\n"
        "int4, groups of 32: model.layers.0.mlp.gate_proj.weight and 11 more"
        " (128 does not divide 32)\n"
    ) in done.err
    weights = json.loads((tmp_path / "report.json").read_text())["weights"]
    reasons = {w["name"]: (w["bits"], w["group_size"], w["reason"]) for w in weights}
    kept = (None, None, "no group size divides its width of 48")
    assert reasons["model.layers.1.mlp.down_proj.weight"] == kept
    smaller = (4, 32, "128 does not divide 32")
    assert reasons["model.layers.1.mlp.up_proj.weight"] == smaller
    assert reasons["lm_head.weight"] == (8, 32, None)
    assert_transformers_reads_the_same(out)
    quantize(source, tmp_path / "int8", "--bits", 8)
    assert stored_bits(tmp_path / "int8")["model.layers.1.mlp.down_proj"] == (8, 48)


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        ("--bits", "3", "'4', '8'"),
        ("--bits", "int4", "'4', '8'"),
        ("--group-size", "16", "'32', '64', '128', '256'"),
        ("--group-size", "0", "'32', '64', '128', '256'"),
        ("--algorithm", "gptq", "'rtn', 'mse', 'hqq'"),
    ],
)
def test_fault_116_a_format_that_is_not_written_lists_those_that_are(
    option: str, value: str, known: str, out: Path
) -> None:
    done = here("quantize", "-o", out, option, value)
    refused(done, option, f"'{value}' is not one of {known}", "quantize --help")


def test_fault_116_every_format_needs_no_gpu_and_no_torchao(model: Path, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['torchao', 'transformers', 'mslk'])\n"
        "from llamacli.cli import app; app.main()"
    )
    environ = environment(CUDA_VISIBLE_DEVICES="")
    command = [sys.executable, "-c", script, "quantize", str(model), "-o"]
    mixed = [str(tmp_path / "out"), "--mixed", "*.k_proj=8", "--quiet"]
    done = subprocess.run([*command, *mixed], capture_output=True, env=environ, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


# -------------------------------------------------------------------------- where it is written


def a_letter(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("Dear")


# id → what lies there before, the output (both by names relative to the test's folder, where the
# input is `own`), whether to replace it, words of the error
PLACES: dict[str, tuple[Callable[[Path], object], str, bool, str]] = {
    "exists": (lambda tmp: a_letter(tmp / "out" / "a"), "out", False, "exists and is not empty"),
    "no-model": (lambda tmp: a_letter(tmp / "out" / "a"), "out", True, "only a model is"),
    "a-file": (lambda tmp: a_letter(tmp / "out"), "out", True, "is a file, not a folder"),
    "a-link": (lambda tmp: (tmp / "out").symlink_to("own"), "out", True, "is a symbolic link"),
    "the-input": (Path.exists, "own", True, "is the input"),
    "in-the-input": (Path.exists, "own/out", True, "is the input, or one holds the other"),
    "around-the-input": (Path.exists, "", True, "is the input, or one holds the other"),
    "without-a-parent": (Path.exists, "no/out", False, "no does not exist"),
    "without-a-name": (Path.exists, "..", True, "is no name for a new folder"),
}


@pytest.mark.parametrize("place", PLACES)
def test_fault_110_what_is_no_model_and_the_input_stay(
    place: str, own: Path, tmp_path: Path
) -> None:
    prepare, name, replace, words = PLACES[place]
    prepare(tmp_path)
    before = everything(tmp_path)
    done = here("quantize", own, "-o", tmp_path / name, *["--force"] * replace)
    refused(done, words, code=7)
    assert everything(tmp_path) == before


def test_fault_110_a_model_is_replaced_on_request_only(model: Path, out: Path) -> None:
    quantize(model, out)
    old = files(out)
    done = here("quantize", model, "-o", out, "--bits", 8)
    refused(done, "exists and is not empty", "replace it with --force", code=7)
    assert files(out) == old
    quantize(model, out, "--bits", 8, "--force")
    assert set(stored_bits(out).values()) == {(8, 64), (8, 256)}
    assert os.listdir(out.parent) == ["out"]


@pytest.mark.parametrize("ahead", [True, False], ids=["at-once", "in-a-thread"])
@pytest.mark.parametrize("free_bytes", [100, 5_000, 60_000])
def test_fault_111_a_full_disk_leaves_what_was_there(
    free_bytes: int, ahead: bool, model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ahead:  # as on a disk that finds out late: space is taken when it is written to
        monkeypatch.setattr(os, "ftruncate", lambda *_: None)
    with full_disk(free_bytes):
        done = here("quantize", model, "-o", out, "--quiet")
    refused(done, f"cannot write to {out}: File too large", code=7)
    assert list(out.parent.iterdir()) == []
    quantize(model, out, "--group-size", 64)
    old = everything(out.parent)
    with full_disk(free_bytes):
        done = here("quantize", model, "-o", out, "--quiet", "--force")
    refused(done, "File too large", code=7)
    assert everything(out.parent) == old


def test_fault_111_what_does_not_fit_is_not_begun(
    model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(out.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    done = here("quantize", model, "-o", out)
    refused(done, "the model needs 0.00 GB", f"the disk of {out.parent} has 0.00 GB left", code=7)
    assert list(out.parent.iterdir()) == []


def test_fault_076_a_stdout_that_is_full_is_told_and_the_folder_is_whole(
    model: Path, out: Path
) -> None:
    done = in_shell(f"{{llamacli}} quantize {model} -o {out} --quiet > /dev/full")
    assert (done.code, done.out) == (7, b"")
    assert done.err == "llamacli: error: cannot write to stdout: No space left on device\n"
    assert stored_bits(out)


# ------------------------------------------------------------------------- terminals and signals


def test_a_terminal_shows_a_bar_and_then_the_summary(slow: Path, out: Path) -> None:
    window = Window("quantize", slow, "-o", out, "--algorithm", "hqq", "-t", 1)
    window.wait_for("B/s")
    assert "━".encode() in window.bytes
    lines = window.finish()
    assert "bits per weight in 15 quantized layers" in " ".join(lines[:2])
    heading = lines.index("relative error of the worst layers:")
    assert all("(int4, groups of 128)" in line for line in lines[heading + 1 : heading + 6])
    assert "".join(lines[heading + 6 :]) == f"{out} echocode 0"


def test_fault_112_ctrl_c_leaves_a_clean_line_and_no_folder(slow: Path, out: Path) -> None:
    window = Window("quantize", slow, "-o", out, "--algorithm", "hqq", "-t", 1)
    window.wait_for("B/s")
    window.child.sendintr()
    assert window.finish() == [" echo", "code 130"]
    assert list(out.parent.iterdir()) == []


SIGNALS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.mark.parametrize("replace", [False, True])
def test_fault_112_whenever_a_signal_comes_the_folder_is_whole_or_what_it_was(
    replace: bool, forks: ForkServer, model: Path, tmp_path: Path
) -> None:
    """25 rounds; what one leaves behind is where the next one begins."""
    recipes = [("--algorithm", "hqq", "--group-size", size) for size in (32, 64)]
    results, seconds = [], []
    for which in (0, 1, 0, 1):
        started = time.monotonic()
        undisturbed = tmp_path / f"undisturbed{which}"
        command = ["quantize", model, "-o", undisturbed, *recipes[which], "--force"]
        assert forks.run(*command)[0] == 0
        seconds.append(time.monotonic() - started)
        results.append(files(undisturbed))
    assert results[:2] == results[2:]

    place = tmp_path / "place"
    place.mkdir()
    out, moments, codes = place / "out", random.Random(112), set()
    old: Bytes = {}
    for number in range(25):
        signum, which = [*SIGNALS][number % 3], number % 2
        earlier = set(os.listdir(place))
        command = ["quantize", model, "-o", out, *recipes[which], *["--force"] * replace]
        after = moments.uniform(0.5, 1) * min(seconds)  # about there the work begins
        code, _, err = forks.run(*command, signum=signum, after=after)
        codes.add(code)
        new = files(out) if out.exists() else {}
        left = set(os.listdir(place)) - {"out"}
        assert code in (0, SIGNALS[signum]), err
        if not new and ".out.old" in left:  # killed between two renames
            assert signum == signal.SIGKILL
            new = files(place / ".out.old")
        assert new == results[which] or (new == old and code != 0)
        if signum == signal.SIGKILL:
            assert left <= {".out.tmp", ".out.old"}
        elif left - earlier:  # between making it and locking it
            assert (left, os.listdir(place / ".out.tmp")) == ({".out.tmp"}, [])
        if replace:
            old = new
        elif new:
            shutil.rmtree(out)
    assert codes - {0}
    code, text, err = forks.run("quantize", model, "-o", out, *recipes[0], *["--force"] * replace)
    assert (code, text) == (0, f"{out}\n"), err
    assert everything(place) == {"out": b""} | {f"out/{n}": b for n, b in results[0].items()}


def test_fault_114_a_second_process_is_refused_while_the_first_works(
    model: Path, tmp_path: Path
) -> None:
    out, text = tmp_path / "out", tmp_path / "text"
    os.mkfifo(text)  # the first waits for it, with the output taken
    with start("quantize", model, "-o", out, "--text", text, "-t", 1) as first:
        with text.open("w") as stream:
            before = everything(tmp_path)
            done = here("quantize", model, "-o", out, "--force")
            refused(done, f"another llamacli is writing {out}", code=7)
            assert everything(tmp_path) == before
            quantize(model, tmp_path / "other")
            stream.write("The sun sees the moon.\n")
        told, _ = first.communicate(timeout=60)
    assert (first.returncode, told.decode()) == (0, f"{out}\n")
    assert files(out) == files(tmp_path / "other")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "other", "text"}


# -------------------------------------------------------------------------------------- the bytes


@pytest.mark.parametrize("algorithm", ["rtn", "mse", "hqq"])
def test_fault_117_the_same_input_gives_the_same_bytes(
    algorithm: str, forks: ForkServer, tmp_path: Path
) -> None:
    found = []
    for name, threads in {"a": 1, "b": 1, "c": 2}.items():
        out = tmp_path / name
        command = ["quantize", DEMO_FOLDER, "-o", out, "--algorithm", algorithm, "-t", threads]
        code, _, err = forks.run(*command, "--report", tmp_path / f"{name}.json")
        assert code == 0, err
        found.append((files(out), (tmp_path / f"{name}.json").read_bytes()))
    assert all(one == found[0] for one in found)
