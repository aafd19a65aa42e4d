"""What tokenizer_config.json and the files beside it say, and what kind of file a vocabulary is."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from llamacli.atomic import atomic_write
from llamacli.errors import NotFoundError, TokenizerError, printable
from llamacli.json_files import read_file, read_json_object
from llamacli.tokenizer_added import AddedToken, is_token

FileKind = Literal["sentencepiece", "tiktoken", "json"]

MAX_VOCABULARY_BYTES = 64_000_000
MAX_VOCAB_SIZE = 2**24
NO_LIMIT = 10**20  # a model_max_length from here on means in transformers that there is none
DOWNLOAD_HINT = "download the model again"

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_FLAGS = ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy")
_SIDES = ("padding_side", "truncation_side")
_TOKEN_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """The settings of a tokenizer under Hugging Face's names; None is what no file speaks of.

    `chat_template` is chat_template.jinja, else the (default) template of tokenizer_config.json.
    `added_tokens` are those of `added_tokens_decoder` and added_tokens.json.
    """

    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    add_prefix_space: bool | None = None
    legacy: bool | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    unk_token: str | None = None
    pad_token: str | None = None
    additional_special_tokens: tuple[str, ...] = ()
    added_tokens: Mapping[int, AddedToken] = field(default_factory=dict)
    chat_template: str | None = None
    tokenizer_class: str | None = None
    padding_side: str | None = None
    truncation_side: str | None = None
    model_max_length: int | None = None

    @classmethod
    def read(cls, folder: Path | str, **overrides: Any) -> Self:
        """Read tokenizer_config.json, special_tokens_map.json, added_tokens.json, the template.

        Args:
            folder: where they are; each may be missing.
            overrides: settings that overrule the files.

        Raises:
            TokenizerError: a value of the wrong type, an id twice; the key and value are named.
        """
        folder = Path(folder)
        # What tokenizer_config.json says comes first; transformers 4 wrote both files alike.
        found = _read_if_there(folder / "special_tokens_map.json")
        found |= _read_if_there(folder / "tokenizer_config.json")
        said: dict[str, Any] = {key: _flag(key, found.get(key)) for key in _FLAGS}
        said |= {key: _token(key, found.get(key)) for key in _NAMED_TOKENS}
        said["additional_special_tokens"] = tuple(_listed_tokens(found))
        said["added_tokens"] = _added_tokens(
            found.get("added_tokens_decoder"), _read_if_there(folder / "added_tokens.json")
        )
        said["chat_template"] = _chat_template(folder, found.get("chat_template"))
        said |= {key: _side(key, found.get(key)) for key in _SIDES}
        if isinstance(length := found.get("model_max_length"), int) and 0 < length < NO_LIMIT:
            said["model_max_length"] = int(length)
        if isinstance(found.get("tokenizer_class"), str):
            said["tokenizer_class"] = found["tokenizer_class"]
        return cls(**said | overrides)

    def filled(self, **defaults: Any) -> Self:
        """The same settings, with `defaults` where nothing was said."""
        silent = {key: value for key, value in defaults.items() if getattr(self, key) is None}
        return dataclasses.replace(self, **silent)

    def write(self, folder: Path) -> None:
        """Write tokenizer_config.json into a folder.

        Raises:
            LocalIOError: the disk refuses.
        """
        rest = ("chat_template", "model_max_length")
        keys = ("tokenizer_class", *_FLAGS, *_NAMED_TOKENS, *_SIDES, *rest)
        said = {key: value for key in keys if (value := getattr(self, key)) is not None}
        said["added_tokens_decoder"] = {
            str(token_id): dataclasses.asdict(token) | {"normalized": False, "single_word": False}
            for token_id, token in sorted(self.added_tokens.items())
        }
        if self.additional_special_tokens:
            said["additional_special_tokens"] = [*self.additional_special_tokens]
        # Otherwise transformers 4 removes blanks before punctuation.
        said["clean_up_tokenization_spaces"] = False
        text = json.dumps(said, indent=2) + "\n"
        with atomic_write(folder / "tokenizer_config.json") as path:
            path.write_text(text)


def file_kind(path: Path) -> FileKind:
    """What a vocabulary file holds, told by its first bytes: two formats share one name.

    Raises:
        NotFoundError: there is no such file.
        TokenizerError: empty, a git-LFS pointer, an HTML page, or of no known kind.
    """
    head = read_file(path, error=TokenizerError, max_bytes=MAX_VOCABULARY_BYTES)[:1024]
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return "json"
    if head.startswith(b"\n"):  # field 1 of a SentencePiece ModelProto
        return "sentencepiece"
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", head):
        return "tiktoken"
    if not head:
        found = "is empty"
    elif head.startswith(b"version https://git-lfs"):
        found = "is a git-LFS pointer, not the file itself"
    elif head.lstrip().startswith(b"<"):
        found = "is an HTML page"
    else:
        found = "is neither SentencePiece nor tiktoken nor JSON"
    raise TokenizerError(f"{printable(path)} {found}", hint=DOWNLOAD_HINT)


def _wrong(what: str, expected: str, got: object) -> TokenizerError:
    return TokenizerError(f"tokenizer: {what} must be {expected}, got {printable(repr(got))}")


def _read_if_there(path: Path) -> dict[str, object]:
    try:
        return read_json_object(path, error=TokenizerError)
    except NotFoundError:
        return {}


def _flag(key: str, value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise _wrong(key, "true or false", value)


def _side(key: str, value: object) -> str | None:
    if value is None or value in ("left", "right"):
        return value
    raise _wrong(key, "left or right", value)


def _token(key: str, value: object) -> str | None:
    """A token is written as text or as an object with its content."""
    content = value.get("content") if isinstance(value, Mapping) else value
    if value is None:
        return None
    if isinstance(content, str) and is_token(content):
        return content
    raise _wrong(key, "a token", value)


def _listed_tokens(settings: Mapping[str, object]) -> Iterable[str]:
    for key in _TOKEN_LISTS:
        value = settings.get(key)
        tokens = value.values() if isinstance(value, Mapping) else value or ()
        if not isinstance(tokens, Iterable) or isinstance(tokens, str):
            raise _wrong(key, "a list of tokens", value)
        yield from (token for token in (_token(key, t) for t in tokens) if token is not None)


def _added_tokens(decoder: object, by_content: Mapping[str, object]) -> dict[int, AddedToken]:
    """`added_tokens_decoder` has tokens by id, the older added_tokens.json has ids by token."""
    if not isinstance(decoder, Mapping | None):
        raise _wrong("added_tokens_decoder", "an object", decoder)
    added = {
        checked_id(key): AddedToken.from_entry(entry) for key, entry in (decoder or {}).items()
    }
    for content, value in by_content.items():
        token = AddedToken(content=content, special=False)
        known = added.setdefault(checked_id(value), token)
        if known.content != content:
            raise _wrong(f"token {value}", printable(repr(known.content)), content)
    return added


def checked_id(value: object) -> int:
    """A token id as JSON writes it: a number, or a key made of digits."""
    number = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,8}", value) else value
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < MAX_VOCAB_SIZE:
        return number
    raise _wrong("a token id", f"a number from 0 to {MAX_VOCAB_SIZE - 1:,}", value)


def _chat_template(folder: Path, value: object) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        data = read_file(path, error=TokenizerError, max_bytes=10_000_000)
        return data.decode("utf-8", errors="replace")
    if isinstance(value, list):  # transformers 4 has a list of named templates
        named = [t for t in value if isinstance(t, Mapping) and t.get("name") == "default"]
        value = named[0].get("template") if named else None
    if value is None or isinstance(value, str):
        return value
    raise _wrong("chat_template", "text or a list of named templates", value)
