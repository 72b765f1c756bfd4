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


def fenced(lines: Sequence[str], language: str = "sh") -> str:
    """Lines of code as a block, with a fence that none of them can close."""
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n" + "\n".join(lines) + f"\n{fence}\n"
