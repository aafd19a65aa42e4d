"""A command whose options are the fields of a dataclass: each is written down once."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import typer

Options = TypeVar("Options")


def takes_options(
    body: Callable[[typer.Context, Options], None], options: type[Options]
) -> Callable[..., None]:
    """The function that typer asks for, with one parameter for each field.

    Args:
        body: what the command does; its docstring is the command's help.
        options: a dataclass whose fields are annotated for typer and have defaults.
    """

    def command(ctx: typer.Context, **values: Any) -> None:
        body(ctx, options(**values))

    keyword = inspect.Parameter.KEYWORD_ONLY
    fields = [
        inspect.Parameter(field.name, keyword, default=field.default, annotation=field.type)
        for field in dataclasses.fields(options)  # type: ignore[arg-type]
    ]
    context = inspect.Parameter("ctx", keyword, annotation=typer.Context)
    command.__signature__ = inspect.Signature([context, *fields])  # type: ignore[attr-defined]
    command.__doc__ = body.__doc__
    return command
