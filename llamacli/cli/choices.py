"""The values of options that have a few."""

from enum import StrEnum


class Backend(StrEnum):
    """What computes."""

    TORCH = "torch"
    FLAX = "flax"


class Dtype(StrEnum):
    """Number format of the weights in memory."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Task(StrEnum):
    """What is done with the texts."""

    TEXT_GENERATION = "text-generation"
    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"
    QUESTION_ANSWERING = "question-answering"


class InputFormat(StrEnum):
    """How the inputs of a task are written."""

    JSON = "json"
    CSV = "csv"
    PIPE = "pipe"


class AggregationStrategy(StrEnum):
    """How tokens are joined to entities."""

    NONE = "none"
    SIMPLE = "simple"
    FIRST = "first"
    AVERAGE = "average"
    MAX = "max"


class Truncate(StrEnum):
    """Where a prompt that is too long loses tokens."""

    LEFT = "left"
    RIGHT = "right"
    MIDDLE = "middle"


class Quantize(StrEnum):
    """What weights become while they are read."""

    INT4 = "int4"
    INT8 = "int8"


class Activations(StrEnum):
    """What int4 layers multiply."""

    AUTO = "auto"
    INT8 = "int8"


class CacheImplementation(StrEnum):
    """How keys and values are kept."""

    DYNAMIC = "dynamic"
    STATIC = "static"


class AttnImplementation(StrEnum):
    """How attention is computed."""

    SDPA = "sdpa"
    EAGER = "eager"
    FLASH_ATTENTION_2 = "flash_attention_2"
