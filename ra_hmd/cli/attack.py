"""`ra-hmd attack`: attacked copies of a data set."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ra_hmd.attacks.settings import AttackSettings, RephraseOptions
from ra_hmd.attacks.white_box.settings import WhiteBoxSettings
from ra_hmd.cli.finish import Outcome
from ra_hmd.cli.options import GROUP, Lists, Output, command_line, from_settings
from ra_hmd.core.errors import UserError
from ra_hmd.core.extras import check_extra
from ra_hmd.core.workers.settings import WorkerSettings

if TYPE_CHECKING:
    from ra_hmd.attacks.teacher import Teacher
    from ra_hmd.core.manifests import AttackManifest

attack_app = typer.Typer(**GROUP)


@attack_app.command("attack", cls=Lists)
@from_settings
def attack_command(
    data: Annotated[Path, typer.Argument(help="Folder written by `ra-hmd data import`.")],
    output: Output,
    settings: AttackSettings,
    teacher: RephraseOptions,
    white_box: WhiteBoxSettings,
    engine: WorkerSettings,
    splits: Annotated[list[str] | None, typer.Option(help="Splits to attack; default: all but train.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that attack memes, with --engine local.")] = 1,
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the API's key.")] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(min=1, help="With --endpoint: concurrent requests.")] = 4,
    cache: Annotated[Path | None, typer.Option(help="Folder of answers; default: teacher/ in --output.")] = None,
) -> Outcome:
    """Write attacked copies of a data set, one per attack, severity and channel. An interrupted run continues.

    With --endpoint, a model rephrases captions too (attack `rephrase`): CAPTIONS ARE SENT THERE. With --white-box,
    pictures are changed by the scores of a trained system, in place of a suite.
    """
    from ra_hmd.attacks.run import ATTACK_MANIFEST, attack_data

    if white_box.white_box is not None:
        if engine.engine != "local":
            raise UserError("--white-box follows the gradients of one model; leave --engine ray out.")
        from ra_hmd.attacks.white_box.run import attack_system

        stated = attack_system(
            data, output, white_box, seed=settings.seed, splits=splits or (), show=True, command=command_line()
        )
        return Outcome(stated.to_json(), [partial(print_measured, stated)])
    stated = attack_data(
        data,
        output,
        settings,
        splits=splits or (),
        teacher=None if teacher.endpoint is None else _teacher(teacher, api_key_env, concurrency, cache),
        workers=workers,
        engine=engine,
        show=True,
        command=command_line(),
    )
    lines = []
    for variant in stated.variants:
        rows, changed = sum(variant.rows.values()), sum(variant.changed.values())
        lines.append(f"{variant.name:32} {changed} of {rows} memes changed")
        lines += [f"{'':32} {count}: {reason}" for reason, count in variant.unchanged.items()]
    lines.append(f"{output / ATTACK_MANIFEST}: {len(stated.variants)} attacked data sets")
    return Outcome(stated.to_json(), lines)


def print_measured(stated: "AttackManifest") -> None:
    """Print what the pictures of white-box attacks, read again from their files, do to each head."""
    for variant in stated.variants:
        for split, heads in variant.measured.items():
            for head, values in heads.items():
                metric = "auroc" if "auroc" in values else "accuracy"
                before, after = (values[metric][state] for state in ("clean", "attacked"))
                print(f"{variant.name:24} {split:8} {head.upper()} {metric} {before:.3f} -> {after:.3f}")


def _teacher(options: RephraseOptions, variable: str, concurrency: int, cache: Path | None) -> "Teacher":
    check_extra("judge", "A teacher")
    from ra_hmd.attacks.settings import RephraseSettings
    from ra_hmd.attacks.teacher import Teacher
    from ra_hmd.models.generation.endpoint import api_key

    settings = RephraseSettings(**options.model_dump())
    return Teacher(settings, api_key(variable), cache, concurrency, show=True)
