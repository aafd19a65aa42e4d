"""The options of `run --task`."""

from pathlib import Path
from typing import Annotated

from llamacli.cli.choices import AggregationStrategy, InputFormat, Task
from llamacli.cli.options import option

_TASK = "Other tasks"

TaskOption = Annotated[Task, option(_TASK, "--task", help="What to do with the texts.")]
InputFormatOption = Annotated[
    InputFormat | None,
    option(
        _TASK,
        "--format",
        help="How the texts come: JSON objects, CSV or plain lines.",
        show_default="told from the input",
    ),
]
ColumnOption = Annotated[
    str | None,
    option(
        _TASK,
        "--column",
        metavar="NAMES",
        help="Keys of JSON or columns of CSV that hold them.",
        show_default="text, or question,context",
    ),
]
AggregationStrategyOption = Annotated[
    AggregationStrategy | None,
    option(_TASK, "--aggregation-strategy", help="Join tokens to entities.", show_default="none"),
]
OutputOption = Annotated[
    Path | None,
    option(
        _TASK,
        "--output",
        metavar="FILE",
        help="Write the results to a file.",
        show_default="stdout",
    ),
]
