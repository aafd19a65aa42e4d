"""The weights of a run: where they go, whether there is room, and their way into memory."""

from typing import TYPE_CHECKING, Any

from llamacli.cli.allocator import keep_freed_memory
from llamacli.cli.choices import Backend
from llamacli.cli.console import Terminal
from llamacli.cli.placement_options import device_or_placement
from llamacli.cli.ranks import Ranks
from llamacli.cli.run_options import RunOptions
from llamacli.cli.threads import calm_threads, default_threads, set_threads

if TYPE_CHECKING:
    from llamacli.checkpoint import Checkpoint
    from llamacli.loading import PreTrainedModel
    from llamacli.memory_estimate import MemoryEstimate
    from llamacli.model_folder import ModelFolder
    from llamacli.placement import Placement


def load_weights(
    terminal: Terminal,
    options: RunOptions,
    folder: "ModelFolder",
    rows: int,
    tokens: int,
    opens: "type[PreTrainedModel] | None" = None,
    ranks: Ranks | None = None,
) -> Any:
    """Import torch and read the weights, if there is memory for so many rows of tokens.

    They become a `LlamaForCausalLM`, or the class `opens`; with `ranks` this rank's share of it.
    """
    calm_threads()
    keep_freed_memory()
    with terminal.importing():
        import torch

        from llamacli.kernels.cuda_step import compile_step
        from llamacli.loading import load_model, open_weights
        from llamacli.model import LlamaForCausalLM
    set_threads(options.threads, 1 if ranks is None else ranks.place.local_size)
    weights = open_weights(folder.path, folder.config)
    device = device_or_placement(options, opens or LlamaForCausalLM, folder.config, weights)
    estimate(options, folder, weights, rows, tokens, device, options.tp).require()
    if options.check_tensors:
        terminal.status("checking the weights …")
        weights.check_finite()

    def show_progress(done: int, total: int) -> None:
        terminal.status(f"loading the weights: {done / 1e9:.1f} of {total / 1e9:.1f} GB …")

    settings: dict[str, Any] = {
        "dtype": options.dtype.value,
        "device": device if ranks is None else ranks.mesh,
        "attn_implementation": options.attn_implementation.value,
        "progress": show_progress,
    }
    if options.backend is Backend.FLAX:
        from llamacli.flax_engine import load_engine

        return load_engine(folder.config, weights, **settings)
    settings |= {"recipe": options.recipe, "activations": options.activations.value}
    model = load_model(opens or LlamaForCausalLM, folder.config, weights, **settings)
    if options.compile:
        compile_step(model)
    values = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if options.threads is None:
        torch.set_num_threads(default_threads(values))
    return model


def estimate(
    options: RunOptions,
    folder: "ModelFolder",
    weights: "Checkpoint",
    rows: int,
    tokens: int,
    device: "str | Placement",
    ranks: int,
) -> "MemoryEstimate":
    """The memory that the model will take, or each of its ranks."""
    from llamacli.memory_estimate import estimate_memory

    dtype = options.dtype.value
    if options.backend is Backend.FLAX:
        from llamacli.flax_loading import as_loaded

        weights, dtype = as_loaded(weights, dtype, options.device)
    return estimate_memory(
        folder.config,
        weights,
        dtype=dtype,
        device=device,
        recipe=options.recipe,
        rows=rows,
        tokens=tokens,
        ranks=ranks,
    )
