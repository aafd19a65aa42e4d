"""Token ids in, text out: one token at a time, nothing held back but half a character."""

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llamacli.tokenizer_bytes import BLANK

if TYPE_CHECKING:
    from llamacli.tokenizer import Tokenizer

# SentencePiece shows every byte that belongs to no character; Python's own "replace" shows
# every maximal run of them once, as tokenizers does.
_EACH_BYTE = "llamacli-each-byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _replace_each_byte)


class StreamDecoder:
    """Turns ids into pieces of text whose concatenation is `tokenizer.decode` of all the ids.

    Args:
        tokenizer: gives the bytes of a token.
        skip_special_tokens: leave special tokens out of the text.
        continues: ids of the prompt. The pieces are then what `decode(prompt + ids)` adds to the
            prompt's text, so the first word keeps its blank.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        *,
        skip_special_tokens: bool = True,
        continues: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._blanks_to_drop = tokenizer.leading_blanks
        errors = "replace" if tokenizer.byte_level else _EACH_BYTE
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors)
        for token_id in continues:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """The text that is certain now that this token is known; often one word, at times none.

        Raises:
            TokenizerError: the id is outside the vocabulary.
        """
        shown = self._tokenizer.shown_bytes(token_id, self._skip_special_tokens)
        if not shown and not self._tokenizer.byte_level:
            return self.flush()  # for SentencePiece, a control piece ends a run of bytes
        if self._blanks_to_drop and shown:
            if self._tokenizer.id_to_token(token_id).startswith(BLANK):
                shown = shown[1:]
                self._blanks_to_drop -= 1
            if shown:
                self._blanks_to_drop = 0
        return self._utf8.decode(shown)

    def flush(self) -> str:
        """The end of the text: what half a character is shown as."""
        return self._utf8.decode(b"", final=True)
