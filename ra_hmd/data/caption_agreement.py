"""Agreement of a caption with the words that are read from its picture."""

from difflib import SequenceMatcher

import regex

from ra_hmd.data.unicode_folding import fold_caption

_LONGEST = 600
"""Most letters that are compared: the time grows with their square."""
_NO_LETTER = regex.compile(r"[^\p{L}\p{M}\p{N}]+")


def caption_agreement(caption: str, read: str) -> float:
    """Share of the letters that two captions have in common, in their order: 1 for the same letters, 0 for none.

    Case, blanks, punctuation and disguises that `fold_caption` undoes make no difference. Two captions without letters
    agree. Symmetric.
    """
    one, other = sorted(_NO_LETTER.sub("", fold_caption(text).casefold())[:_LONGEST] for text in (caption, read))
    return SequenceMatcher(None, one, other, autojunk=False).ratio()
