"""`ra-hmd card`."""

from pathlib import Path
from typing import Annotated

import typer

card_app = typer.Typer()


@card_app.command("card")
def card_command(
    source: Annotated[str, typer.Argument(help="Folder with a head, imported data set, or example bank.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of the card's README.md; SOURCE unless set.")
    ] = None,
    report: Annotated[
        list[Path] | None, typer.Option(help="Of a head: folder that `ra-hmd evaluate` wrote; several times.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Title of the card.")] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="Under which it is published, by the hub's name, e.g. apache-2.0.")
    ] = None,
    language: Annotated[list[str] | None, typer.Option(help="Of the captions, e.g. en; several times.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a card that is there.")] = False,
) -> None:
    """Write a model card, or a data sheet of a data set or bank, from what was recorded (docs/deploy.md)."""
    from ra_hmd.cards.build import make_card
    from ra_hmd.cards.render import CardMetadata

    stated = CardMetadata(name, licence, tuple(language or ()))
    card = make_card(source, output, reports=report or [], stated=stated, overwrite=overwrite)
    print(card.path)
    typer.echo(f"{card.open_questions} lines are left TO BE FILLED IN; search for these words.", err=True)
