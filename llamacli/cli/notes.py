"""What libraries have to say: llamacli's own modules in notes, the others not at all."""

import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamacli.cli.console import Terminal


class _NoteHandler(logging.Handler):
    """Shows each warning of the `llamacli` loggers as one note."""

    def __init__(self, terminal: "Terminal") -> None:
        super().__init__(logging.WARNING)
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        self._terminal.note(record.getMessage())


def listen(terminal: "Terminal") -> None:
    """Turn llamacli's log into notes; with --debug, let other libraries speak for themselves.

    To be called before they are imported: some read the environment at that time.
    """
    logging.getLogger("llamacli").handlers = [_NoteHandler(terminal)]
    if terminal.debug:
        return
    logging.lastResort = logging.NullHandler()  # would print warnings that no handler takes
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
