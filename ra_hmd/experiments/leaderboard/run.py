"""Leaderboard of all evaluated systems and data sets, with published numbers (`ra-hmd results`).

Measured and published values never share a row, and each cell is marked as one of the two.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ra_hmd.core.artifacts import atomic_path, plain, write_text
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import LeaderboardManifest, write_manifest
from ra_hmd.core.plotting import save_figure
from ra_hmd.experiments.leaderboard.page import Page, figure, markdown
from ra_hmd.experiments.leaderboard.sources import SystemResult, find_results, published_results, without_clashes

CSV_COLUMNS = ("origin", "system", "head", "dataset", "task", "split", "role", "metric", "value", "low", "high", "std",
               "printed", "runs", "memes", "rule", "evidence", "source", "place")  # fmt: skip


def write_results(folders: Sequence[str], output: str | Path, *, command: str = "") -> LeaderboardManifest:
    """Write the results page `output`, and files of the same name with `.json`, `.csv` and `.png`.

    Args:
        folders: Folders to search for evaluations and cross-evaluations; `NAME=PATH` names the systems in a folder.
        output: Markdown file of the page.
        command: Command line for the page.

    Returns:
        Content of the JSON file: a manifest with `columns`, `results` (`origin`: measured or published) and `notes`.

    Raises:
        UserError: a folder without results, or an `output` that is no Markdown file.
    """
    output = Path(output)
    if output.suffix != ".md" or output.is_dir():
        raise UserError(f"--output {output} is not a Markdown file; give one, for example {output / 'results.md'}.")
    found, notes = find_results(folders)
    measured = without_clashes(found)
    data = {(one.column.dataset, one.column.task) for one in measured}
    published = [one for one in published_results() if (one.column.dataset, one.column.task) in data]
    page = Page(measured, published, notes, command, output.with_suffix(".png").name)
    lines = [_described(one) for one in (*measured, *published)]
    result = LeaderboardManifest.new(
        command=command,
        arguments={"folders": list(folders), "output": str(output)},
        columns=[{**asdict(column), "role": column.role} for column in page.columns],
        results=lines,
        notes=notes,
    )
    _write_csv(output.with_suffix(".csv"), lines)
    save_figure(figure(page), output.with_suffix(".png"))
    write_manifest(output.with_suffix(".json"), result)
    write_text(output, markdown(page))
    return result


def _described(one: SystemResult) -> dict[str, Any]:
    return plain({**asdict(one), "column": {**asdict(one.column), "role": one.column.role}})


def _write_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write one line per result and metric."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        for one in lines:
            for metric, values in one["metrics"].items():
                table.writerow({**one, **one["column"], "metric": metric, **values, "runs": one["runs"]})
