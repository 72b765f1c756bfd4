"""`ra-hmd attack`: attacked copies of a data set."""

from pathlib import Path
from typing import Annotated

import typer

from ra_hmd.attacks.settings import AttackSettings
from ra_hmd.cli.options import GROUP, Lists, Output, command_line, from_settings

attack_app = typer.Typer(**GROUP)


@attack_app.command("attack", cls=Lists)
@from_settings
def attack_command(
    data: Annotated[Path, typer.Argument(help="Folder written by `ra-hmd data import`.")],
    output: Output,
    settings: AttackSettings,
    splits: Annotated[list[str] | None, typer.Option(help="Splits to attack; default: all but train.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that attack memes.")] = 1,
) -> None:
    """Write attacked copies of a data set, one per attack, severity and channel. An interrupted run continues."""
    from ra_hmd.attacks.run import ATTACK_MANIFEST, attack_data

    stated = attack_data(
        data, output, settings, splits=splits or (), workers=workers, show=True, command=command_line()
    )
    for variant in stated.variants:
        rows, changed = sum(variant.rows.values()), sum(variant.changed.values())
        print(f"{variant.name:32} {changed} of {rows} memes changed")
        for reason, count in variant.unchanged.items():
            print(f"{'':32} {count}: {reason}")
    print(f"{output / ATTACK_MANIFEST}: {len(stated.variants)} attacked data sets")
