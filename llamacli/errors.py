"""Everything that can go wrong, as one tree.

    LlamacliError
    ├── RequestError              what the user asked for makes no sense
    ├── ArtifactError             a file of the model is bad
    │   ├── ConfigError               config.json, generation_config.json
    │   ├── CheckpointError           weights
    │   ├── TokenizerError            tokenizer.model, tokenizer.json
    │   └── TemplateError             chat template
    ├── AuthenticationError       the hub wants a token or an accepted license
    ├── NetworkError              the hub cannot be reached; a retry may help
    ├── NotFoundError             no such repository, revision, file or folder
    ├── LocalIOError              disk full, permission, output exists
    └── ResourceError             memory, device or dtype that this machine lacks

A message is one line that says what, where, expected and got. A hint is a command or an action.
The command line alone turns a class into an exit code.
"""

from collections.abc import Collection, Iterable

_PRINTABLE_LIMIT = 120


class LlamacliError(Exception):
    """Root of all errors that llamacli raises on purpose."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class RequestError(LlamacliError):
    """The request contradicts itself, the model or its limits."""


class ArtifactError(LlamacliError):
    """A file of the model is missing parts, malformed or hostile."""


class ConfigError(ArtifactError):
    """config.json or generation_config.json cannot be used."""


class CheckpointError(ArtifactError):
    """The weights cannot be used."""


class TokenizerError(ArtifactError):
    """The tokenizer files cannot be used."""


class TemplateError(ArtifactError):
    """The chat template cannot be rendered."""


class AuthenticationError(LlamacliError):
    """A token is missing, refused, or lacks access to a gated repository."""


class NetworkError(LlamacliError):
    """The hub did not answer, or not as a hub does."""


class NotFoundError(LlamacliError):
    """A repository, revision, file or folder does not exist."""


class LocalIOError(LlamacliError):
    """The local disk refused to read or write."""


class ResourceError(LlamacliError):
    """This machine lacks the memory, device or dtype asked for."""


def printable(text: object) -> str:
    """Text from a file, safe to show: control characters escaped, long text cut."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
    return shown if len(shown) <= _PRINTABLE_LIMIT else shown[: _PRINTABLE_LIMIT - 1] + "…"


def first_five(items: Iterable[str]) -> str:
    """Names from files, short enough for a message."""
    shown = [printable(item) for item in items]
    rest = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return ", ".join(shown[:5]) + rest


def check_choice(name: str, value: object, known: Collection[object]) -> None:
    """Refuse a value that is none of those that are known.

    Raises:
        RequestError: it is not.
    """
    if value not in known:
        listed = ", ".join(map(str, known))
        raise RequestError(f"{name} must be one of {listed}, got {printable(repr(value))}")
