"""Rendering of cards from templates.

Values are escaped unless Python code has made them Markdown. Facts that nobody recorded stay visible as lines that name
who knows them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment

from ra_hmd.core.artifacts import write_text
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.markdown import escape, fenced, markdown_table
from ra_hmd.core.templates import template_environment

CARD_NAME = "README.md"
TO_FILL_IN = "TO BE FILLED IN BY"
NOT_MEASURED = "not measured"
# Text of the card that transformers' Trainer writes beside a model, until somebody has edited it.
_AUTOMATIC = "This model card has been generated automatically according to the information the Trainer had access to"


class Markdown(str):
    """Text that is Markdown already, and is not escaped."""

    __slots__ = ()


@dataclass(frozen=True)
class Card:
    """A written card.

    Attributes:
        path: Path of the file.
        open_questions: Number of lines that are to be filled in.
    """

    path: Path
    open_questions: int


def write_card(template: str, facts: Mapping[str, Any], output: str | Path, *, overwrite: bool = False) -> Card:
    """Fill a template and write it as README.md.

    Args:
        template: File in `templates/`.
        facts: Its variables.
        output: Folder of the card.
        overwrite: Replace a card that is there already.

    Raises:
        UserError: there is a README.md, and it is not the one that transformers writes by itself: people fill cards in.
    """
    path = Path(output) / CARD_NAME
    if path.is_file() and not overwrite and _AUTOMATIC not in " ".join(path.read_text(encoding="utf-8").split()):
        raise UserError(f"{path} exists, and may hold what somebody filled in; give another --output, or --overwrite.")
    text = _environment().get_template(template).render(facts)
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    write_text(path, text)
    return Card(path, text.count(TO_FILL_IN))


def _environment() -> Environment:
    # What is printed is Markdown, and `_shown` escapes for that.
    environment = template_environment("ra_hmd.cards", autoescape=False, finalize=_shown)
    environment.globals |= {"fill": fill, "code": code, "table": table, "block": block}
    return environment


def _shown(value: object) -> str:
    """`value` as Markdown. What needs no escape gets none: people edit cards, and read them as they are."""
    text = str(value)
    plain = re.fullmatch(r"(-|…/)?\w[\w ,.:;/=–…+()-]*", text) and not re.search(r"\b_|_\b", text)
    return text if isinstance(value, Markdown) or (plain and not re.match(r"\d+[.)] ", text)) else escape(text)


def fill(who: str, what: str) -> Markdown:
    """Line for a fact that no file states."""
    return Markdown(f"**{TO_FILL_IN} {who}:** {what}")


def code(value: object) -> Markdown:
    """`value` as inline code, on one line."""
    return Markdown("`" + " ".join(str(value).replace("`", "'").split()) + "`")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Markdown:
    """Table whose cells are escaped unless they are Markdown."""
    cells = [[cell.replace("|", r"\|") if isinstance(cell, Markdown) else _shown(cell) for cell in row] for row in rows]
    return Markdown(markdown_table(list(header), cells))


def block(lines: Sequence[str], language: str = "") -> Markdown:
    """Block of code."""
    return Markdown(fenced(lines, language))


def short(text: object) -> str:
    """`text` with absolute paths cut to their last part, so that a published card shows no folders of a disk."""
    return re.sub(r"(?<![\w.:/])~?/(?:[^\s/,;]+/)+", "…/", str(text))


@dataclass(frozen=True)
class CardMetadata:
    """Metadata that only the publisher knows.

    Attributes:
        name: Title of the card.
        licence: Licence, by its name on the hub.
        languages: Languages of the captions, ISO 639.
        base: Name on the hub of the model underneath, where the run does not have it.
        repo: Name on the hub of what is published.
        bank: Whether its example bank is published with it.
    """

    name: str | None = None
    licence: str | None = None
    languages: tuple[str, ...] = ()
    base: str | None = None
    repo: str | None = None
    bank: bool = False

    def __post_init__(self) -> None:
        """Raise `UserError` for values that the hub's metadata does not accept."""
        if self.licence is not None and not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", self.licence):
            raise UserError(f"--license {self.licence!r} is no name that the hub knows, such as apache-2.0 or other.")
        wrong = [
            f"--language {code!r}" for code in self.languages if not re.fullmatch("[a-z]{2,3}(-[A-Za-z0-9]+)*", code)
        ]
        raise_all(wrong, "Languages are given by their codes of ISO 639, such as en")
