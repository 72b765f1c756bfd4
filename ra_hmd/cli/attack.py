"""`ra-hmd attack`: attacked copies of a data set."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ra_hmd.attacks.settings import AttackSettings, RephraseOptions
from ra_hmd.cli.options import GROUP, Lists, Output, command_line, from_settings
from ra_hmd.core.errors import UserError

if TYPE_CHECKING:
    from ra_hmd.attacks.teacher import Teacher

attack_app = typer.Typer(**GROUP)


@attack_app.command("attack", cls=Lists)
@from_settings
def attack_command(
    data: Annotated[Path, typer.Argument(help="Folder written by `ra-hmd data import`.")],
    output: Output,
    settings: AttackSettings,
    teacher: RephraseOptions,
    splits: Annotated[list[str] | None, typer.Option(help="Splits to attack; default: all but train.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that attack memes.")] = 1,
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the API's key.")] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(min=1, help="With --endpoint: concurrent requests.")] = 4,
    cache: Annotated[Path | None, typer.Option(help="Folder of answers; default: teacher/ in --output.")] = None,
) -> None:
    """Write attacked copies of a data set, one per attack, severity and channel. An interrupted run continues.

    With --endpoint, a model rephrases captions too (attack `rephrase`): CAPTIONS ARE SENT THERE.
    """
    from ra_hmd.attacks.run import ATTACK_MANIFEST, attack_data

    stated = attack_data(
        data,
        output,
        settings,
        splits=splits or (),
        teacher=None if teacher.endpoint is None else _teacher(teacher, api_key_env, concurrency, cache),
        workers=workers,
        show=True,
        command=command_line(),
    )
    for variant in stated.variants:
        rows, changed = sum(variant.rows.values()), sum(variant.changed.values())
        print(f"{variant.name:32} {changed} of {rows} memes changed")
        for reason, count in variant.unchanged.items():
            print(f"{'':32} {count}: {reason}")
    print(f"{output / ATTACK_MANIFEST}: {len(stated.variants)} attacked data sets")


def _teacher(options: RephraseOptions, variable: str, concurrency: int, cache: Path | None) -> "Teacher":
    if importlib.util.find_spec("openai") is None:
        raise UserError("A teacher needs the extra `judge`: pip install 'ra-hmd[judge]'.")
    from ra_hmd.attacks.settings import RephraseSettings
    from ra_hmd.attacks.teacher import Teacher
    from ra_hmd.models.generation.endpoint import api_key

    settings = RephraseSettings(**options.model_dump())
    return Teacher(settings, api_key(variable), cache, concurrency, show=True)
