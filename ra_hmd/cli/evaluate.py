"""The commands that measure: one system, all results, other data sets, an ageing bank."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ra_hmd.cli import options as o
from ra_hmd.core.errors import UserError

evaluation_app = typer.Typer()


@evaluation_app.command("evaluate")
def evaluate_command(
    checkpoint: Annotated[
        list[Path], typer.Option(help="Stage 1 run or Stage 2 folder: whose head decides; several: as seeds of one.")
    ],
    bank: Annotated[str, typer.Option(help="Labelled examples: a feature store, or an example bank (folder or URI).")],
    queries: Annotated[list[Path], typer.Option(help="Feature store to classify; may be given several times.")],
    output: o.Output,
    final: o.Final = False,
    dev: Annotated[
        Path | None, typer.Option(help="Feature store of dev: choose thresholds and calibration, store them.")
    ] = None,
    thresholds: o.Thresholds = "stored",
    criterion: Annotated[
        str, typer.Option(help="With --dev, what is best: macro_f1, accuracy, f1 or youden.")
    ] = "macro_f1",
    calibration: Annotated[str, typer.Option(help="With --dev: temperature or isotonic.")] = "temperature",
    compare: Annotated[
        list[Path] | None, typer.Option(help="Earlier evaluation, to compare with meme by meme; several times.")
    ] = None,
    groups: Annotated[
        list[str] | None, typer.Option(help="Break down by a field, FIELD or DATASET:FIELD; several times.")
    ] = None,
    update: Annotated[Path | None, typer.Option(help="Feature store of labelled memes to add to the bank.")] = None,
    update_sizes: Annotated[str, typer.Option(help="How many of them to add, e.g. 8,32,128.")] = "8,32,128",
    before: Annotated[Path | None, typer.Option(help="Head to draw the bank with for comparison.")] = None,
    topk: o.TopK = 20,
    weights: o.Weights = "arithmetic",
    min_similarity: o.MinSimilarity = None,
    prior_correction: o.Prior = False,
    bootstrap_samples: Annotated[int, typer.Option(min=100, help="Resamples of each interval.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of resampling and of the choice of memes to add.")] = 0,
) -> None:
    """Compare the three heads (LMH, LRC, RKC) with 95 % intervals, and write a report (docs/evaluation.md)."""
    from ra_hmd.core.config import coerce, load_settings
    from ra_hmd.evaluation.evaluate import evaluate
    from ra_hmd.evaluation.request import OperatingPointSettings

    try:
        sizes = coerce(update_sizes.split(","), list[int]) if update else []
    except ValueError as error:
        raise UserError(
            f"--update-sizes {update_sizes!r}: {error}; write numbers with commas, e.g. 8,32,128."
        ) from error
    chosen = {"dev": dev, "thresholds": thresholds, "criterion": criterion, "calibration": calibration}
    done = evaluate(
        checkpoint,
        bank,
        queries,
        output,
        topk=topk,
        weights=weights,
        final=final,
        operating_point=load_settings(OperatingPointSettings, chosen, "evaluate"),
        compare=compare or (),
        groups=groups or (),
        min_similarity=min_similarity,
        prior_correction=prior_correction,
        update=update,
        update_sizes=sizes,
        before=before,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
    )
    for note in done["notes"]:
        typer.echo(note, err=True)
    print(output / "report.md")


@evaluation_app.command("results")
def results_command(
    folders: Annotated[
        list[str], typer.Argument(help="Folders with evaluations and cross-evaluations; NAME=FOLDER names the system.")
    ],
    output: o.Output = Path("results.md"),
) -> None:
    """One table of all systems over all data sets, published numbers beside it; also JSON, CSV and a picture."""
    from ra_hmd.experiments.leaderboard.run import write_results

    done = write_results(folders, output, command=shlex.join(["ra-hmd", *sys.argv[1:]]))
    for note in done["notes"]:
        typer.echo(note, err=True)
    print(output)


@evaluation_app.command("cross-eval")
def cross_eval_command(
    config: Annotated[Path, typer.Argument(help="YAML file: systems, targets, heads, banks (docs/studies.md).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value …")] = None,
    final: o.Final = False,
) -> None:
    """Test what was trained on one data set on others: a matrix by head and bank, with K-shot banks of the target."""
    from ra_hmd.core.config import load_yaml
    from ra_hmd.experiments.cross_eval.config import CrossEvalArguments
    from ra_hmd.experiments.cross_eval.run import cross_eval

    args = load_yaml(CrossEvalArguments, config, overrides or [])
    words = ["ra-hmd", "cross-eval", str(config), *(overrides or []), *(["--final"] if final else [])]
    result = cross_eval(args, final=final, command=shlex.join(words))
    for gap in dict.fromkeys(f"{gap['reason']} {gap['command']}".strip() for gap in result["missing"]):
        typer.echo(f"Missing: {gap}", err=True)
    print(args.output_dir / "cross_eval.md")


@evaluation_app.command("staleness")
def staleness_command(
    checkpoint: Annotated[Path, typer.Option(help="Stage 1 run or Stage 2 folder: whose head decides.")],
    bank: Annotated[list[Path], typer.Option(help="Feature store; several: without --period-key, periods in order.")],
    output: o.Output,
    queries: Annotated[
        list[Path] | None, typer.Option(help="Feature store that is judged; default: the bank's own memes.")
    ] = None,
    period_key: Annotated[str | None, typer.Option(help="Field of the memes' extras that tells the period.")] = None,
    order: Annotated[str | None, typer.Option(help="Names of the periods in order, as in a,b,c.")] = None,
    date_part: Annotated[str, typer.Option(help="Of dates: day, month or year.")] = "day",
    bins: Annotated[int | None, typer.Option(help="So many periods of numbers or dates, about equal in memes.")] = None,
    window: Annotated[int | None, typer.Option(help="A bank holds only its last so many periods.")] = None,
    bank_size: Annotated[int | None, typer.Option(help="Draw so many memes for each bank, class-balanced.")] = None,
    min_memes: Annotated[int, typer.Option(help="Periods with fewer memes are not judged.")] = 20,
    topk: o.TopK = 20,
    weights: o.Weights = "arithmetic",
    bootstrap_samples: Annotated[int, typer.Option(min=100, help="Resamples of each interval.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of resampling and of the draw.")] = 0,
    final: o.Final = False,
) -> None:
    """What the KNN vote loses as its bank ages: memes of each period judged by banks of every age."""
    from ra_hmd.core.config import load_settings
    from ra_hmd.experiments.staleness.config import StalenessSettings
    from ra_hmd.experiments.staleness.run import staleness

    values = {
        "key": period_key,
        "order": order.split(",") if order else [],
        "date_part": date_part,
        "bins": bins,
        "window": window,
        "bank_size": bank_size,
        "min_memes": min_memes,
        "topk": topk,
        "weights": weights,
        "bootstrap_samples": bootstrap_samples,
        "seed": seed,
    }
    settings = load_settings(StalenessSettings, values, "staleness")
    command = shlex.join(["ra-hmd", *sys.argv[1:]])
    result = staleness(checkpoint, bank, output, queries=queries or (), settings=settings, final=final, command=command)
    for note in result["notes"]:
        typer.echo(note, err=True)
    print(output / "staleness.md")
