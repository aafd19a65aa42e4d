"""Terminal: everything that a command reads from and writes to the world.

stdout is the product: exact UTF-8 bytes in a pipe, whatever the locale. On a terminal, where text
could act, control characters are made visible. stderr is the conversation: notes, status, errors.
"""

import codecs
import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import BinaryIO, Literal

from llamacli.cli import signals
from llamacli.errors import LocalIOError, RequestError

MAX_INPUT_BYTES = 64_000_000

# What moves the cursor, talks to the terminal, reorders or hides text: C0 but \t and \n, DEL, C1,
# bidirectional controls, line separators, invisible characters, tags, lone surrogates.
# The joiners U+200C and U+200D stay: emoji, Persian and Indic scripts are written with them.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)
_ERASE_LINE = "\r\x1b[K"


class Color(StrEnum):
    """When to write in color."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def visible(text: str) -> str:
    """The text with its control and invisible characters as escapes; \\n and \\t stay."""
    return _UNSAFE.sub(lambda match: ascii(match[0])[1:-1], text)


class Terminal:
    """Three byte streams and what is known about them; tests hand in their own.

    Attributes:
        quiet: notes and status are dropped.
        debug: errors come with a traceback, libraries may print.
        color: when `write_styled` writes in color.
        print_above: writes lines to stderr while a progress bar is shown.
    """

    def __init__(
        self, stdin: BinaryIO, stdout: BinaryIO, stderr: BinaryIO, environ: Mapping[str, str]
    ) -> None:
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.stdin_is_tty = stdin.isatty()
        self.stdout_is_tty = stdout.isatty()
        self.stderr_is_tty = stderr.isatty()
        self.environ = environ
        self.quiet = False
        self.debug = False
        self.color = Color.AUTO
        self.print_above: Callable[[str], None] | None = None
        self._line_is_open = False
        self._status_is_shown = False

    @classmethod
    def of_process(cls) -> "Terminal":
        """The terminal of this process. A closed stdin is empty, a closed stdout fails."""
        stdin = sys.stdin.buffer if sys.stdin else _null("rb", os.O_RDONLY)
        stdout = sys.stdout.buffer if sys.stdout else _null("wb", os.O_RDONLY)  # a write fails
        stderr = sys.stderr.buffer if sys.stderr else _null("wb", os.O_WRONLY)
        return cls(stdin, stdout, stderr, os.environ)

    @property
    def uses_color(self) -> bool:
        """Whether stdout gets color: --color, NO_COLOR, FORCE_COLOR and TERM in this order."""
        if self.color is not Color.AUTO:
            return self.color is Color.ALWAYS
        if self.environ.get("NO_COLOR"):
            return False
        if self.environ.get("FORCE_COLOR"):
            return True
        return self.stdout_is_tty and self.environ.get("TERM") != "dumb"

    # ------------------------------------------------------------------ stdin

    def read_stdin(self, limit: int = MAX_INPUT_BYTES) -> bytes:
        """All of stdin.

        Raises:
            RequestError: more than `limit` bytes.
            LocalIOError: stdin cannot be read.
        """
        try:
            data = self.stdin.read(limit + 1)
        except OSError as error:
            raise LocalIOError(f"cannot read stdin: {error.strerror}") from error
        if len(data) > limit:
            raise RequestError(f"stdin holds more than {limit // 1_000_000} MB")
        return data

    def decode(self, data: bytes, source: str) -> str:
        """Bytes from outside as text: a byte order mark goes, bad bytes become U+FFFD with a note.

        For an argument of the command line the bytes are `os.fsencode(argument)`.

        Raises:
            RequestError: UTF-16.
        """
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            hint = "convert it with: iconv -f UTF-16 -t UTF-8"
            raise RequestError(f"{source} is UTF-16, expected UTF-8", hint=hint)
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self.note(f"{source} is not UTF-8 at byte {error.start}; bad bytes became U+FFFD")
            return data.decode("utf-8-sig", "replace")

    # ----------------------------------------------------------------- stdout

    def write(self, text: str) -> None:
        """Write text to stdout, at once.

        Raises:
            LocalIOError: stdout cannot be written.
            Interrupted: nobody reads it.
        """
        self._write(text, visible(text) if self.stdout_is_tty else text)

    def write_styled(self, text: str, style: str) -> None:
        """Write text to stdout, in color where it is wanted; style "1;32" is bold green."""
        if self.uses_color:
            shown = visible(text) if self.stdout_is_tty else text
            self._write(text, f"\x1b[{style}m{shown}\x1b[0m")
        else:
            self.write(text)

    def write_picture(self, text: str) -> None:
        """Write text whose escape codes are llamacli's own, as it is."""
        self._write(text, text)

    @property
    def stdout_size(self) -> tuple[int, int | None]:
        """Columns and lines of stdout; without a terminal 80, or COLUMNS, and no end of lines."""
        size = _terminal_size(self.stdout)
        asked = self.environ.get("COLUMNS", "")
        columns = int(asked) if asked.isdecimal() else 0
        return columns or (size and size.columns) or 80, (size and size.lines) or None

    def _write(self, text: str, shown: str) -> None:
        self._erase_status()
        if text:  # before it is written: a signal may come as soon as it can be seen
            self._line_is_open = not text.endswith("\n")
        try:
            self.stdout.write(_utf8(shown))
            self.stdout.flush()
        except BrokenPipeError as error:
            raise signals.Interrupted(signal.SIGPIPE) from error
        except OSError as error:
            raise LocalIOError(f"cannot write to stdout: {error.strerror}") from error

    @property
    def stdout_columns(self) -> int:
        """Where a table must be folded: the width of a terminal; a pipe has room for all."""
        return self.stdout_size[0] if self.stdout_is_tty else 10_000

    # ----------------------------------------------------------------- stderr

    @property
    def can_redraw(self) -> bool:
        """Whether stderr can show, and should, what changes in place: a status, a progress bar."""
        return self.stderr_is_tty and not self.quiet and self.environ.get("TERM") != "dumb"

    def note(self, text: str) -> None:
        """Tell in one line what the user may want to know."""
        if not self.quiet:
            self.tell(f"llamacli: note: {_one_line(text)}")

    def error(self, text: str, hint: str | None = None) -> None:
        """Tell in one line what went wrong, and in another what to do about it."""
        self.tell(f"llamacli: error: {_one_line(text)}")
        if hint:
            self.tell(f"hint: {_one_line(hint)}")

    def tell(self, text: str) -> None:
        """Write lines to stderr; a stderr that cannot be written is no reason to stop."""
        if self.print_above is not None:
            self.print_above(visible(text))
            return
        if self.stderr_is_tty:
            self.end_line()
        self.write_stderr(f"{visible(text)}\n")

    def write_stderr(self, text: str) -> None:
        """Write text as it is; a stderr that cannot be written is no reason to stop."""
        with suppress(OSError):
            self.stderr.write(text.encode("utf-8", "replace"))
            self.stderr.flush()

    def status(self, text: str) -> None:
        """Say on a terminal what is going on, until the next output; elsewhere say nothing."""
        if self.can_redraw:
            size = _terminal_size(self.stderr)
            columns = (size and size.columns) or 80
            self.write_stderr(f"{_ERASE_LINE}{_one_line(text)[: columns - 1]}")
            self._status_is_shown = True

    def end_line(self) -> None:
        """On a terminal, go to the start of an empty line."""
        self._erase_status()
        if self.stdout_is_tty and self._line_is_open:
            with suppress(LocalIOError, signals.Interrupted):
                self.write("\n")

    @contextmanager
    def importing(self) -> Iterator[None]:
        """Within it a command imports what is heavy: a signal ends it at once, without traceback.

        From then on what llamacli's modules log is shown as notes, and other libraries are silent.
        """
        from llamacli.cli.notes import listen

        listen(self)
        with signals.uninterruptible(), _without_collector():
            yield

    def _erase_status(self) -> None:
        if self._status_is_shown:
            self._status_is_shown = False
            self.write_stderr(_ERASE_LINE)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Modules are no garbage: looking for some among them takes a tenth of `import torch`."""
    is_first = "torch" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if is_first:
            gc.freeze()
        gc.enable()


def _utf8(text: str) -> bytes:
    """Its bytes; those of a path need not be UTF-8, and are what they are on the disk."""
    with suppress(UnicodeEncodeError):
        return text.encode("utf-8", "surrogateescape")
    return text.encode("utf-8", "replace")


def _terminal_size(stream: BinaryIO) -> os.terminal_size | None:
    with suppress(OSError):
        return os.get_terminal_size(stream.fileno())
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _null(mode: Literal["rb", "wb"], access: int) -> BinaryIO:
    """/dev/null as a closed stream, so that no other file gets its descriptor."""
    return os.fdopen(os.open(os.devnull, access), mode)
