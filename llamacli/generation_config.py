"""generation_config.json, and how its defaults meet what the user asked for."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamacli.errors import ConfigError, NotFoundError, RequestError, printable
from llamacli.json_files import read_json_object
from llamacli.request import SamplingParams

logger = logging.getLogger(__name__)

# Meta's reference values (llama/generation.py), for models that name none.
META_DEFAULTS: Mapping[str, float] = {"temperature": 0.6, "top_p": 0.9}

# Keys of generation_config.json that are sampling parameters here under the same name.
# Lengths are left out: a model's max_length says nothing about what the user wants.
_SAMPLING_KEYS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """What a model's generation_config.json says.

    Attributes:
        eos_token_ids: ids that end a text.
        sampling: sampling parameters by name; empty when the model names none.
    """

    eos_token_ids: frozenset[int] = frozenset()
    sampling: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, folder: Path) -> "GenerationConfig":
        """Read generation_config.json; without one everything is left open.

        A bad file or value is logged and left out: the model itself still runs. (Llama 3.2 was
        once published with a generation_config.json that is not valid JSON.)
        """
        try:
            values = read_json_object(folder / "generation_config.json", error=ConfigError)
        except NotFoundError:
            return cls()
        except ConfigError as problem:
            logger.warning("generation_config.json is left out: %s", problem)
            return cls()
        return cls(eos_token_ids=_eos_token_ids(values), sampling=_sampling(values))

    def to_dict(self) -> dict[str, Any]:
        """The content of a generation_config.json that says the same."""
        values: dict[str, Any] = {}
        if self.eos_token_ids:
            values["eos_token_id"] = sorted(self.eos_token_ids)
        if self.sampling:
            greedy = self.sampling.get("temperature") == 0
            values |= {"do_sample": False} if greedy else {"do_sample": True, **self.sampling}
        return values

    def resolve(self, **asked: Any) -> tuple[SamplingParams, dict[str, str]]:
        """The final sampling parameters, and where each value came from.

        Args:
            asked: values that the user gave, None where they gave none. They win over the model's,
                which win over Meta's reference values.

        Returns:
            the parameters, and "flag", "model", "Meta's reference" or "default" by name.

        Raises:
            RequestError: a value outside its range.
        """
        given = {name: value for name, value in asked.items() if value is not None}
        model = self.sampling or META_DEFAULTS
        source = "generation_config.json" if self.sampling else "Meta's reference"
        params = SamplingParams(**{**model, **given})
        origins = dict.fromkeys(model, source) | dict.fromkeys(given, "user")
        return params, {
            name: origins.get(name, "default") for name in SamplingParams.__dataclass_fields__
        }


def _eos_token_ids(values: Mapping[str, object]) -> frozenset[int]:
    found = values.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    usable = [i for i in ids if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**24]
    if len(usable) < len(ids):
        shown = printable(found)
        logger.warning("generation_config.json: eos_token_id %s is left out", shown)
    return frozenset(usable)


def _sampling(values: Mapping[str, object]) -> dict[str, float]:
    """The usable sampling parameters; `do_sample: false` means greedy."""
    if values.get("do_sample") is False:
        return {"temperature": 0.0}
    usable: dict[str, Any] = {}
    for name in _SAMPLING_KEYS:
        if (value := values.get(name)) is None:
            continue
        try:
            SamplingParams(**{name: value})  # type: ignore[arg-type]
        except RequestError as problem:
            logger.warning("generation_config.json: %s is left out: %s", name, problem)
        else:
            usable[name] = value
    return usable
