"""The options that split a model over several devices, and what they mean together."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llamacli.cli import options as opt
from llamacli.errors import ConfigError, LlamacliError

if TYPE_CHECKING:
    from llamacli.checkpoint import Checkpoint
    from llamacli.cli.run_options import RunOptions
    from llamacli.config import LlamaConfig
    from llamacli.placement import Placement

_MODEL = "The model"
NAMES = ("device_map", "max_memory", "offload_folder")

DeviceMapOption = Annotated[
    str | None,
    opt.option(
        _MODEL,
        "--device-map",
        metavar="auto|FILE",
        help="Split the model over devices; FILE is JSON, module: device.",
        show_default="one device",
    ),
]
MaxMemoryOption = Annotated[
    str | None,
    opt.option(
        _MODEL,
        "--max-memory",
        metavar="LIST",
        help="Weights on each device, as 0=20GiB,cpu=8GiB; the rest stays on disk.",
        show_default="what is free",
    ),
]
OffloadFolderOption = Annotated[
    Path | None,
    opt.option(
        _MODEL,
        "--offload-folder",
        metavar="FOLDER",
        help="For weights on disk that the files hold in another form.",
        show_default="not needed where they are the same",
    ),
]
CompileOption = Annotated[
    bool,
    opt.option(
        _MODEL, "--compile", help="On CUDA: faster steps, after a minute of compiling them."
    ),
]


def device_or_placement(
    options: "RunOptions", opens: Any, config: "LlamaConfig", weights: "Checkpoint"
) -> "str | Placement":
    """The device of the whole model, or where its parts go; errors name the options."""
    given = [name for name in NAMES if getattr(options, name) is not None]
    if not given:
        return options.device
    from llamacli.loading import plan_placement
    from llamacli.placement import PlacementRequest

    with named_as_options():
        request = PlacementRequest(
            device_map=_device_map(options.device_map),
            max_memory=options.max_memory,
            offload_folder=options.offload_folder,
        )
        dtype, recipe = options.dtype.value, options.recipe
        return plan_placement(opens, config, weights, request, dtype=dtype, recipe=recipe)


def _device_map(value: str | None) -> object:
    if value in (None, "auto"):
        return "auto"
    from llamacli.json_files import read_json_object

    return read_json_object(Path(value or ""), error=ConfigError)


@contextmanager
def named_as_options() -> Iterator[None]:
    """Within it an error that begins with the name of a parameter begins with the option's."""
    try:
        yield
    except LlamacliError as problem:
        text = str(problem)
        for name in NAMES:
            if text.startswith(name):
                option = "--" + name.replace("_", "-")
                raise type(problem)(option + text[len(name) :], hint=problem.hint) from None
        raise
