"""What calling a tokenizer gives: a mapping of names to lists or tensors."""

from collections.abc import Sequence
from typing import Any

from llamacli.errors import RequestError


class BatchEncoding(dict[str, Any]):
    """`input_ids`, `attention_mask`, …: as keys, as attributes, and as `**inputs` of a model."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the encoding has no {name}") from None

    def to(self, device: Any) -> "BatchEncoding":
        """The same on another device.

        Raises:
            RequestError: these are lists.
        """
        if any(isinstance(values, list) for values in self.values()):
            raise RequestError('lists are on no device: add return_tensors="pt"')
        return BatchEncoding({name: values.to(device) for name, values in self.items()})


def as_tensors(encoding: BatchEncoding) -> BatchEncoding:
    """Each list of rows as a tensor (B, T), int64.

    Raises:
        RequestError: the rows differ in length.
    """
    import torch

    if len({len(row) for row in encoding["input_ids"]}) > 1:
        message = "rows of different lengths make no tensor"
        raise RequestError(message, hint="add padding=True, and truncation=True where it is wanted")
    tensors = {name: torch.tensor(rows, dtype=torch.long) for name, rows in encoding.items()}
    return BatchEncoding(tensors)


def plain_ids(ids: Any) -> Sequence[int]:
    """Token ids as Python numbers: a sequence, an array or tensor (T,), or one id alone.

    Raises:
        RequestError: several rows.
    """
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(ids, int):
        return [ids]
    if any(isinstance(row, list) for row in ids):
        raise RequestError("decode takes one row of ids, batch_decode several")
    return ids  # type: ignore[no-any-return]
