"""Every Bash block of the documentation is run by a test, or says which test runs the same and why it is not run."""

import re

from documented import blocks
from documented_blocks import BLOCKS, HOWTO, NOT_RUN, OTHERS
from engines import ROOT


def test_every_block_is_run_or_says_why_not() -> None:
    named = [(page, words) for page, words, _ in BLOCKS + HOWTO] + OTHERS + list(NOT_RUN)
    for reason in NOT_RUN.values():
        assert all((ROOT / path).exists() for path in re.findall(r"tests/[\w/.]+", reason)), reason
    for block in blocks("bash"):
        assert sum(page == block.page and words in block.text for page, words in named) == 1, block
