"""A SentencePiece model as one of the tokenizers library, as transformers 4 converts it."""

from typing import TYPE_CHECKING

from llamacli.errors import TokenizerError
from llamacli.tokenizer_bytes import BLANK

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer


def converted(
    model: "SentencePieceProcessor", *, legacy: bool, add_prefix_space: bool
) -> "Tokenizer":
    """The same vocabulary with the rules for blanks that transformers gives it.

    With `legacy=False` a text that begins with a blank gets no other before it, so that one blank
    is lost: LlamaTokenizer keeps it.

    Raises:
        TokenizerError: the model is not BPE.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    ids = range(model.vocab_size())
    vocab = {model.id_to_piece(token_id): token_id for token_id in ids}
    unknown = model.id_to_piece(model.unk_id())
    bpe = models.BPE(vocab, _merges(model), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    if legacy:
        prefix = [normalizers.Prepend(BLANK)] if add_prefix_space else []
        tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", BLANK)])
    else:
        scheme = "first" if add_prefix_space else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(" ", left=1)] if add_prefix_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = [i for i in ids if model.is_control(i) or model.is_unknown(i)]
    tokenizer.add_special_tokens(
        [AddedToken(model.id_to_piece(i), normalized=False, special=True) for i in special]
    )
    return tokenizer


def _merges(model: "SentencePieceProcessor") -> list[tuple[str, str]]:
    """Every way to cut a piece in two, the best score first, then the longest beginning."""
    plain = [
        token_id
        for token_id in range(model.vocab_size())
        if not (model.is_control(token_id) or model.is_unknown(token_id) or model.is_byte(token_id))
    ]
    scores = {model.id_to_piece(token_id): model.get_score(token_id) for token_id in plain}
    if any(score != int(score) for score in scores.values()):  # these are log-probabilities
        raise TokenizerError("a SentencePiece model must be BPE to become a fast tokenizer")
    merges = [
        (-score, -cut, piece)
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(piece[:-minus], piece[-minus:]) for _, minus, piece in sorted(merges)]
