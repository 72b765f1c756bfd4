"""What is done to a caption on its way from a data set's file into a record."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TextPolicy = Literal["single_line", "strip", "raw"]
TEXT_POLICIES = get_args(TextPolicy)

_SURROGATES = re.compile("[\ud800-\udfff]")
_BLANKS = re.compile(r"\s+")
_LINE_BREAK = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]")
_UNSEEN = ("Mn", "Me", "Cc", "Cf")


def well_formed(text: str) -> str:
    """`text` with halves of surrogate pairs, which no UTF-8 file can hold, replaced by U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def normalise(text: str, policy: TextPolicy = "single_line") -> str:
    """A caption under a policy: `raw` as it is, `strip` without outer blanks, `single_line` also with each line break
    and the blanks around it made one blank. Idempotent.
    """
    if policy == "raw":
        return text
    if policy == "single_line":
        # Whole runs of blanks: one pattern for "blanks around a break" takes quadratic time on a run without a break.
        text = _BLANKS.sub(lambda blanks: " " if _LINE_BREAK.search(blanks[0]) else blanks[0], text)
    return text.strip()


class PlainText:
    """Makes captions in which a tokenizer reads no control token: `</s>` becomes `< /s >`, other text stays as it is.

    The tokenizer's own `split_special_tokens` does not suffice: a SentencePiece unigram vocabulary has the control
    tokens among its pieces, and reads them all the same.

    Args:
        tokenizer: Its special tokens are the control tokens.
        markup: What else is read as such.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", markup: Iterable[str] = ()) -> None:
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        found = {_folded(text.strip())[0] for text in (*special, *tokenizer.all_special_tokens, *markup)}
        # Longest first: the first alternative that fits counts. One character cannot be taken apart; some tokenizers
        # pad with "!".
        tokens = sorted((text for text in found if len(text) > 1), key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(map(re.escape, tokens)) or "(?!)")

    def __call__(self, text: str) -> str:
        """`text` with blanks inside each control token, behind its first and before its last character. Idempotent."""
        while True:
            folded, places = _folded(text)
            ends = [(places[match.start()], places[match.end() - 1]) for match in self._pattern.finditer(folded)]
            cuts = {cut for first, last in ends if first < last for cut in (first + 1, last)}
            if not cuts:
                return text
            edges = [0, *sorted(cuts), len(text)]
            text = " ".join(text[start:end] for start, end in pairwise(edges))


def _folded(text: str) -> tuple[str, Sequence[int]]:
    """`text` as the normalisers of tokenizers leave it at most: in lower case, wide and accented letters as plain ones,
    without characters that nobody sees; and of each character its place in `text`.
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
