"""What attacked pictures do to the heads: the summary of the scores that are kept with the memes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.core.heads import Head, decide, exact_match
from ra_hmd.core.problem import Problem
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_dataset import open_data
from ra_hmd.features.columns import label_array

Thresholds = Callable[[Head], np.ndarray]
SCORES = "attack_scores"
"""Field of an attacked meme's extras: head to its `clean` and `attacked` scores [C]."""


def measured(folder: Path, splits: Sequence[str], problem: Problem, thresholds: Thresholds) -> dict[str, Any]:
    """Split → head → accuracy and, of two classes, AUROC: `clean` and `attacked`; and the share of right verdicts that
    became wrong (`fooled`).

    Args:
        folder: An attacked data set.
        splits: Its splits.
        problem: What labels mean.
        thresholds: Head to the thresholds [C] of its verdicts.
    """
    data = open_data(folder)
    return {split: _of_memes(list(data.memes(split)), problem, thresholds) for split in splits}


def _of_memes(memes: Sequence[Meme], problem: Problem, thresholds: Thresholds) -> dict[str, Any]:
    labels = label_array(memes, problem.outputs if problem.kind == "multi_label" else None)
    found: dict[str, Any] = {}
    for head in memes[0].extras[SCORES] if memes else ():
        values: dict[str, Any] = {"accuracy": {}}
        right = {}
        for state in ("clean", "attacked"):
            scores = np.array([meme.extras[SCORES][head][state] for meme in memes])
            right[state] = exact_match(decide(scores, thresholds(head), problem), labels)
            values["accuracy"][state] = round(float(right[state].mean()), 4)
            if problem.kind == "binary" and len(set(labels.tolist())) == 2:
                from sklearn.metrics import roc_auc_score

                values.setdefault("auroc", {})[state] = round(float(roc_auc_score(labels, scores[:, 0])), 4)
        before = int(right["clean"].sum())
        values["fooled"] = round(float((right["clean"] & ~right["attacked"]).sum() / before), 4) if before else None
        found[head] = values
    return found
