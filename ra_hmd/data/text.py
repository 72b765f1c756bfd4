"""Normalisation of captions, and neutralisation of control tokens in them."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

from ra_hmd.data.unicode_folding import fold_caption

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TextPolicy = Literal["single_line", "strip", "raw"]
TEXT_POLICIES = get_args(TextPolicy)

_SURROGATES = re.compile("[\ud800-\udfff]")
_BLANKS = re.compile(r"\s+")
_LINE_BREAK = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]")
_UNSEEN = ("Mn", "Me", "Cc", "Cf")


def well_formed(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode, by U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def normalise(text: str, policy: TextPolicy = "single_line") -> str:
    """Normalise a caption. The function is idempotent.

    Args:
        text: The caption.
        policy: `raw` changes nothing, `strip` removes outer blanks, `single_line` also replaces each line break and the
            blanks around it by one blank.
    """
    if policy == "raw":
        return text
    if policy == "single_line":
        # Whole runs of blanks: one pattern for "blanks around a break" takes quadratic time on a run without a break.
        text = _BLANKS.sub(lambda blanks: " " if _LINE_BREAK.search(blanks[0]) else blanks[0], text)
    return text.strip()


class PlainText:
    """Function that breaks up control tokens in captions: `</s>` becomes `< /s >`, other text is unchanged.

    The tokenizer's own `split_special_tokens` does not suffice, since a SentencePiece unigram vocabulary has the
    control tokens among its pieces.

    Args:
        tokenizer: Tokenizer whose special tokens are the control tokens.
        markup: Further control strings.
        fold: Fold the text first (`fold_caption`), so that no control token is left that folding makes.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", markup: Iterable[str] = (), *, fold: bool = False) -> None:
        self._fold = fold
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        found = {_folded(text.strip())[0] for text in (*special, *tokenizer.all_special_tokens, *markup)}
        # Longest first, since the first matching alternative counts. One character cannot be split; some tokenizers pad
        # with "!".
        tokens = sorted((text for text in found if len(text) > 1), key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(map(re.escape, tokens)) or "(?!)")

    def __call__(self, text: str) -> str:
        """Insert blanks after the first and before the last character of each control token. Idempotent."""
        if self._fold:
            text = fold_caption(text)
        while True:
            folded, places = _folded(text)
            ends = [(places[match.start()], places[match.end() - 1]) for match in self._pattern.finditer(folded)]
            cuts = {cut for first, last in ends if first < last for cut in (first + 1, last)}
            if not cuts:
                return text
            edges = [0, *sorted(cuts), len(text)]
            text = " ".join(text[start:end] for start, end in pairwise(edges))


def _folded(text: str) -> tuple[str, Sequence[int]]:
    """Apply the strongest normalisation that tokenizers use, and return the place in `text` of each character.

    The result is in lower case, with wide and accented letters as plain ones and without invisible characters.
    """
    if text.isascii() and text.isprintable():
        return text.lower(), range(len(text))
    pairs = [
        (one, place)
        for place, letter in enumerate(text)
        for one in unicodedata.normalize("NFKD", letter).casefold()
        if one.isspace() or unicodedata.category(one) not in _UNSEEN
    ]
    return "".join(one for one, _ in pairs), [place for _, place in pairs]
