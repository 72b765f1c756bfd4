"""The threshold, from scores in context on dev."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ra_hmd.core.artifacts import MANIFEST_NAME, read_json
from ra_hmd.core.config import choose
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.heads import official_thresholds
from ra_hmd.core.problem import Problem
from ra_hmd.data.meme import Meme
from ra_hmd.data.rows import jsonl_rows
from ra_hmd.evaluation.metrics.significance import PREDICTIONS_NAME
from ra_hmd.features.test_lock import open_labels
from ra_hmd.scoring.thresholds import Criterion, best_thresholds

KEY = "in_context"
"""In the manifest: what the scores depend on."""
_OF_THE_DATA = ("data", "shown")


@dataclass(frozen=True)
class Threshold:
    """Thresholds float64 [C], and where they are from: None, the official ones."""

    values: np.ndarray
    dev: Mapping[str, Any] | None = None


def official(problem: Problem) -> Threshold:
    """0.5: the answer that is more probable."""
    return Threshold(official_thresholds("lmh", problem))


def dev_threshold(
    dev: str | Path, criterion: Criterion, stated: Mapping[str, Any], queries: Sequence[Meme], problem: Problem
) -> Threshold:
    """The best threshold on dev's scores.

    Args:
        dev: Output of `ra-hmd in-context` on dev.
        criterion: What is to be best.
        stated: What the scores here depend on; those on dev must be of the same model, examples and settings.
        queries: What is judged here.
        problem: What labels mean.

    Raises:
        UserError: no such output, one of other settings, of test data, or of memes that are judged here.
    """
    choose("--criterion", criterion, get_args(Criterion))
    folder = Path(dev)
    manifest = read_json(folder / MANIFEST_NAME)
    if KEY not in manifest:
        raise UserError(f"--dev {folder} is no output of `ra-hmd in-context`; run it on the dev split first.")
    other = [name for name in stated if name not in _OF_THE_DATA and manifest[KEY].get(name) != stated[name]]
    if other:
        raise UserError(
            f"--dev {folder} was scored otherwise than here; what differs: {', '.join(other)}. Score dev with the same "
            "settings."
        )
    (name, described), *_ = manifest["sets"].items()
    # What was opened as test data is that, whatever its split is called: the name of a file may have said so.
    open_labels(chosen_by={folder: described["split"]} | manifest["test_sets"])
    lines = [row.values for row in jsonl_rows(folder / PREDICTIONS_NAME)]
    both = {line["id"] for line in lines} & {meme.id for meme in queries}
    raise_all([f"meme {name!r}" for name in sorted(both)], f"These are judged here, and are in --dev {folder} too")
    scores = np.array([line["lmh_score"] for line in lines], dtype=np.float64).reshape(len(lines), -1)
    labels = np.array([line["label"] for line in lines], dtype=np.int64)
    values = best_thresholds(scores, labels, criterion, official_thresholds("lmh", problem), problem)
    return Threshold(values, {"place": str(folder), "set": name, "rows": len(lines), "criterion": criterion})
