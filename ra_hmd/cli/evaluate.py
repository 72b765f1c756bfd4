"""Commands that measure and report: `evaluate`, `results`, `card`."""

from pathlib import Path
from typing import Annotated

import typer

from ra_hmd.cli import options as o
from ra_hmd.cli.finish import Outcome
from ra_hmd.cli.options import command_line, from_settings, print_notes
from ra_hmd.core.errors import UserError
from ra_hmd.inference.options import BankHeadOptions

evaluation_app = typer.Typer()


@evaluation_app.command("evaluate")
@from_settings
def evaluate_command(
    checkpoint: Annotated[
        list[Path], typer.Option(help="Stage 1 run or Stage 2 folder with the head; several: seeds of one system.")
    ],
    bank: Annotated[
        str, typer.Option(help="Labelled memes that vote: a feature store or an example bank (folder, URI).")
    ],
    queries: Annotated[list[Path], typer.Option(help="Feature store to classify; may be given several times.")],
    output: o.Output,
    heads: BankHeadOptions,
    final: o.Final = False,
    dev: Annotated[
        Path | None, typer.Option(help="Feature store of dev: choose thresholds and calibration on it, and store them.")
    ] = None,
    thresholds: o.Thresholds = "stored",
    criterion: Annotated[
        str, typer.Option(help="With --dev, what is best: macro_f1, accuracy, f1 or youden.")
    ] = "macro_f1",
    calibration: Annotated[str, typer.Option(help="With --dev: temperature or isotonic.")] = "temperature",
    compare: Annotated[
        list[Path] | None, typer.Option(help="Earlier evaluation to compare with, meme by meme; several times.")
    ] = None,
    groups: Annotated[
        list[str] | None, typer.Option(help="Break results down by a field, FIELD or DATASET:FIELD; several times.")
    ] = None,
    update: Annotated[Path | None, typer.Option(help="Feature store of labelled memes to add to the bank.")] = None,
    update_sizes: Annotated[str, typer.Option(help="Numbers of memes to add, e.g. 8,32,128.")] = "8,32,128",
    update_draws: Annotated[int, typer.Option(min=1, help="Number of samples of each size.")] = 1,
    before: Annotated[Path | None, typer.Option(help="Head whose projection of the bank is plotted too.")] = None,
    bootstrap_samples: o.BootstrapSamples = 1000,
    seed: Annotated[int, typer.Option(help="Seed of resampling and of the choice of memes to add.")] = 0,
) -> Outcome:
    """Compare the heads (LMH, LRC, RKC, KRR) with 95 % intervals, and write a report (docs/evaluation.md)."""
    from ra_hmd.core.config import load_settings
    from ra_hmd.evaluation.evaluate import evaluate
    from ra_hmd.evaluation.request import OperatingPointSettings

    chosen = {"dev": dev, "thresholds": thresholds, "criterion": criterion, "calibration": calibration}
    done = evaluate(
        checkpoint,
        bank,
        queries,
        output,
        final=final,
        operating_point=load_settings(OperatingPointSettings, chosen, "evaluate"),
        compare=compare or (),
        groups=groups or (),
        update=update,
        update_sizes=_numbers("--update-sizes", update_sizes) if update else [],
        update_draws=update_draws,
        before=before,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
        **heads.model_dump(),
    )
    print_notes(done["notes"])
    return Outcome(done, [output / "report.md"])


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise UserError(f"{option} {text!r} is no list of whole numbers; write e.g. 8,32,128.") from error


@evaluation_app.command("results")
def results_command(
    folders: Annotated[
        list[str], typer.Argument(help="Folders with evaluations and cross-evaluations; NAME=FOLDER names the system.")
    ],
    output: o.Output = Path("results.md"),
) -> Outcome:
    """Write one table of all systems over all data sets, beside published numbers; also JSON, CSV and a figure."""
    from ra_hmd.experiments.leaderboard.run import write_results

    done = write_results(folders, output, command=command_line())
    print_notes(done.notes)
    return Outcome.of(output=output, notes=done.notes)


@evaluation_app.command("card")
def card_command(
    source: Annotated[str, typer.Argument(help="Folder with a head, imported data set, or example bank.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of the card's README.md; SOURCE unless set.")
    ] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(help="Evaluation of a head (folder of `ra-hmd evaluate`); several times."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Title of the card.")] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="License of the publication, by the hub's name, e.g. apache-2.0.")
    ] = None,
    language: Annotated[list[str] | None, typer.Option(help="Language of captions, e.g. en; several times.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing card.")] = False,
) -> Outcome:
    """Write a model card, or a data sheet of a data set or bank, from recorded facts (docs/deploy.md)."""
    from ra_hmd.cards.build import make_card
    from ra_hmd.cards.render import CardMetadata

    stated = CardMetadata(name, licence, tuple(language or ()))
    card = make_card(source, output, reports=report or [], stated=stated, overwrite=overwrite)
    typer.echo(f"{card.open_questions} lines are left TO BE FILLED IN; search for these words.", err=True)
    return Outcome.of(card=card.path, open_questions=card.open_questions)
