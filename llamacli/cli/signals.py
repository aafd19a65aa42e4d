"""Signals end the program, and leave nothing behind.

A signal ends the process at once, with the right exit code, while nothing needs to be cleaned up:
before a command starts, and while it imports libraries (some swallow every exception). Within
`interruptible` it raises Interrupted instead, so that files and threads are put away; a second
signal does not wait for that.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

_Handler = Callable[[int, FrameType | None], None]
_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked the program to stop. SIGPIPE stands for a stdout that nobody reads."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum


def _end(signum: int, _: FrameType | None) -> None:
    if os.isatty(2):
        shown = b"" if os.environ.get("TERM") == "dumb" else _SHOW_CURSOR
        os.write(2, shown + b"\n")
    os._exit(128 + signum)


def _raise(signum: int, _: FrameType | None) -> None:
    end_at_once()
    raise Interrupted(signum)


def end_at_once() -> None:
    """From here on a signal ends the process, unless it is ignored (nohup)."""
    for signum in _SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _end)


@contextmanager
def _replaced(old: _Handler, new: _Handler) -> Iterator[None]:
    caught = [signum for signum in _SIGNALS if signal.getsignal(signum) is old]
    try:
        for signum in caught:
            signal.signal(signum, new)
        yield
    finally:
        for signum in caught:
            signal.signal(signum, old)


def interruptible() -> AbstractContextManager[None]:
    """Within it a signal raises Interrupted."""
    return _replaced(_end, _raise)


def uninterruptible() -> AbstractContextManager[None]:
    """Within `interruptible`, a part where a signal ends the process at once again."""
    return _replaced(_raise, _end)
