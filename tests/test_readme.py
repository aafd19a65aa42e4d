"""What the README says of the code is true."""

import dataclasses
import re
from pathlib import Path

import llamacli
from llamacli.cli.bench_options import BenchOptions
from llamacli.cli.download_options import DownloadOptions
from llamacli.cli.exit_codes import ExitCode
from llamacli.cli.quantize_options import QuantizeOptions
from llamacli.cli.run_options import RunOptions
from llamacli.cli.visualize_mask_options import VisualizeMaskOptions

PACKAGE = Path(llamacli.__file__).parent
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_stand_at_the_top() -> None:
    first_block = README.split("```sh\n", 1)[1].split("```", 1)[0]
    assert first_block.splitlines() == [
        'pip install . && echo "Plants create energy through a process known as" | llamacli run',
        "pip install '.[test]' && pytest",
    ]


def test_the_exit_codes_are_those_of_the_program() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", README, re.MULTILINE)
    assert rows == [(str(int(code)), code.meaning) for code in ExitCode]


def test_every_module_is_on_the_map() -> None:
    named = set(re.findall(r"(\w+)\.py", README.split("## The code", 1)[1]))
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    tokenizer_files = {name for name in modules if name.startswith("tokenizer_")}
    assert modules - tokenizer_files <= named
    assert {name for name in named if name not in modules} <= {"app", "run", "test_laws",
                                                               "test_parity"}  # fmt: skip


def test_every_option_exists() -> None:
    commands = (
        RunOptions,
        QuantizeOptions,
        DownloadOptions,
        VisualizeMaskOptions,
        BenchOptions,
    )
    options = {field.name for command in commands for field in dataclasses.fields(command)}
    written = {name.replace("-", "_") for name in re.findall(r"`?--([a-z][a-z-]+)", README)}
    of_torchrun = {"nnodes", "nproc_per_node", "rdzv_backend", "rdzv_endpoint"}
    assert written - {"write", "strict", "help"} - of_torchrun <= options
