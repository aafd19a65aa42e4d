"""Which device holds which part of a model. Where one is too small, accelerate decides.

"disk" is a device, too: what is there is read each time it is needed.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch import nn

from llamacli.devices import available_devices, choose_device, free_memory_bytes
from llamacli.errors import RequestError, ResourceError, first_five, printable
from llamacli.memory_limits import memory_limits

DISK = "disk"
# A layer adds to what came into it, so it stays on one device.
WHOLE_MODULES = ("DecoderLayer",)
_LAYER = re.compile(r"(.*\blayers\.\d+)\.")
_NUMBERED = ("cuda", "xpu")  # devices of which there may be several
_FREE_SHARE = 0.9  # of free memory, for weights

Limits = str | Mapping[int | str, int | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRequest:
    """What was asked for; names and meaning are those of transformers.

    Attributes:
        device_map: "auto", or module → device: a number for a GPU, "cpu", "disk", "cuda:1", …
        max_memory: device → the most bytes of weights on it, as `memory_limits`; None is what is
            free. A device that is not named is not used.
        offload_folder: for weights on "disk" that have another form in memory than in the files.
    """

    device_map: object = "auto"
    max_memory: Limits | None = None
    offload_folder: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.device_map, Mapping) and self.device_map != "auto":
            shown = printable(repr(self.device_map))
            raise RequestError(f'device_map must be "auto" or a mapping here, got {shown}')
        if self.max_memory is not None:
            memory_limits(self.max_memory)

    @property
    def limits(self) -> dict[str, int | None]:
        """Device → bytes that weights may take there, None where nobody knows.

        Raises:
            ResourceError: a device that this machine lacks.
        """
        if self.max_memory is not None:
            asked = sorted(memory_limits(self.max_memory).items(), key=_gpus_first)
            return {_name(device, "max_memory"): size for device, size in asked}
        kind = available_devices()[0]
        count = torch.get_device_module(kind).device_count()
        names = [f"{kind}:{index}" for index in range(count)] if kind in _NUMBERED else [kind]
        return {name: _free(name) for name in dict.fromkeys((*names, "cpu"))}

    @property
    def main_device(self) -> torch.device:
        """Where ids are taken, and where weights on other devices than GPUs are used."""
        if isinstance(self.device_map, Mapping):
            used: Iterable[str] = [_name(d, "device_map") for d in self.device_map.values()]
        else:
            used = self.limits
        return torch.device(next((name for name in used if name not in ("cpu", DISK)), "cpu"))


class Placing(TypedDict, total=False):
    """What `from_pretrained` takes to split a model: fields of `PlacementRequest`, or tp_plan.

    A device map may also be the device of the whole model. tp_plan="auto" shares a model among the
    processes of torchrun: each calls `from_pretrained`, and then the model with the same input.
    """

    device_map: object
    max_memory: Limits | None
    offload_folder: str | os.PathLike[str] | None
    tp_plan: str | None


def placement_request(
    device: str | torch.device | int, placing: Placing
) -> str | torch.device | int | PlacementRequest:
    """The device of the whole model, or how it is to be split."""
    if unknown := placing.keys() - Placing.__annotations__.keys():
        raise TypeError(f"from_pretrained does not support {', '.join(sorted(unknown))}")
    asked: dict[str, Any] = {name: value for name, value in placing.items() if value is not None}
    if not asked:
        return device
    if device != "auto":
        raise RequestError(f"device and {next(iter(asked))} contradict each other")
    device_map = asked.get("device_map", "auto")
    if isinstance(device_map, Mapping) and set(device_map) == {""} and device_map[""] != DISK:
        device_map = device_map[""]
    if asked.keys() == {"device_map"} and isinstance(device_map, str | torch.device | int):
        return device_map if device_map != "auto" else PlacementRequest()
    return PlacementRequest(**asked)


class Part(NamedTuple):
    """Neighboring modules on one device."""

    modules: str
    device: str
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where everything goes.

    Attributes:
        main_device: as `PlacementRequest.main_device`.
        device_map: layer, embeddings, norm, head → device, in the order of the model.
        nbytes: the same → size of its weights in memory; tied weights count once.
        limits: device → bytes, None where nobody knows.
        offload_folder: as `PlacementRequest.offload_folder`.
    """

    main_device: torch.device
    device_map: Mapping[str, str]
    nbytes: Mapping[str, int]
    limits: Mapping[str, int | None]
    offload_folder: Path | None

    @property
    def is_split(self) -> bool:
        """Whether the main device is not all there is."""
        return {*self.device_map.values()} != {str(self.main_device)}

    @property
    def parts(self) -> list[Part]:
        """The modules in their order, neighbors on one device together."""
        parts = []
        for device, group in groupby(self.device_map, self.device_map.__getitem__):
            first, *rest = names = [*group]
            modules = f"{first} … {rest[-1]}" if rest else first
            parts.append(Part(modules, device, sum(self.nbytes[name] for name in names)))
        return parts

    @property
    def visiting_bytes(self) -> int:
        """Of the largest module that is brought to the main device when it is needed."""
        away = (DISK,) if self.main_device.type == "cpu" else (DISK, "cpu")
        sizes = (self.nbytes[name] for name, device in self.device_map.items() if device in away)
        return max(sizes, default=0)

    def bytes_on(self, device: str) -> int:
        """That the weights take there, those that visit it among them."""
        held = sum(self.nbytes[name] for name, there in self.device_map.items() if there == device)
        return held + (self.visiting_bytes if device == str(self.main_device) else 0)

    def device_of(self, weight: str) -> str:
        """Where a weight of the model is."""
        return self.device_map.get(unit_of(weight), str(self.main_device))

    def require(self) -> None:
        """Refuse what does not fit.

        Raises:
            ResourceError: with the sum.
        """
        for device, limit in self.limits.items():
            needed = self.bytes_on(device)
            if limit is None or needed <= limit:
                continue
            visiting = self.visiting_bytes if device == str(self.main_device) else 0
            stay, visit, allowed = (n / 1e9 for n in (needed - visiting, visiting, limit))
            raise ResourceError(
                f"{needed / 1e9:.2f} GB of weights ({stay:.2f} that stay + {visit:.2f} at a time)"
                f" do not fit on {device}, where they may take {allowed:.2f} GB",
                hint="allow more with max_memory, or use a smaller or quantized model",
            )


def place(model: nn.Module, nbytes: Mapping[str, int], request: PlacementRequest) -> Placement:
    """Decide where each module goes.

    Args:
        model: on the meta device; its weights are replaced.
        nbytes: weight → its size in memory; of tied weights one name is enough.
        request: what was asked for.

    Raises:
        RequestError: the device map names no modules of the model, leaves some out, or splits
            what belongs together.
        ResourceError: a device or accelerate is missing, or what is asked for does not fit.
    """
    _weigh(model, nbytes)
    if isinstance(request.device_map, Mapping):
        device_map = _checked_map(model, request.device_map)
        limits = {device: _free(device) for device in {*device_map.values()} - {DISK}}
        limits |= request.limits if request.max_memory is not None else {}
    else:
        limits = request.limits
        device_map = _inferred_map(model, limits)
    folder = None if request.offload_folder is None else Path(request.offload_folder)
    names = dict(model.named_parameters(remove_duplicate=False))
    device_map = {unit_of(name): device_map[_owner(name, device_map)] for name in names}
    sizes = dict.fromkeys(device_map, 0)
    for name, parameter in model.named_parameters():
        sizes[unit_of(name)] += parameter.nbytes
    placement = Placement(
        main_device=request.main_device,
        device_map=device_map,
        nbytes=sizes,
        limits=limits,
        offload_folder=folder,
    )
    placement.require()
    return placement


def _weigh(model: nn.Module, nbytes: Mapping[str, int]) -> None:
    """Give each weight the size that it will have: accelerate knows no other way to be told."""
    weighed: dict[nn.Parameter, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in nbytes:
            data = torch.empty(nbytes[name], dtype=torch.uint8, device="meta")
            weighed.setdefault(parameter, nn.Parameter(data, requires_grad=False))
    for name, parameter in [*model.named_parameters(remove_duplicate=False)]:
        path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(path), attribute, weighed.get(parameter, parameter))


def _inferred_map(model: nn.Module, limits: Mapping[str, int | None]) -> dict[str, str]:
    first, room = next(iter(limits.items()))
    if room is None or sum(parameter.nbytes for parameter in model.parameters()) <= room:
        return {"": first}
    infer = accelerate().infer_auto_device_map
    numbers = {device: _index(device) for device in limits}
    bare = nn.Module()  # of a model with a config it would ask for methods of transformers
    for name, child in model.named_children():
        bare.add_module(name, child)
    found = infer(
        bare,
        max_memory={numbers[device]: limit for device, limit in limits.items()},
        no_split_module_classes=[*WHOLE_MODULES],
        clean_result=False,
    )
    devices = {number: device for device, number in numbers.items()}
    return {name: devices.get(number, DISK) for name, number in found.items()}


def accelerate() -> Any:
    """The library.

    Raises:
        ResourceError: it is not installed.
    """
    try:
        import accelerate as library
    except ImportError as problem:
        message = "a model on several devices needs accelerate"
        raise ResourceError(message, hint="pip install 'llamacli[offload]'") from problem
    return library


def _checked_map(model: nn.Module, asked: Mapping[Any, object]) -> dict[str, str]:
    modules = [name for name, _ in model.named_modules()]
    if unknown := [str(name) for name in asked if name not in modules]:
        raise RequestError(f"device_map names modules that the model lacks: {first_five(unknown)}")
    if parts := [name for name in asked if _LAYER.match(name)]:
        raise RequestError(f"device_map must not split a layer: {first_five(parts)}")
    found = {name: _name(device, "device_map") for name, device in asked.items()}
    weights = dict(model.named_parameters(remove_duplicate=False))
    if missing := [name for name in weights if _owner(name, found) not in found]:
        raise RequestError(f"device_map leaves out {first_five(missing)}")
    homes: dict[nn.Parameter, str] = {}
    for name, parameter in weights.items():
        device = found[_owner(name, found)]
        if homes.setdefault(parameter, device) != device:
            raise RequestError(f"device_map must keep tied weights together: {printable(name)}")
    return found


def _owner(weight: str, modules: Mapping[str, object]) -> str:
    """The innermost of these modules that a weight is in; "" if it is in none."""
    path = weight
    while path and path not in modules:
        path = path.rpartition(".")[0]
    return path


def unit_of(weight: str) -> str:
    """The module that is brought as a whole when this weight is needed."""
    layer = _LAYER.match(weight)
    return layer[1] if layer else weight.rpartition(".")[0]


def _name(device: object, argument: str) -> str:
    """The name of a device that this machine has; a number is a GPU."""
    if device == DISK:
        return DISK
    if not isinstance(device, str | int | torch.device):
        raise RequestError(f"{argument}: {printable(repr(device))} is no device")
    kind = available_devices()[0]
    if str(device).isdecimal() and kind == "xpu":
        device = f"xpu:{device}"
    try:
        chosen = choose_device(device)
    except (RequestError, ResourceError) as problem:
        raise type(problem)(f"{argument}: {problem}", hint=problem.hint) from None
    if chosen.type in _NUMBERED and chosen.index is None:
        chosen = torch.device(chosen.type, 0)
    return str(chosen)


def _gpus_first(limit: tuple[str, int]) -> tuple[bool, int]:
    device = limit[0]
    return device == "cpu", int(device) if device.isdecimal() else 0


def _index(device: str) -> int | str:
    """A device as accelerate calls it."""
    index = torch.device(device).index
    return device if index is None else index


def _free(name: str) -> int | None:
    free = free_memory_bytes(torch.device(name))
    return None if free is None else int(free * _FREE_SHARE)
