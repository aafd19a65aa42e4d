"""One model folder becomes another, a block of a weight at a time: quantized, or plain again.

A model of any size needs the memory of a few blocks.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llamacli.checkpoint import MAX_SHARD_BYTES, Checkpoint, is_finite
from llamacli.checkpoint_writer import CheckpointWriter
from llamacli.errors import CheckpointError, ConfigError
from llamacli.json_files import read_json_object
from llamacli.quantization import Int4Weight, quantize
from llamacli.quantization_plan import EMBEDDINGS, LM_HEAD, Plan, PlannedWeight, blocks
from llamacli.torchao_format import metadata_for, part_name, quantization_config

BLOCK_VALUES = 1 << 20  # about 20 MB of temporaries for each thread, which a cache holds in part

# What a model needs beside its weights and config.json, and what must travel with it.
CARRIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)

Progress = Callable[[str, int], object]


class _Block(NamedTuple):
    """What a converted block tells."""

    nbytes: int  # read
    squares: float  # of its values, summed
    squared_error: float


def convert_folder(
    source: Path,
    checkpoint: Checkpoint,
    plan: Plan,
    target: Path,
    *,
    algorithm: str = "rtn",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Write the model of `source` into the empty folder `target`, as planned.

    Args:
        checkpoint: the weights of `source`.
        algorithm: one of `quantization.ALGORITHMS`.
        progress: called with the name of a weight and the bytes just read of it.

    Returns:
        Name of each quantized weight → its relative error, ‖w − w'‖ / ‖w‖.

    Raises:
        CheckpointError: a weight holds values that are not finite.
        ConfigError, LocalIOError: the source cannot be read.
        OSError: the target cannot be written.
    """
    _write_config(source, target, plan)
    for pattern in CARRIED:
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, target / path.name)
    layouts = {k: layout for name, to in plan.items() for k, layout in to.layouts(name).items()}
    stored = {name: (to.scheme, to.source.shape, to.dtype) for name, to in plan.items()}
    errors = {}
    with (
        CheckpointWriter(
            target, layouts, metadata_for(stored), max_shard_bytes=max_shard_bytes
        ) as writer,
        _one_thread_each() as threads,
        ThreadPoolExecutor(threads) as pool,
    ):
        for name, planned in plan.items():
            convert = partial(_convert, checkpoint, writer, name, planned, algorithm)
            error = _sum_blocks(name, pool.map(convert, blocks(planned, BLOCK_VALUES)), progress)
            if planned.scheme is not None:
                errors[name] = error
    return errors


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """How many threads torch would use; within it each of so many threads works alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _sum_blocks(name: str, results: Iterator[_Block], progress: Progress | None) -> float:
    """The relative error of a weight, from its blocks as they are done."""
    squares = squared_error = 0.0
    # Closed early, by an exception, the results cancel what has not begun.
    with closing(results):  # type: ignore[type-var]
        for block in results:
            squares += block.squares
            squared_error += block.squared_error
            if progress is not None:
                progress(name, block.nbytes)
    return math.sqrt(squared_error / squares) if squares else 0.0


def _convert(
    checkpoint: Checkpoint,
    writer: CheckpointWriter,
    name: str,
    planned: PlannedWeight,
    algorithm: str,
    rows: tuple[int, int],
) -> _Block:
    is_scalar = not planned.source.shape
    info = planned.source if is_scalar else planned.source.rows(*rows)
    source = checkpoint.read_part(info)
    values = source if isinstance(source, torch.Tensor) else source.dequantize(torch.float32)
    values = values.to(planned.dtype)
    nbytes = planned.source.nbytes * (rows[1] - rows[0]) // (planned.source.shape or (1,))[0]
    if planned.scheme is None:
        _check_finite(name, values)
        writer.write(name, values, row=rows[0])
        return _Block(nbytes, 0.0, 0.0)
    quantized = quantize(values, planned.scheme, algorithm)
    _check_finite(name, quantized.scale)  # not finite where a value is not
    writer.write(part_name(name, "qdata"), quantized.qdata, row=rows[0])
    if isinstance(quantized, Int4Weight):
        for part in ("scale", "zero_point"):
            writer.write(part_name(name, part), getattr(quantized, part), column=rows[0])
    else:
        zeros = torch.zeros_like(quantized.scale, dtype=torch.int8)
        writer.write(part_name(name, "scale"), quantized.scale, row=rows[0])
        writer.write(part_name(name, "zero_point"), zeros, row=rows[0])
    wide = values.float().flatten()
    residual = quantized.dequantize(torch.float32).flatten().sub_(wide)
    return _Block(nbytes, wide.dot(wide).item(), residual.dot(residual).item())


def _check_finite(name: str, values: torch.Tensor) -> None:
    if values.is_floating_point() and not is_finite(values):
        raise CheckpointError(f"{name} holds values that are not finite")


def _write_config(source: Path, target: Path, plan: Plan) -> None:
    """config.json with what has changed; keys that llamacli does not know stay."""
    config: dict[str, Any] = read_json_object(source / "config.json", error=ConfigError)
    config.pop("quantization_config", None)
    for key in {"dtype", "torch_dtype"} & config.keys() or {"torch_dtype"}:
        config[key] = "bfloat16"
    schemes = [planned.scheme for planned in plan.values() if planned.scheme is not None]
    if schemes:
        config["quantization_config"] = quantization_config(schemes)
    head, embeddings = plan.get(LM_HEAD), plan.get(EMBEDDINGS)
    if head and embeddings and head.source is embeddings.source:
        config["tie_word_embeddings"] = False
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
