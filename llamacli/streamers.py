"""TextStreamer: writes the text of `generate` to stdout while it comes."""

import sys

from torch import Tensor

from llamacli.errors import RequestError
from llamacli.stream_decoder import StreamDecoder
from llamacli.tokenizer import Tokenizer


class TextStreamer:
    """Is given to `generate` as its `streamer`.

    Args:
        tokenizer: of the model.
        skip_prompt: do not write the prompt.
        skip_special_tokens: do not write special tokens.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_prompt: bool = False, skip_special_tokens: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_prompt, self._skip_special_tokens = skip_prompt, skip_special_tokens
        self._decoder: StreamDecoder | None = None  # None until the prompt comes

    def put(self, value: Tensor) -> None:
        """(1, T) prompt ids, then (1,) new ids.

        Raises:
            RequestError: several rows.
        """
        if value.dim() > 1 and len(value) > 1:
            raise RequestError(f"a streamer writes one row, not {len(value)}")
        if self._decoder is None:
            skip = self._skip_special_tokens
            self._decoder = StreamDecoder(self._tokenizer, skip_special_tokens=skip)
            if self._skip_prompt:
                return
        text = "".join(map(self._decoder.push, value.flatten().tolist()))
        self.on_finalized_text(text)

    def end(self) -> None:
        """The last id has been given: write what is held back, and end the line."""
        text = "" if self._decoder is None else self._decoder.flush()
        self._decoder = None
        self.on_finalized_text(text, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write a piece of text; a subclass may do something else with it."""
        sys.stdout.write(text + "\n" * stream_end)
        sys.stdout.flush()
