"""Check that a copy of a data set is complete, sound and fit for training: `ra-hmd data check`."""

from collections.abc import Callable
from pathlib import Path

from ra_hmd.core.manifests import CheckManifest
from ra_hmd.core.workers import WorkerSettings
from ra_hmd.data.checks.findings import Finding, Findings
from ra_hmd.data.checks.fix import fix_data
from ra_hmd.data.checks.report import write_check_report
from ra_hmd.data.checks.scan import scan
from ra_hmd.data.meme_dataset import MemeData, open_data
from ra_hmd.data.readers.tree import absolute

CHECK = "check"


def check_data(
    folder: str | Path,
    *,
    excess: Callable[[str, int, int], int] | None = None,
    config: str | Path | None = None,
    fix: bool = False,
    workers: int = 1,
    engine: WorkerSettings | None = None,
    show: bool = False,
) -> CheckManifest:
    """Check an imported folder and write `check/report.json`, `check/report.md` and figures into it.

    Args:
        folder: Imported data set, or folder with `<split>.jsonl` files.
        excess: Function of caption, width and height that returns the tokens over the budget of `config`
            (`ra_hmd.models.caption_budget.excess_tokens`); by default the budget is not checked.
        config: Stage 1 YAML file that defines the budget, for the report.
        fix: Whether to repair first what can be repaired without loss, and check again.
        workers: Number of processes that open images, with the local engine.
        engine: Engine that opens the images; default is this machine.
        show: Show a progress bar.

    Returns:
        Content of report.json: rows and classes per split, `findings`, `fixed`.

    Raises:
        UserError: There is no such data set.
    """
    data = open_data(folder)
    seen, findings = _inspect(data, None if fix else excess, engine, workers=workers, show=show)
    fixed: list[str] = []
    if fix:
        fixed = fix_data(data, seen.bad, [finding.kind for finding in findings])
        data = open_data(folder)
        seen, findings = _inspect(data, excess, engine, workers=workers, show=show)
    return write_check_report(seen, findings, fixed, data.folder / CHECK, config=config)


def _inspect(
    data: MemeData,
    excess: Callable[[str, int, int], int] | None,
    engine: WorkerSettings | None,
    *,
    workers: int,
    show: bool,
) -> tuple[Findings, list[Finding]]:
    tasks = tuple(task for task in data.reader.tasks if task.member_of is None)
    seen = Findings(data, tasks)
    total = sum(data.manifest.splits.values()) or None
    cache = absolute(data.folder) / CHECK / "images"
    for split, rows in scan(data, tasks, cache, workers=workers, engine=engine, total=total, show=show):
        seen.add(split, rows)
    return seen, seen.finish(excess)
