"""Estimates of one head under attack, and of one system against another, on the same memes.

Shapes: Q memes, V variants of a group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ra_hmd.core.heads import Head
from ra_hmd.core.problem import BINARY
from ra_hmd.evaluation.metrics.estimates import ThresholdedScores, metric_estimate
from ra_hmd.evaluation.metrics.intervals import Estimate, mean_estimate, rate
from ra_hmd.evaluation.metrics.selective import aurc
from ra_hmd.experiments.robustness.scores import CLEAN, DEV, HeadScores, SystemScores
from ra_hmd.scoring.calibration import brier_losses, reliability

METRICS = ("auroc", "accuracy", "macro_f1")
DIRECTIONS = {"evasion": 1, "false_alarm": 0}
"""Success of an attack → class of the memes that it can be had on."""

Estimates = dict[str, Any]


@dataclass(frozen=True)
class HeadUnderAttack:
    """One head of a system: its scores, and the numbers of resamples behind its intervals.

    Attributes:
        found: Scores of the system.
        head: The head.
        classes: Variant → the classes that it is applied to.
        coverage: Share of the dev memes that abstention answers.
        samples: Resamples of each interval.
        seed: Seed of the resamples.
    """

    found: SystemScores
    head: Head
    classes: Mapping[str, Sequence[int]]
    coverage: float
    samples: int
    seed: int

    @property
    def labels(self) -> np.ndarray:
        """int64 [Q]."""
        return self.found.labels

    def of(self, name: str) -> HeadScores:
        """Scores on a set."""
        return self.found.sets[name][self.head]

    def run(self, name: str) -> ThresholdedScores:
        """Scores and threshold on a set."""
        return ThresholdedScores.binary(self.of(name).scores, self.found.rules[self.head]["threshold"])

    def right(self, name: str) -> np.ndarray:
        """bool [Q], memes that are judged correctly."""
        return self.of(name).verdicts == self.labels

    @property
    def limit(self) -> float:
        """Least certainty of a verdict that is not left to a person, chosen on dev."""
        falling = np.sort(self.of(DEV).certain)[::-1]
        return float(falling[max(int(np.ceil(self.coverage * len(falling) - 1e-9)), 1) - 1])

    def metrics(self, names: Sequence[str], base: Sequence[ThresholdedScores] = ()) -> Estimates:
        """Mean over V sets of each metric, or its difference from `base`."""
        runs = [self.run(name) for name in names]
        return {metric: self._estimate(metric, runs, base).as_dict() for metric in METRICS}

    def _estimate(
        self, metric: str, runs: Sequence[ThresholdedScores], base: Sequence[ThresholdedScores] = ()
    ) -> Estimate:
        if metric == "accuracy" and len(runs) > 1:  # the same as resampling all verdicts, for one value per meme
            right, before = (
                np.mean([(one.scores[:, 0] >= one.thresholds[0]) == self.labels for one in group], axis=0)
                for group in (runs, base or runs)
            )
            values, bounds = (right - before, (-1.0, 1.0)) if base else (right, (0.0, 1.0))
            return mean_estimate(values, bounds, samples=self.samples, seed=self.seed)
        return metric_estimate(
            metric, runs, self.labels, BINARY, base=base, samples=self.samples, seed=self.seed
        )  # fmt: skip

    def calibration(self, names: Sequence[str]) -> Estimates:
        """ECE of all memes of the sets, and Brier score with its interval over memes."""
        stated = np.concatenate([self.of(name).probabilities for name in names])
        true = np.tile(self.labels, len(names))
        losses = [brier_losses(self.of(name).probabilities[:, None], self.labels, BINARY) for name in names]
        brier = mean_estimate(np.mean(losses, axis=0), (0.0, 1.0), samples=self.samples, seed=self.seed)
        return {"ece": reliability(stated, true).error, "brier": brier.as_dict()}

    def abstention(self, names: Sequence[str]) -> Estimates:
        """`coverage` (share that is answered), `accuracy` of what is answered, and `aurc`, means over the sets."""
        answered = np.array([self.of(name).certain >= self.limit for name in names])
        right = np.array([self.right(name) for name in names])
        areas = [aurc(self.of(name).certain, self.right(name)) for name in names]
        shares = mean_estimate(answered.mean(axis=0), (0.0, 1.0), samples=self.samples, seed=self.seed)
        accuracy = float(right[answered].mean()) if answered.any() else None
        return {"coverage": shares.as_dict(), "accuracy": accuracy, "aurc": float(np.mean(areas))}

    def success(self, names: Sequence[str]) -> Estimates:
        """Share of the correctly judged memes of a class that an attack turns, by direction; None without such an
        attack. `unnoticed`: turned, and certain enough to be answered.
        """
        found: Estimates = {}
        for direction, label in DIRECTIONS.items():
            applied = [name for name in names if label in self.classes[name]]
            rows = np.flatnonzero(self.right(CLEAN) & (self.labels == label))
            if not applied or not len(rows):
                found[direction] = found[f"{direction}_unnoticed"] = None
                continue
            turned = np.array([~self.right(name)[rows] for name in applied])
            certain = np.array([self.of(name).certain[rows] >= self.limit for name in applied])
            found[direction] = self._share(turned)
            found[f"{direction}_unnoticed"] = self._share(turned & certain)
        return found

    def _share(self, hits: np.ndarray) -> dict[str, float | str | None]:
        """Mean over V sets and memes [V, Q], with its interval over memes."""
        if len(hits) == 1:
            return rate(hits[0])
        return mean_estimate(hits.mean(axis=0), (0.0, 1.0), samples=self.samples, seed=self.seed).as_dict()

    def group(self, names: Sequence[str]) -> Estimates:
        """Everything about a group of variants."""
        base = [self.run(CLEAN)]
        return {
            "variants": len(names),
            "metrics": self.metrics(names),
            "difference": self.metrics(names, base),
            **self.success(names),
            "calibration": self.calibration(names),
            "abstention": self.abstention(names),
        }

    def clean(self) -> Estimates:
        """The clean memes."""
        return {
            "metrics": self.metrics([CLEAN]),
            "calibration": self.calibration([CLEAN]),
            "abstention": self.abstention([CLEAN]),
        }

    def worst(self, names: Sequence[str]) -> Estimates:
        """The worst case of each meme over the clean set and V variants.

        Returns:
            `accuracy`: share of memes that are judged correctly in every set; `auroc` of the lowest score of each meme
            of class 1 and the highest of each of class 0; `evasion` and `false_alarm`: share of the correctly judged
            memes of a class that at least one variant turns.
        """
        every = np.logical_and.reduce([self.right(name) for name in (CLEAN, *names)])
        scores = np.array([self.of(name).scores for name in (CLEAN, *names)])
        extreme = np.where(self.labels == 1, scores.min(axis=0), scores.max(axis=0))
        threshold = self.found.rules[self.head]["threshold"]
        area = self._estimate("auroc", [ThresholdedScores.binary(extreme, threshold)])
        found: Estimates = {"accuracy": rate(every), "auroc": area.as_dict()}
        for direction, label in DIRECTIONS.items():
            rows = np.flatnonzero(self.right(CLEAN) & (self.labels == label))
            found[direction] = rate(~every[rows]) if len(rows) else None
        return found


def head_results(one: HeadUnderAttack, groups: Mapping[str, Mapping[str, Sequence[str]]]) -> Estimates:
    """Results of a head.

    Args:
        one: The head.
        groups: Kind of group (`variants`, `families`, …) → group → its variants.

    Returns:
        `rule`, `clean`, `suite` (all variants), `worst` and `worst_of` (family → worst case), and a mapping from group
        to its estimates for each kind of group.
    """
    every = list(one.classes)
    return {
        "rule": dict(one.found.rules[one.head]),
        "limit": one.limit,
        "clean": one.clean(),
        "suite": one.group(every),
        "worst": one.worst(every),
        "worst_of": {family: one.worst(names) for family, names in groups["families"].items()},
        **{kind: {name: one.group(names) for name, names in found.items()} for kind, found in groups.items()},
    }


def defence_results(
    one: HeadUnderAttack, base: HeadUnderAttack, families: Mapping[str, Sequence[str]], seen: Sequence[str]
) -> Estimates:
    """What a defended system gains and costs against its base, on the same memes.

    Args:
        one: A head of the defended system.
        base: The same head of the other.
        families: Family → its variants.
        seen: Variants whose attack is among those that the defence was made with; empty where it is not made with any.

    Returns:
        Metrics of the defended system minus those of the base: `clean`, `suite`, `families`, and, where `seen` is not
        empty, `seen` and `unseen`; and `worst`: the worst-case accuracy of both, with the paired difference. Where the
        defence changes no score of the head: `unchanged` alone.
    """
    every = list(one.classes)
    if all(np.array_equal(one.of(name).scores, base.of(name).scores) for name in (DEV, CLEAN, *every)):
        return {"unchanged": True}

    def gain(names: Sequence[str]) -> Estimates | None:
        return one.metrics(names, [base.run(name) for name in names]) if names else None

    right = [np.logical_and.reduce([each.right(name) for name in (CLEAN, *every)]) for each in (base, one)]
    change = mean_estimate(
        right[1].astype(float) - right[0], (-1.0, 1.0), samples=one.samples, seed=one.seed
    )  # fmt: skip
    found = {
        "clean": gain([CLEAN]),
        "suite": gain(every),
        "families": {family: gain(names) for family, names in families.items()},
        "worst": {"base": float(right[0].mean()), "defended": float(right[1].mean()), "difference": change.as_dict()},
    }
    if seen:
        found |= {"seen": gain(list(seen)), "unseen": gain([name for name in every if name not in set(seen)])}
    return found
