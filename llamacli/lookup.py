"""What a text that repeats itself says next: drafts for speculative decoding without a model.

Prompt lookup decoding (https://github.com/apoorvumang/prompt-lookup-decoding): the text that
followed an earlier occurrence of the last tokens is a guess at what follows now. A model can check
many guessed tokens in one step (arXiv:2211.17192).
"""

from collections.abc import Sequence
from itertools import cycle, islice

_NGRAM = 3  # tokens; 2 drafts more often, and wrongly


class NgramLookup:
    """Drafts the continuation of one text from what was said before.

    An earlier occurrence of the last n-gram, the latest one, is followed for as long as each new
    token is the one that stands there. A token costs O(1), whatever the length of the text.

    Args:
        max_draft: tokens of the longest draft.
    """

    # A wrong draft costs time, watching a repetition does not: a draft is one token longer than the
    # repetition so far, so that it doubles with every step that goes well. After a wrong draft
    # the next one waits for a repetition that is longer by one, until a draft was right again.
    # A text that never follows its repetitions soon has no drafts at all.

    def __init__(self, max_draft: int) -> None:
        self._max_draft = max_draft
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram → index after its last occurrence
        self._length = 0  # of the text known so far
        self._source: int | None = None  # where the next token stood before
        self._repeated = 0  # tokens that were as foretold, up to now
        self._patience = 0  # how many it takes for a draft
        self._draft: list[int] = []

    def draft(self, token_ids: Sequence[int], limit: int) -> list[int]:
        """At most `limit` tokens that may follow; often none.

        Args:
            token_ids: the whole text; between calls it only grows.
            limit: tokens that there is room for.
        """
        if self._draft:
            said = token_ids[self._length : self._length + len(self._draft)]
            self._patience = 0 if list(said) == self._draft else self._patience + 1
        for index in range(self._length, len(token_ids)):
            self._follow(token_ids, index)
        self._length = len(token_ids)
        self._draft = self._continuation(token_ids, limit)
        return self._draft

    def _follow(self, token_ids: Sequence[int], index: int) -> None:
        """Move the source past one more token, or find another one."""
        end = index + 1
        ngram = tuple(token_ids[max(0, end - _NGRAM) : end])
        if self._source is not None and token_ids[self._source] == token_ids[index]:
            self._source += 1
            self._repeated += 1
        else:
            self._source = self._ends.get(ngram)
            self._repeated = 0
        self._ends[ngram] = end

    def _continuation(self, token_ids: Sequence[int], limit: int) -> list[int]:
        if self._source is None or self._repeated < self._patience:
            return []
        size = max(0, min(limit, self._max_draft, self._repeated + 1))
        # A source near the end is a loop: what follows it begins anew.
        return list(islice(cycle(token_ids[self._source : self._source + size]), size))
