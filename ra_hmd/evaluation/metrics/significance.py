"""Paired comparison of heads and runs: differences, McNemar's test, and Holm's correction.

Shapes: Q memes, C outputs of the problem.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head, decide, exact_match, official_thresholds
from ra_hmd.core.manifests import EvaluationManifest, RuleDescription, read_folder_manifest
from ra_hmd.core.problem import Problem
from ra_hmd.data.rows import jsonl_rows
from ra_hmd.evaluation.metrics.classification import metric_names
from ra_hmd.evaluation.metrics.estimates import ThresholdedScores, metric_estimate
from ra_hmd.scoring.scores import ScoredSet

COMPARED = ("accuracy", "auroc", "macro_f1")
PREDICTIONS_NAME = "predictions.jsonl"


@dataclass(frozen=True)
class Contender:
    """A named set of scores [Q, C] with thresholds [C], to compare with others on the same memes."""

    name: str
    scores: np.ndarray
    thresholds: np.ndarray

    @property
    def scored(self) -> ThresholdedScores:
        """Scores and thresholds, as the estimates take them."""
        return ThresholdedScores(self.scores, self.thresholds)

    def right(self, labels: np.ndarray, problem: Problem) -> np.ndarray:
        """bool [Q], whether each verdict is entirely right."""
        return exact_match(decide(self.scores, self.thresholds, problem), labels)


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> dict[str, Any]:
    """Exact McNemar test of paired verdicts.

    Returns:
        `only_first` and `only_second` (memes that only this one classified correctly) and the two-sided `p`, which is 1
        where there are none.
    """
    only_first, only_second = int((first_right & ~second_right).sum()), int((~first_right & second_right).sum())
    discordant = only_first + only_second
    return {
        "only_first": only_first,
        "only_second": only_second,
        "p": float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0,
    }


def holm(values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple comparisons (Holm 1979)."""
    order = np.argsort(values, kind="stable")
    scaled = np.array(values, dtype=np.float64)[order] * np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected.tolist()


def compare_pairs(
    pairs: Sequence[tuple[Contender, Contender]], labels: np.ndarray, problem: Problem, *, samples: int, seed: int
) -> list[dict[str, Any]]:
    """Compare pairs on the same memes, the second minus the first.

    Returns:
        Per pair `first`, `second`, `memes`, `difference` (metric → `value`, `low`, `high` of the paired interval), and
        `mcnemar` with `p_holm`, corrected over the given pairs.
    """
    found: list[dict[str, Any]] = []
    for first, second in pairs:
        difference = {
            name: metric_estimate(
                name, [second.scored], labels, problem, base=[first.scored], samples=samples, seed=seed
            ).as_dict()
            for name in COMPARED
            if name in metric_names(problem)
        }
        test = mcnemar(first.right(labels, problem), second.right(labels, problem))
        found.append(
            {
                "first": first.name,
                "second": second.name,
                "memes": len(labels),
                "difference": difference,
                "mcnemar": test,
            }
        )
    for entry, corrected in zip(found, holm([entry["mcnemar"]["p"] for entry in found]), strict=True):
        entry["mcnemar"]["p_holm"] = corrected
    return found


def contenders(scored: ScoredSet) -> dict[Head, Contender]:
    """The heads of a query set, by name."""
    return {
        head: Contender(head.upper(), scores, scored.rules[head].thresholds) for head, scores in scored.scores.items()
    }


def compare_heads(scored: ScoredSet, *, samples: int, seed: int) -> list[dict[str, Any]]:
    """Compare every two heads of a query set."""
    pairs = list(combinations(contenders(scored).values(), 2))
    return compare_pairs(pairs, scored.labels, scored.problem, samples=samples, seed=seed)


@dataclass(frozen=True)
class OtherRun:
    """Predictions of an earlier evaluation.

    Attributes:
        place: Path of predictions.jsonl.
        rows: (set, id) → line of that file.
        thresholds: Set → head → thresholds [C], as far as the manifest states them.
    """

    place: Path
    rows: Mapping[tuple[str, str], Mapping[str, Any]]
    thresholds: Mapping[str, Mapping[str, Sequence[float]]]


def read_run(place: str | Path) -> OtherRun:
    """Read the predictions of an evaluation from its folder or its predictions.jsonl.

    Raises:
        UserError: missing file, or lines that are no predictions.
    """
    path = Path(place)
    path = path / PREDICTIONS_NAME if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; give the output folder of `ra-hmd evaluate`, or its predictions.jsonl."
        )
    rows = {}
    for row in jsonl_rows(path):
        try:
            rows[row.values["set"], row.values["id"]] = row.values
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path.parent / row.place} is not a prediction of `ra-hmd evaluate`: {row.problem or repr(error)}."
            ) from error
    manifest = read_folder_manifest(path.parent)
    decisions = manifest.decisions if isinstance(manifest, EvaluationManifest) else {}
    thresholds = {
        name: {head: rule.thresholds for head, rule in heads.items() if isinstance(rule, RuleDescription)}
        for name, heads in decisions.items()
    }
    return OtherRun(path, rows, thresholds)


def compare_run(
    scored: ScoredSet, other: OtherRun, *, samples: int, seed: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Compare the heads of this run with those of another run, on the memes that both scored.

    Memes are matched by set and id.

    Returns:
        The comparisons, with the other run first; and notes on memes and heads that are left out.

    Raises:
        UserError: no meme in common, or different labels or numbers of scores.
    """
    keys = [(scored.name, name) for name in scored.queries.ids]
    shared = np.array([row for row, key in enumerate(keys) if key in other.rows], dtype=np.int64)
    if not len(shared):
        known = sorted({name for name, _ in other.rows})
        raise UserError(
            f"{other.place} has none of the memes of query set {scored.name!r}; it has sets {', '.join(known)}. Sets "
            "are matched by their folder's name, memes by id."
        )
    lines = [other.rows[keys[row]] for row in shared]
    labels = scored.labels[shared]
    differing = [key[1] for key, line, label in zip([keys[row] for row in shared], lines, labels.tolist(), strict=True)
                 if line["label"] != label]  # fmt: skip
    if differing:
        raise UserError(
            f"{len(differing)} memes of {scored.name!r} have another label in {other.place}, the first is "
            f"{differing[0]!r}: the two runs are not of the same task."
        )
    notes = _left_out(scored, other, len(shared))
    pairs = []
    for head, mine in contenders(scored).items():
        theirs = [line.get(f"{head}_score") for line in lines]
        if None in theirs:
            notes.append(f"{head.upper()} is not compared: {other.place} has no scores of it.")
            continue
        scores = np.array(theirs, dtype=np.float64).reshape(len(lines), -1)
        if scores.shape[1] != scored.problem.outputs:
            raise UserError(f"{other.place} has {scores.shape[1]} {head.upper()} scores per meme, this run has "
                            f"{scored.problem.outputs}.")  # fmt: skip
        stated = other.thresholds.get(scored.name, {}).get(head)
        if stated is None:
            notes.append(f"{head.upper()} of {other.place} is taken with its official threshold, it states none.")
        thresholds = official_thresholds(head, scored.problem) if stated is None else np.array(stated, dtype=np.float64)
        pairs.append((
            Contender(f"{mine.name} of {other.place.parent}", scores, thresholds),
            Contender(f"{mine.name} here", mine.scores[shared], mine.thresholds),
        ))  # fmt: skip
    return compare_pairs(pairs, labels, scored.problem, samples=samples, seed=seed), notes


def _left_out(scored: ScoredSet, other: OtherRun, shared: int) -> list[str]:
    here, there = len(scored) - shared, sum(name == scored.name for name, _ in other.rows) - shared
    if not here and not there:
        return []
    return [
        f"compared with {other.place}: {shared} memes are in both, {here} only here and {there} only there; those are "
        "left out."
    ]
