"""Text of the code as Markdown."""

import re

_PAGE = re.compile(r"\bdocs/([\w/]+)\.md\b")


def cell(text: str, up: str = "") -> str:
    """A help text as one cell of a Markdown table: nothing in it is markup but code in backticks, and pages are linked.

    Args:
        text: The text.
        up: The way from the page to the site's root, `../` for each folder.
    """
    parts = " ".join(text.split()).split("`")
    for place in range(0, len(parts), 2):
        plain = re.sub(r"([\\*|{}\[\]$])", r"\\\1", parts[place]).replace("<", "&lt;").replace(">", "&gt;")
        parts[place] = _PAGE.sub(rf"[\1.md]({up}\1.md)", plain)
    return "`".join(parts)


def code(value: object) -> str:
    """A value as code; "" as nothing."""
    text = str(value)
    return f"`{text}`" if text else ""


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; a column that is empty throughout is left out."""
    kept = [place for place in range(len(head)) if any(row[place] for row in rows)]
    lines = [[head[place] for place in kept], ["---" for _ in kept], *([row[place] for place in kept] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
