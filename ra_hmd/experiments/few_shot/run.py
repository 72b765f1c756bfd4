"""Few-shot study (`ra-hmd few-shot`): SSMoE and its baselines on K labelled memes of each class, under one recipe.

Trainings and extractions are ordinary commands; the results are computed from their feature stores.
"""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ra_hmd.core.artifacts import MANIFEST_NAME, plain, write_json
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import FewShotManifest, PipelineManifest, read_manifest, write_manifest
from ra_hmd.evaluation.report.sections import format_estimate
from ra_hmd.experiments.few_shot.arms import ARMS, optimizer_steps
from ra_hmd.experiments.few_shot.config import FewShotSettings
from ra_hmd.experiments.few_shot.report import write_few_shot_report
from ra_hmd.experiments.few_shot.results import study_results
from ra_hmd.experiments.few_shot.sizes import Sizes, count_sizes
from ra_hmd.experiments.few_shot.steps import Study, check_known, few_shot_steps, prepare
from ra_hmd.experiments.pipeline import Step, run_steps
from ra_hmd.features.compatibility import check_output
from ra_hmd.features.test_lock import is_test_split

_KIND = "few_shot_steps"


def run_few_shot(
    settings: FewShotSettings, *, final: bool = False, command: str = "", console: Console | None = None
) -> Path:
    """Run the study and write few_shot.json, .md, .png and a manifest; finished steps are skipped.

    Thresholds are the official ones, 0.5 for LMH scores and 0 for RKC and KRR: there is no dev split to
    choose others on.

    Args:
        settings: Settings.
        final: Score a test split, which is recorded in each run's folder and in the output folder.
        command: Command line for the records.
        console: Console to print to.

    Returns:
        Path of few_shot.md.

    Raises:
        UserError: settings, data, clusters and guidance that do not fit together, a test split without `final`, another
            study in the output folder, or a failed step; the message ends with the end of its log.
    """
    console = console or Console()
    study, sizes = _opened(settings)
    if is_test_split(settings.test_split) and not final:
        raise UserError(
            f"`test_split` is {settings.test_split!r}, which is scored only with `--final`, when everything is "
            "decided. Set another split (`test_split=dev`) while something is still to be chosen."
        )
    output = settings.output_dir
    check_output(output, "few_shot")
    stated = study.stated(sizes.matched_rank)
    record = output / f"{_KIND}.json"
    check_known(stated, read_manifest(record, PipelineManifest).study if record.is_file() else None, output)
    _print_sizes(settings, sizes, console)
    prepare(study, sizes.matched_rank)
    steps = few_shot_steps(study)
    seconds = run_steps(_KIND, steps, output, console=console, study=stated)
    result, opened = study_results(study, final=final, command=command)
    parameters = {arm: sizes.parameters[arm] for arm in settings.arms}
    found = {"parameters": parameters, "matched_rank": sizes.matched_rank, **result}
    manifest = FewShotManifest.new(
        command=command,
        arguments=plain(settings.model_dump()),
        seed=settings.seed,
        final=final,
        test=opened,
        study=stated,
        parameters=plain(parameters),
        commands={step.line: seconds[step.line] for step in steps},
    )
    write_json(output / "few_shot.json", found)
    write_few_shot_report(settings, found, manifest, output)
    write_manifest(output / MANIFEST_NAME, manifest)
    _print_results(settings, found, console)
    minutes = sum(seconds[step.line] for step in steps) / 60
    console.print(
        f"Report: {output / 'few_shot.md'}  ({minutes:.1f} minutes of commands)", highlight=False, soft_wrap=True
    )
    return output / "few_shot.md"


def plan_few_shot(settings: FewShotSettings, console: Console | None = None) -> list[Step]:
    """Check everything that can be checked, print parameters and commands, and write nothing.

    Raises:
        UserError: see `run_few_shot`.
    """
    console = console or Console()
    study, sizes = _opened(settings)
    _print_sizes(settings, sizes, console)
    steps = few_shot_steps(study)
    for number, step in enumerate(steps, 1):
        console.print(f"{number}. {step.title}\n   $ {step.line}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"{len(steps)} commands; nothing was run or written.", highlight=False)
    return steps


def _opened(settings: FewShotSettings) -> tuple[Study, Sizes]:
    study = Study.open(settings)
    return study, count_sizes(study.base, 0 if study.clusters is None else study.clusters.count)


def _print_sizes(settings: FewShotSettings, sizes: Sizes, console: Console) -> None:
    table = Table(title=f"Trainable parameters (LoRA all, matched: rank {sizes.matched_rank})")
    for column in ("arm", "parameters"):
        table.add_column(column)
    for arm in settings.arms:
        table.add_row(ARMS[arm].title, f"{sizes.parameters[arm]:,}")
    console.print(table)
    steps = (f"{shots} shots: {optimizer_steps(settings.base, shots)}" for shots in settings.shots)
    console.print(f"Optimizer steps of each training · {' · '.join(steps)}", highlight=False)


def _print_results(settings: FewShotSettings, found: dict[str, Any], console: Console) -> None:
    table = Table(title="AUROC, mean ± standard deviation over lists [95 % interval over memes]")
    table.add_column("arm")
    for shots in settings.shots:
        table.add_column(f"{shots} shots")
    for arm in settings.arms:
        cells = [cell["auroc"] for cell in found["cells"] if cell["arm"] == arm]
        table.add_row(ARMS[arm].title, *(format_estimate(cell) for cell in cells))
    console.print(table)
