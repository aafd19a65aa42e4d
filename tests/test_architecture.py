"""The walls of the house: who may import whom, and how long things may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

import llamacli

# A module imports from its own row and the rows above it, and no two import each other.
ROWS = [
    # what needs the standard library alone
    """errors json_files labels config request masks rope atomic context_window stop_strings lookup
    flax_extra timings generation_config background hub.part_file mask_view mask_view.kinds
    memory_limits machine_memory mask_view.labels mask_view.layout benchmark benchmark.cases
    benchmark.shapes benchmark.record
    benchmark.report benchmark.compare benchmark.plot benchmark.neighbors""",
    # text, names and folders: no torch
    """tokenizer tokenizer_added tokenizer_bytes tokenizer_config tokenizer_json
    tokenizer_sentencepiece tokenizer_conversion tokenizer_fast tokenizer_tiktoken
    tokenizer_sequences tokenizer_call
    tokenizer_batch tokenizer_offsets tokenizer_truncation stream_decoder prompts
    template_worker logit_bias hub.settings hub.client hub.errors hub.listing hub.cache hub.verify
    hub.transfer hub.target hub.download hub model_folder cpu_quota ranks warm_memory
    mask_view.rows mask_view.text mask_view.drawing mask_view.svg mask_view.png mask_view.files""",
    # tensors
    """cache outputs flash_attention memory logits_filters sampling device_sampling devices
    placement offload quantization kernels kernels.native kernels.fast_forward
    kernels.cuda_int4 kernels.cuda_step
    dense_linear quantized_linear kernels.long_prompts kernels.decode_step
    kernels.offloaded_step kernels.shared_step wires weight_file torchao_format
    checkpoint_index checkpoint checkpoint_writer load_into quantization_plan torchao_config
    conversion output_folder flax_cache flax_outputs collectives parallel""",
    """empty_model generation run_ahead batch_generation flax_generation streamers evaluation
    quantization_report memory_estimate""",
    "loading flax_weights flax_loading flax_sharding",
    "model flax_model flax_engine",
    """heads attention_visualizer benchmark.machine benchmark.random_weights benchmark.measure
    benchmark.roofs benchmark.work benchmark.session benchmark.peers
    benchmark.transformers_peer""",
    """auto utils utils.attention_visualizer pipelines pipelines.base pipelines.text_generation
    pipelines.text_classification pipelines.token_classification pipelines.question_answering
    pipelines.factory""",
    "demo demo.templates demo.facts demo.stories demo.corpus demo.train",
    """cli cli.exit_codes cli.notes cli.allocator cli.threads cli.signals cli.console
    cli.option_class cli.choices cli.options cli.task_options cli.placement_options
    cli.run_options cli.prompt_sources cli.prompt_encoder cli.jobs cli.results cli.run_plan
    cli.heartbeats cli.ranks cli.run_weights cli.run cli.task_records cli.run_task cli.progress
    cli.download_options cli.download_progress cli.download_report cli.download
    cli.quantize_options cli.quantize_evaluation cli.quantize_report cli.quantize
    cli.visualize_mask_options cli.visualize_mask cli.bench_options cli.bench_ranks cli.bench
    cli.commands cli.completions cli.app __main__""",
]
ROW_OF = {f"llamacli.{name}": row for row, names in enumerate(ROWS) for name in names.split()}

# Third-party package → the modules that may know it.
ONLY_IN = {
    "typer": "llamacli.cli.",
    "rich": "llamacli.cli.",
    "huggingface_hub": "llamacli.hub",
    "httpx2": "llamacli.hub",
    "jinja2": "llamacli.template_worker",
    "PIL": "llamacli.mask_view.png",
    "transformers": "llamacli.benchmark.transformers_peer",
    "jax": "llamacli.flax_",
    "flax": "llamacli.flax_",
    "torchao": "nobody",
    "accelerate": "llamacli.placement",
}
HEAVY = {
    *"torch numpy safetensors sentencepiece tokenizers jinja2 huggingface_hub rich jax flax".split()
}

ROOT = Path(llamacli.__file__).parent


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): ast.parse(path.read_text()) for path in ROOT.rglob("*.py")}
MODULES = SOURCES.keys() - {"llamacli"}


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, without the imports that only a type checker follows."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from executed(child)


def imports(module: str) -> set[str]:
    """Everything that a module imports, at its top or inside a function."""
    found = set()
    for node in executed(SOURCES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = names & SOURCES.keys()
            found |= inner | ({node.module} if names - inner else set())
    return found


def test_every_module_stands_in_one_row() -> None:
    assert ROW_OF.keys() == MODULES
    assert len(ROW_OF) == sum(len(names.split()) for names in ROWS)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    ours = {name for name in imports(module) if name.split(".")[0] == "llamacli"}
    assert ours <= ROW_OF.keys(), "import from the module itself, not from the public names"
    assert {name for name in ours if ROW_OF[name] > ROW_OF[module]} == set()


def test_no_modules_import_each_other() -> None:
    graph = {module: imports(module) & ROW_OF.keys() for module in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_package_is_known_in_one_place(package: str) -> None:
    users = {m for m in MODULES if any(name.split(".")[0] == package for name in imports(m))}
    assert {module for module in users if not module.startswith(ONLY_IN[package])} == set()


def test_commands_and_whatever_needs_no_tensors_import_nothing_heavy() -> None:
    light = [f"llamacli.{name}" for names in ROWS[:2] for name in names.split()]
    light.remove("llamacli.template_worker")  # a process of its own
    commands = ["llamacli.cli.app", "llamacli.cli.commands", "llamacli.cli.completions"]
    code = f"import sys, {', '.join(light + commands)}; print({HEAVY} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


# -------------------------------------------------------------------------------------- lengths

FUNCTIONS = {
    f"{module}.{node.name}": node
    for module, tree in SOURCES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
}


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_files_are_short() -> None:
    lines = {path.name: len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    assert {name: count for name, count in lines.items() if count > 350} == {}


def test_functions_are_short() -> None:
    lengths = {name: length(node) for name, node in FUNCTIONS.items()}
    assert {name: count for name, count in lengths.items() if count > 50} == {}
    assert median(lengths.values()) <= 10


def test_signatures_are_short() -> None:
    counts = {
        name: len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])
        for name, node in FUNCTIONS.items()
        if not name.startswith("llamacli.cli.")
    }
    del counts["llamacli.flax_loading.__call__"]  # as `transformers` documents it
    assert {name: count for name, count in counts.items() if count > 9} == {}  # 8 and self
