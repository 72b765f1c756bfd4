"""Samples that lmms-eval logged (`--log_samples`) of a base and of a tuned model, question by question.

Scores of a question: a number as it is, a dictionary with `score` by that, one with `pred` and `answer` by whether they
agree, and MMMU's by the function of lmms-eval that judges it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ra_hmd.core.artifacts import read_json
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.extras import check_extra
from ra_hmd.experiments.retention.gate import PairedDifferences

METRICS = {
    "mmmu_val": "mmmu_acc",
    "seedbench": "seed_image",
    "gqa": "exact_match",
    "mmstar": "average",
    "pope": "pope_accuracy",
}
"""Metric of each benchmark that retention is measured on, unless another one is requested."""

# What lmms-eval 0.7.3 logs of a question beside the metrics.
_OTHER = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "token_counts", "doc_hash", "input"}
_OTHER |= {"input_media", "submission"}
_NAME = re.compile(r"\d{8}_\d{6}_samples_(?P<task>.+)\.jsonl")


@dataclass(frozen=True)
class PairedTask:
    """Scores of one task's questions by base and tuned model.

    Attributes:
        metric: Name of the score.
        base: Score of each question by the base model.
        tuned: The same by the tuned model.
    """

    metric: str
    base: list[float]
    tuned: list[float]

    @property
    def differences(self) -> PairedDifferences:
        """Tuned minus base. Scores that are no shares are in a unit of their own, and are not pooled with others."""
        values = [tuned - base for base, tuned in zip(self.base, self.tuned, strict=True)]
        if all(0 <= score <= 1 for score in (*self.base, *self.tuned)):
            return PairedDifferences(values)
        return PairedDifferences(values, bounds=None, unit=self.metric)


def read_logs(base: Path, tuned: Path, metrics: Mapping[str, str] | None = None) -> dict[str, PairedTask]:
    """Pair the logged samples of two models.

    Args:
        base: Folder that lmms-eval wrote of the base model (`--output_path`).
        tuned: The same of the tuned model.
        metrics: Task to its metric; others have that of `METRICS`, or their only one.

    Raises:
        UserError: no samples, several runs of a task, other questions, tasks or lengths of answers, an unknown metric.
    """
    files = {name: _sample_files(folder) for name, folder in (("base", base), ("tuned", tuned))}
    if files["base"].keys() != files["tuned"].keys():
        raise UserError(
            f"{base} has the tasks {', '.join(files['base'])}, and {tuned} has {', '.join(files['tuned'])}; evaluate "
            "both models on the same."
        )
    wanted, problems = {**METRICS, **(metrics or {})}, []
    unknown = sorted((metrics or {}).keys() - files["base"].keys())
    problems += [f"--metric {name}=…: the tasks are {', '.join(files['base'])}; correct the name." for name in unknown]
    tasks = {}
    for task, path in files["base"].items():
        try:
            tasks[task] = _pair(task, path, files["tuned"][task], wanted.get(task))
        except UserError as error:
            problems += error.problems
    raise_all(problems, "The logged samples cannot be compared")
    return tasks


def _sample_files(folder: Path) -> dict[str, Path]:
    """Task to its file of samples, in the order of the names."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*_samples_*.jsonl")):
        name = _NAME.fullmatch(path.name)
        if name:
            found.setdefault(name["task"], []).append(path)
    if not found:
        raise UserError(
            f"{folder} holds no samples of lmms-eval; give what `--output_path` named, of a run with `--log_samples`. "
            "Where lmms-eval ended with an error, `--verbosity DEBUG` shows it."
        )
    several = {task: paths for task, paths in found.items() if len(paths) > 1}
    raise_all(
        [f"task {task}: {', '.join(path.name for path in paths)}" for task, paths in several.items()],
        f"{folder} holds several runs; keep one of each task, or give each run a folder of its own",
    )
    return {task: path for task, (path,) in sorted(found.items())}


def _pair(task: str, base: Path, tuned: Path, metric: str | None) -> PairedTask:
    rows, others = _read(base), _read(tuned)
    if rows.keys() != others.keys():
        raise UserError(
            f"task {task}: {len(rows.keys() - others.keys())} questions were asked of the base model alone and "
            f"{len(others.keys() - rows.keys())} of the tuned one alone; evaluate both with the same --limit."
        )
    changed = next((number for number in rows if rows[number]["doc_hash"] != others[number]["doc_hash"]), None)
    if changed is not None:
        raise UserError(f"task {task}: question {changed} is another one for each model; take one version of the data.")
    limits = [_generation(path, task) for path in (base, tuned)]
    if limits[0] != limits[1]:
        raise UserError(f"task {task}: answers were generated with {limits[0]} and {limits[1]}; use the same.")
    name = metric or _only_metric(task, rows)
    kept = [number for number in sorted(rows) if name in rows[number]]
    if not kept:
        known = ", ".join(_metrics(rows))
        raise UserError(f"task {task}: no question has the metric {name}; the metrics are {known} (--metric {task}=…).")
    scores = [[_score(task, name, one[number][name]) for number in kept] for one in (rows, others)]
    return PairedTask(name, *scores)


def _read(path: Path) -> dict[int, dict[str, Any]]:
    rows = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                rows[int(row["doc_id"])] = row
                _ = row["doc_hash"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number} is no sample of lmms-eval 0.7: {error!r}.") from error
    return rows


def _generation(samples: Path, task: str) -> Any:
    """How answers were generated, from the results beside the samples; None where they are gone."""
    results = samples.with_name(f"{samples.name.partition('_samples_')[0]}_results.json")
    return read_json(results).get("configs", {}).get(task, {}).get("generation_kwargs") if results.is_file() else None


def _metrics(rows: Mapping[int, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows.values() for name in row if name not in _OTHER))


def _only_metric(task: str, rows: Mapping[int, Mapping[str, Any]]) -> str:
    names = _metrics(rows)
    if len(names) != 1:
        given = ", ".join(names) or "none"
        raise UserError(f"task {task}: its metrics are {given}; choose one by --metric {task}=NAME.")
    return names[0]


def _score(task: str, metric: str, value: Any) -> float:
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, dict) and isinstance(value.get("score"), int | float):
        return float(value["score"])
    if isinstance(value, dict) and {"pred", "answer"} <= value.keys():
        return float(str(value["pred"]).strip().lower() == str(value["answer"]).strip().lower())
    if isinstance(value, dict) and {"parsed_pred", "answer", "question_type"} <= value.keys():
        return _mmmu_score(value)
    raise UserError(f"task {task}: its metric {metric} is {str(value)[:80]!r}, no score of a question; choose another.")


def _mmmu_score(value: dict[str, Any]) -> float:
    check_extra("benchmarks", "The score of MMMU")
    from lmms_eval.tasks.mmmu.utils import evaluate_mmmu

    return float(evaluate_mmmu([value])[1]["acc"])
