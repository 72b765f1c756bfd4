"""Pieces of Markdown."""

import re
from collections.abc import Sequence


def escape(text: object) -> str:
    """`text` so that Markdown shows it as it is, on one line, also inside a table cell."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>()#+\-.!|~&$])", r"\\\1", line)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells are already Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
