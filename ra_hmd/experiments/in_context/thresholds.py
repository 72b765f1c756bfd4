"""Threshold of in-context scores, chosen on dev."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ra_hmd.core.config import choose
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.heads import official_thresholds
from ra_hmd.core.manifests import EvaluationManifest, read_folder_manifest
from ra_hmd.core.problem import Problem
from ra_hmd.data.meme import Meme
from ra_hmd.data.rows import jsonl_rows
from ra_hmd.evaluation.metrics.significance import PREDICTIONS_NAME
from ra_hmd.features.test_lock import open_labels
from ra_hmd.scoring.thresholds import Criterion, best_thresholds

_OF_THE_DATA = ("data", "shown")


@dataclass(frozen=True)
class Threshold:
    """Thresholds float64 [C], and the dev evaluation that they were chosen on; None: official thresholds."""

    values: np.ndarray
    dev: Mapping[str, Any] | None = None


def official(problem: Problem) -> Threshold:
    """The official threshold 0.5, that is, the more probable answer."""
    return Threshold(official_thresholds("lmh", problem))


def dev_threshold(
    dev: str | Path, criterion: Criterion, stated: Mapping[str, Any], queries: Sequence[Meme], problem: Problem
) -> Threshold:
    """Choose the threshold that maximises a criterion on dev.

    Args:
        dev: Output of `ra-hmd in-context` on dev.
        criterion: Metric to maximise.
        stated: Settings that the scores of this run depend on; dev must have the same model, examples and settings.
        queries: Queries of this run.
        problem: What labels mean.

    Raises:
        UserError: no such output, other settings, test data, or memes that are also queries of this run.
    """
    choose("--criterion", criterion, get_args(Criterion))
    folder = Path(dev)
    manifest = read_folder_manifest(folder)
    if not isinstance(manifest, EvaluationManifest) or manifest.in_context is None:
        raise UserError(f"--dev {folder} is no output of `ra-hmd in-context`; run it on the dev split first.")
    dev_stated = manifest.in_context
    other = [name for name in stated if name not in _OF_THE_DATA and dev_stated.get(name) != stated[name]]
    if other:
        raise UserError(
            f"--dev {folder} was scored otherwise than here; what differs: {', '.join(other)}. Score dev with the same "
            "settings."
        )
    (name, described), *_ = manifest.sets.items()
    # Data that was opened as test data stays so: the name of its file may have said test, and not its split.
    open_labels(chosen_by={str(folder): described.split} | manifest.test_sets)
    lines = [row.values for row in jsonl_rows(folder / PREDICTIONS_NAME)]
    both = {line["id"] for line in lines} & {meme.id for meme in queries}
    raise_all([f"meme {name!r}" for name in sorted(both)], f"These memes are queries, and are in --dev {folder} too")
    scores = np.array([line["lmh_score"] for line in lines], dtype=np.float64).reshape(len(lines), -1)
    labels = np.array([line["label"] for line in lines], dtype=np.int64)
    values = best_thresholds(scores, labels, criterion, official_thresholds("lmh", problem), problem)
    return Threshold(values, {"place": str(folder), "set": name, "rows": len(lines), "criterion": criterion})
