"""What is done to a caption on its way from a data set's file into a record."""

import re
from typing import Literal, get_args

TextPolicy = Literal["single_line", "strip", "raw"]
TEXT_POLICIES = get_args(TextPolicy)

_SURROGATES = re.compile("[\ud800-\udfff]")
_BLANKS = re.compile(r"\s+")
_LINE_BREAK = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]")


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
