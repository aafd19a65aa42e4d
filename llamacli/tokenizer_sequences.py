"""What comes around a sequence of ids: the methods that the documentation of transformers promises.

The results are those of LlamaTokenizer in transformers 4.53.
"""

from abc import ABC
from collections.abc import Sequence
from dataclasses import replace

from llamacli.errors import TokenizerError
from llamacli.tokenizer_config import TokenizerConfig


class SequenceBuilder(ABC):
    """BOS before and EOS after each sequence, where the config wants them.

    Attributes:
        config: the settings, with the defaults filled in.
        all_special_ids: the ids of the special tokens.
        bos_token_id, eos_token_id: None where the vocabulary has none.
    """

    config: TokenizerConfig
    all_special_ids: list[int]
    bos_token_id: int | None
    eos_token_id: int | None

    @property
    def add_bos_token(self) -> bool:
        """Whether BOS comes before every sequence."""
        return bool(self.config.add_bos_token)

    @add_bos_token.setter
    def add_bos_token(self, value: bool) -> None:
        self.config = replace(self.config, add_bos_token=value)
        self.update_post_processor()

    @property
    def add_eos_token(self) -> bool:
        """Whether EOS comes after every sequence."""
        return bool(self.config.add_eos_token)

    @add_eos_token.setter
    def add_eos_token(self, value: bool) -> None:
        self.config = replace(self.config, add_eos_token=value)
        self.update_post_processor()

    def update_post_processor(self) -> None:
        """Make what comes around a sequence follow `add_bos_token` and `add_eos_token`.

        Raises:
            TokenizerError: a token is to be added that the vocabulary does not have.
        """
        self._prefix = _ids_to_add("bos_token", self.add_bos_token, self.bos_token_id)
        self._suffix = _ids_to_add("eos_token", self.add_eos_token, self.eos_token_id)

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """BOS and EOS around one sequence, or around each of two."""
        sequences = [token_ids_0] if token_ids_1 is None else [token_ids_0, token_ids_1]
        return [i for ids in sequences for i in (*self._prefix, *ids, *self._suffix)]

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for a special token, 0 for another, of what `build_inputs_with_special_tokens` gives.

        With `already_has_special_tokens` the sequence, which then comes alone, is already built.

        Raises:
            ValueError: a built sequence and a second one.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise ValueError("a sequence that already has special tokens comes alone")
            special = set(self.all_special_ids)
            return [int(token_id in special) for token_id in token_ids_0]
        before, after = [1] * len(self._prefix), [1] * len(self._suffix)
        sequences = [token_ids_0] if token_ids_1 is None else [token_ids_0, token_ids_1]
        return [flag for ids in sequences for flag in (*before, *[0] * len(ids), *after)]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """0 for each token of the first sequence, 1 for each of the second, BOS and EOS counted."""
        first = len(self.build_inputs_with_special_tokens(token_ids_0))
        both = len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))
        return [0] * first + [1] * (both - first)


def _ids_to_add(name: str, wanted: bool, token_id: int | None) -> list[int]:
    if not wanted:
        return []
    if token_id is None:
        raise TokenizerError(f"add_{name} is true, but the tokenizer has no {name}")
    return [token_id]
