"""What a batch cost: seconds and tokens of prefill and decode."""

from dataclasses import dataclass


@dataclass(slots=True)
class Timings:
    """Where the time of one batch went, in seconds, and how many tokens it took."""

    prefill_s: float = 0.0
    time_to_first_token_s: float = 0.0  # prefill and the first choice
    decode_s: float = 0.0
    prompt_tokens: int = 0
    decoded_tokens: int = 0  # by decode steps: the first token of each row is the prefill's
    drafted_tokens: int = 0  # checked in decode steps
    accepted_tokens: int = 0  # drafted tokens that saved a decode step

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens of all rows per second, without the first of each row."""
        return self.decoded_tokens / self.decode_s if self.decode_s else 0.0
