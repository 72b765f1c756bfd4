"""Vocabularies of SentencePiece's kind for tiny models: `▁` stands for a blank, what is unknown is spelled in bytes."""

import json
from typing import Any

from ra_hmd.models.families.corpus import corpus

_PIECES = 700  # learned pieces of a vocabulary, at most


def learn_pieces(control: list[str], *frames: str, prefix: bool = True) -> tuple[dict[str, int], list[Any]]:
    """Learn byte-pair merges on the demo's own sentences; the same at every call.

    Args:
        control: Control tokens, which have the first ids.
        frames: Texts of a chat format, to learn from too.
        prefix: Whether a text begins with a blank, as Llama's tokenizer has it, and Gemma's has not.

    Returns:
        Piece → id, and the merges in order, which are pairs (transformers annotates them as strings).
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    blanks = pre_tokenizers.Metaspace(prepend_scheme="always" if prefix else "never")
    # As in SentencePiece no piece holds both letters and punctuation: `Yes.` begins with the token of `Yes`.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([blanks, pre_tokenizers.Punctuation("isolated")])
    sentences = corpus(*frames)
    letters = sorted({letter for sentence in sentences for letter in sentence.replace(" ", "▁")})
    trainer = trainers.BpeTrainer(vocab_size=_PIECES, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    merges: list[Any] = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    pieces = [*control, *[f"<0x{byte:02X}>" for byte in range(256)], *letters, *map("".join, merges)]
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}, merges
