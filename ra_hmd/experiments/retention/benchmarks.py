"""What tuning cost a model on benchmarks that lmms-eval ran (`ra-hmd retention benchmarks`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.core.artifacts import write_json, write_text
from ra_hmd.core.markdown import escape, markdown_table
from ra_hmd.experiments.retention.benchmark_logs import PairedTask, read_logs
from ra_hmd.experiments.retention.config import BenchmarkSettings
from ra_hmd.experiments.retention.gate import GateResult, Margins, non_inferiority
from ra_hmd.features.compatibility import check_output


def benchmark_retention(
    base: Path,
    tuned: Path,
    output: str | Path,
    settings: BenchmarkSettings | None = None,
    *,
    metrics: Mapping[str, str] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Decide by logged samples whether the tuned model lost less than the margins, and write the report.

    Tasks whose scores are no shares of one unit are judged one by one, without a pooled row.

    Args:
        base: Folder that lmms-eval wrote of the base model.
        tuned: The same of the tuned model.
        output: Folder for benchmarks.json and benchmarks.md.
        settings: Settings of the gate.
        metrics: Task to the metric that counts, where it is not that of `benchmark_logs.METRICS`.
        command: Command line for the records.

    Returns:
        Content of benchmarks.json.

    Raises:
        UserError: logs that cannot be paired, an output folder of another command.
    """
    settings, output = settings or BenchmarkSettings(), Path(output)
    check_output(output, "retention benchmarks")
    tasks = read_logs(base, tuned, metrics)
    differences = {name: task.differences for name, task in tasks.items()}
    poolable = len({each.unit for each in differences.values()}) == 1
    margins = Margins(each=settings.margin, pooled=settings.pooled_margin if poolable else None)
    gate = non_inferiority(differences, margins, samples=settings.bootstrap_samples, seed=settings.seed)
    result = {
        "command": command,
        "base": str(base),
        "tuned": str(tuned),
        "settings": settings.model_dump(),
        "tasks": {name: _described(task) for name, task in tasks.items()},
        "gate": gate.as_dict(),
    }
    write_json(output / "benchmarks.json", result)
    write_text(output / "benchmarks.md", _report(tasks, gate, base, tuned))
    return result


def _described(task: PairedTask) -> dict[str, Any]:
    lost = sum(tuned < base for base, tuned in zip(task.base, task.tuned, strict=True))
    won = sum(tuned > base for base, tuned in zip(task.base, task.tuned, strict=True))
    means = {"base": float(np.mean(task.base)), "tuned": float(np.mean(task.tuned))}
    return {"metric": task.metric, "questions": len(task.base), **means, "lost": lost, "won": won}


def _report(tasks: Mapping[str, PairedTask], gate: GateResult, base: Path, tuned: Path) -> str:
    described = {name: _described(task) for name, task in tasks.items()}
    cells = [
        [
            escape(name),
            escape(each["metric"]),
            *(f"{each[key]:.4f}" for key in ("base", "tuned")),
            *(str(each[key]) for key in ("lost", "won")),
        ]
        for name, each in described.items()
    ]
    scores = markdown_table(["task", "metric", "base", "tuned", "questions lost", "questions won"], cells)
    return (
        f"# Retention on benchmarks: {gate.verdict}\n\nBase: `{base}`, tuned: `{tuned}`.\n\n{scores}\n\n## Gate\n\n"
        f"{gate.table()}\n\nA row passes where its whole interval lies above -margin, and fails where it lies below. "
        "Questions are resampled one by one; where several ask about one picture, the intervals are too narrow.\n"
    )
