"""What the exit code of every command means."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Codes above 128 are 128 + the signal's number, as shells have it."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> "ExitCode":
        """Make a member of its code and its meaning."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    DONE = 0, "done"
    BUG = 1, "a bug in llamacli"
    USAGE = 2, "usage"
    BAD_ARTIFACT = 3, "bad artifact: weights, config, tokenizer or template"
    AUTHENTICATION = 4, "authentication"
    NETWORK = 5, "network"
    NOT_FOUND = 6, "not found"
    LOCAL_IO = 7, "local input or output"
    RESOURCES = 8, "resources: memory or device"
    SLOWER = 9, "slower than bench --fail-under allows"
    HANGUP = 129, "terminal closed"
    INTERRUPTED = 130, "interrupted"
    BROKEN_PIPE = 141, "broken pipe"
    TERMINATED = 143, "terminated"
