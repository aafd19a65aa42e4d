"""Cut a stream of text exactly before the first stop string, however the text arrives."""

from collections.abc import Sequence


class StopMatcher:
    """Passes text on, and holds back only what may be the beginning of a stop string.

    The stop string that is complete first ends the text, and of two that end together the longer
    one: so the result does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.matched: str | None = None

    def push(self, piece: str) -> str:
        """The text that is now known to stand before any stop string."""
        text = self._held + piece
        found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops]
        found = [match for match in found if match[0] >= -match[1]]
        if found:
            end, length, self.matched = min(found)
            self._held = ""
            return text[: end + length]
        cut = len(text) - self._overlap(text)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """The text held back, at the end of the stream."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0
