"""The labels of a classifier, as config.json has them."""

from collections.abc import Mapping

from llamacli.errors import ConfigError, printable

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def labels_by_id(id2label: object, num_labels: object) -> dict[int, str]:
    """The name of each label; without names these are LABEL_0, LABEL_1, …, two by default.

    Args:
        id2label: ids, which JSON makes strings, to names; or None.
        num_labels: how many there are; None is for the names to say.

    Raises:
        ConfigError: the ids are not 0, 1, 2, …, or as many as `num_labels` says.
    """
    if id2label is None:
        count = 2 if num_labels is None else num_labels
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 2**20:
            shown = printable(repr(count))
            raise ConfigError(f"config: num_labels must be an integer from 1 to 2^20, got {shown}")
        return {index: f"LABEL_{index}" for index in range(count)}
    items = id2label.items() if isinstance(id2label, Mapping) else ()
    named = {str(key): str(label) for key, label in items}
    if not named or set(named) != {str(index) for index in range(len(named))}:
        shown = printable(repr(id2label))
        raise ConfigError(f"config: id2label must name the labels 0, 1, 2, …, got {shown}")
    if num_labels not in (None, len(named)):
        count = printable(repr(num_labels))
        raise ConfigError(f"config: id2label names {len(named)} labels, but num_labels is {count}")
    return {index: named[str(index)] for index in range(len(named))}
