"""Building blocks of Markdown pages."""

import re
from collections.abc import Sequence


def escape(text: object) -> str:
    """`text` on one line, with everything escaped that has a meaning in Markdown or in a table cell."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>()#+\-.!|~&$])", r"\\\1", line)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table. Cells are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def fenced(lines: Sequence[str], language: str = "sh") -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n" + "\n".join(lines) + f"\n{fence}\n"
