"""Results of a few-shot study from its feature stores.

Scores are p(Yes) against p(No) at the first token of the answer, or those of a bank head with the shots as its bank; no
generated word is matched.

Shapes: Q scored memes.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import THRESHOLDS, Head
from ra_hmd.core.progress import track
from ra_hmd.data.k_shot import read_shot_lists, shot_rows
from ra_hmd.evaluation.metrics.estimates import ThresholdedScores, metric_estimate
from ra_hmd.experiments.common import HeadView
from ra_hmd.experiments.few_shot.arms import ARMS, ArmName
from ra_hmd.experiments.few_shot.steps import ZERO_SHOT, Study
from ra_hmd.features.compatibility import check_store
from ra_hmd.features.store import Features, read_features
from ra_hmd.features.test_lock import open_labels
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings

METRICS = ("auroc", "accuracy", "macro_f1")
BASELINES: tuple[ArmName, ...] = ("lora", "rkc", "ssmoe")
"""Arms that the others are compared with."""

Runs = list[ThresholdedScores]
"""Scores of each seed; an arm without seeds has one run."""


def study_results(study: Study, *, final: bool, command: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compute the results of all arms.

    Args:
        study: A study whose commands have finished.
        final: Whether a test split may be scored.
        command: Command line, for the record of an opened test split.

    Returns:
        `memes` (Q), `cells` and `differences` (see `_cell`); and run folder, or arm without training, to the test
        splits that were opened.

    Raises:
        UserError: a test split without `final`; stores that are missing, incomplete, or of different memes.
    """
    settings, reader = study.settings, _Reader(study, final, command)
    scores: dict[tuple[ArmName, int], Runs] = {}
    wanted = [(arm, shots) for arm in settings.arms for shots in settings.shots]
    for arm, shots in track(((1, one) for one in wanted), "Reading scores", len(wanted), "arms"):
        scores[arm, shots] = reader.runs(arm, shots)
    cells = [{"arm": arm, "shots": shots, **_cell(study, reader.labels, runs)} for (arm, shots), runs in scores.items()]
    differences = [
        {"arm": arm, "against": base, "shots": shots, **_cell(study, reader.labels, runs, scores[base, shots])}
        for base in BASELINES
        for (arm, shots), runs in scores.items()
        if base in settings.arms and arm != base
    ]
    return {"memes": len(reader.ids), "cells": cells, "differences": differences}, reader.opened


class _Reader:
    """Reads the scores of arms, and checks that they are of the same memes.

    Attributes:
        ids: Ids of the scored memes; empty before the first store is read.
        labels: int64 [Q].
        opened: Run folder, or arm without training, to the test splits that were opened.
    """

    def __init__(self, study: Study, final: bool, command: str) -> None:
        self._study, self._final, self._command = study, final, command
        self._kept: dict[Path, Features] = {}
        self.ids: list[str] = []
        self.labels = np.zeros(0, dtype=np.int64)
        self.opened: dict[str, Any] = {}

    def runs(self, arm: ArmName, shots: int) -> Runs:
        """Scores of an arm with K shots, with their thresholds."""
        layout, settings, stated = self._study.layout, self._study.settings, ARMS[arm]
        if stated.bank_head is not None:
            queries = self._store(layout.features(ZERO_SHOT), settings.output_dir, arm)
            return [self._by_shots(stated.bank_head, queries, shots, seed) for seed in range(settings.seeds)]
        if stated.tuning is None:
            return [_lmh(self._store(layout.features(arm), settings.output_dir, arm))]
        return [
            _lmh(self._store(layout.features(arm, shots, seed), run, str(run)))
            for seed in range(settings.seeds)
            for run in (layout.run(arm, shots, seed),)
        ]

    def _store(self, place: Path, head: Path, name: str) -> Features:
        """The scored split's store in `place`. Opens its labels once, recorded in the folder `head`."""
        features = self._kept.get(place) or read_features(place)
        if name not in self.opened:
            self.opened[name] = open_labels({place: features}, [head], final=self._final, command=self._command)
        check_store(features, place)
        if features.lmh_score is None or not np.isfinite(features.lmh_score).all():
            raise UserError(f"{place} has no LMH scores, or some that are not finite; extract it again.")
        if not self.ids:
            self.ids, self.labels = features.ids, features.labels
        if features.ids != self.ids or not np.array_equal(features.labels, self.labels):
            raise UserError(f"{place} holds other memes or labels than the stores of the other arms; extract it again.")
        if place == self._study.layout.features(ZERO_SHOT):
            self._kept[place] = features
        return features

    def _by_shots(self, head: Head, queries: Features, shots: int, seed: int) -> ThresholdedScores:
        """Scores of a bank head with a list's memes as its bank, by the hidden states of the untuned model."""
        study, place = self._study, self._study.layout.shot_features
        if place not in self._kept:
            self._kept[place] = read_features(place)
            check_store(self._kept[place], place)
        known, path = self._kept[place], study.lists
        listed = read_shot_lists(path, study.settings.train_split, [shots])[shots][seed]
        bank = known.select(np.array(shot_rows(listed, known.ids, path, place)))
        # Two splits may use one id for different memes, and none of the shots is a query.
        examples = Embeddings([f"shot {name}" for name in bank.ids], bank.labels, bank.hidden)
        seen = HeadView(Embeddings(queries.ids, queries.labels, queries.hidden), {})
        voting, kernel = study.settings.voting, KernelSettings()
        scores = seen.vote(examples, voting) if head == "rkc" else seen.regress(examples, kernel)
        return ThresholdedScores.binary(scores, THRESHOLDS[head])


def _lmh(features: Features) -> ThresholdedScores:
    assert features.lmh_score is not None
    return ThresholdedScores.binary(features.lmh_score[:, 0], THRESHOLDS["lmh"])


def _cell(study: Study, labels: np.ndarray, runs: Runs, base: Sequence[ThresholdedScores] = ()) -> dict[str, Any]:
    """Metric → `value`, `low`, `high`, `runs` and `std`, of `runs` or of what they have more than `base`.

    `value` is the mean over seeds, and the interval is over memes (of a difference paired, on the same memes). `runs`
    are the values of the seeds (of a difference paired by list), and `std` is their standard deviation.
    """
    settings, found = study.settings, {}
    for name in METRICS:
        values = [metric_estimate(name, [run], labels, samples=0, seed=0).value for run in runs]
        if base:
            theirs = [metric_estimate(name, [run], labels, samples=0, seed=0).value for run in base]
            longest = max(len(values), len(theirs))
            pairs = [(side * longest)[:longest] if len(side) == 1 else side for side in (values, theirs)]
            values = [None if a is None or b is None else a - b for a, b in zip(*pairs, strict=True)]
        known = [value for value in values if value is not None]
        whole = metric_estimate(name, runs, labels, base=base, samples=settings.bootstrap_samples, seed=settings.seed)
        spread = statistics.stdev(known) if len(known) == len(values) > 1 else None
        found[name] = {**whole.as_dict(), "runs": values, "std": spread}
    return found
