"""How often the 95 % intervals hold the true value, against the percentile bootstrap, and how long they take.

    python scripts/bench/interval_coverage.py                 # prints the table of docs/evaluation.md
    python scripts/bench/interval_coverage.py --sets 200      # fewer sets of memes per line

Scores of the two classes are drawn from two normal distributions of width 1, half of the memes each (or the share that
the line states), so that every true value is known; `ties` are scores rounded to whole numbers, `hidden` positives of
which a tenth looks like negatives. The threshold is in the middle. It is statistics: the figures depend on the seeds,
which are fixed, and not on the machine. The last line is a ratio of times that does.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from sklearn.metrics import f1_score, roc_auc_score

from ra_hmd.core.markdown import markdown_table
from ra_hmd.evaluation.metrics.estimates import ThresholdedScores, metric_estimate
from ra_hmd.evaluation.metrics.runs import paired_change

NAMES = ("accuracy", "recall", "f1", "macro_f1", "auroc")
_MANY = 400_000  # memes by which a true value that has no formula is known


@dataclass(frozen=True)
class World:
    """Where memes come from.

    Attributes:
        title: Of its lines.
        shift: Distance of the two classes.
        positives: Share of class 1.
        round: Whether scores are whole numbers.
        hidden: Share of class 1 that looks like class 0.
    """

    title: str
    shift: float
    positives: float = 0.5
    round: bool = False
    hidden: float = 0.0

    def draw(self, memes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Scores and labels; at least two memes of each class."""
        while True:
            labels = (rng.random(memes) < self.positives).astype(np.int64)
            seen = (labels == 1) & (rng.random(memes) >= self.hidden)
            scores = rng.normal(size=memes) + self.shift * seen
            if 2 <= labels.sum() <= memes - 2:
                return (scores.round() if self.round else scores), labels

    def truth(self) -> dict[str, float]:
        """Metric → its value over very many memes."""
        scores, labels = self.draw(_MANY, np.random.default_rng(12345))
        positive = scores >= self.shift / 2
        tp, fp, fn = (
            (positive & (labels == 1)).sum(),
            (positive & (labels == 0)).sum(),
            (~positive & (labels == 1)).sum(),
        )
        return {
            "accuracy": float((positive == labels).mean()),
            "recall": float(tp / (tp + fn)),
            "f1": float(2 * tp / (2 * tp + fp + fn)),
            "macro_f1": float(f1_score(labels, positive, average="macro")),
            "auroc": float(roc_auc_score(labels, scores)),
        }


WORLDS = (
    World("far apart", 3.5),
    World("apart", 2.0),
    World("near", 1.0),
    World("far apart, 1 in 5", 3.5, positives=0.2),
    World("apart, 1 in 10", 2.0, positives=0.1),
    World("apart, ties", 2.0, round=True),
    World("far apart, hidden", 3.5, hidden=0.1),
)
SIZES = (10, 20, 50, 200, 500)


def ours(name: str, scores: np.ndarray, labels: np.ndarray, threshold: float) -> tuple[float, float] | None:
    """This package's interval; None where there are too few."""
    found = metric_estimate(name, [ThresholdedScores.binary(scores, threshold)], labels, samples=500, seed=0)
    return None if found.low is None or found.high is None else (found.low, found.high)


def percentile(name: str, scores: np.ndarray, labels: np.ndarray, threshold: float) -> tuple[float, float] | None:
    """The percentile bootstrap's, of 500 resamples; those in which the metric is undefined are left out."""
    memes, rng = len(labels), np.random.default_rng(0)
    counts = rng.multinomial(memes, np.full(memes, 1 / memes), size=500).astype(float)  # of each meme in each resample
    positive, member = scores >= threshold, labels == 1
    tp, fp, fn = (counts @ cell.astype(float) for cell in (positive & member, positive & ~member, ~positive & member))
    tn = memes - tp - fp - fn
    with np.errstate(divide="ignore", invalid="ignore"):
        f1, other = 2 * tp / (2 * tp + fp + fn), 2 * tn / (2 * tn + fp + fn)
        won = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
        pairs = ((counts * member) @ (won * ~member) * counts).sum(axis=1)
        values = {
            "accuracy": (tp + tn) / memes,
            "recall": tp / (tp + fn),
            "f1": f1,
            "macro_f1": (f1 + other) / 2,
            "auroc": pairs / ((tp + fn) * (fp + tn)),
        }[name]
    known = values[np.isfinite(values)]
    return tuple(np.quantile(known, (0.025, 0.975))) if len(known) else None


def coverage(world: World, memes: int, sets: int, method: Callable[..., tuple[float, float] | None]) -> dict[str, str]:
    """Metric → share of sets whose interval holds the truth, of those that have one; `–` where fewer than half do."""
    truth, rng = world.truth(), np.random.default_rng(memes)
    held: dict[str, list[bool]] = {name: [] for name in NAMES}
    for _ in range(sets):
        scores, labels = world.draw(memes, rng)
        for name in NAMES:
            ends = method(name, scores, labels, world.shift / 2)
            if ends is not None:
                held[name].append(ends[0] - 1e-9 <= truth[name] <= ends[1] + 1e-9)
    return {name: f"{np.mean(found):.2f}" if len(found) >= sets / 2 else "–" for name, found in held.items()}


def paired_coverage(memes: int, sets: int) -> dict[str, str]:
    """Metric → share of sets whose paired interval holds the true difference of two scores that err alike."""
    rng, shifts = np.random.default_rng(memes), (1.0, 1.3)
    truth = {
        "accuracy": norm.cdf(shifts[1]) - norm.cdf(shifts[0]),
        "auroc": norm.cdf(shifts[1] * np.sqrt(2)) - norm.cdf(shifts[0] * np.sqrt(2)),
    }
    held: dict[str, list[bool]] = {name: [] for name in truth}
    for _ in range(sets):
        labels = rng.permutation(np.arange(memes) % 2)
        shared = 0.8 * rng.normal(size=memes)
        first, second = (s * (2 * labels - 1) + shared + 0.6 * rng.normal(size=memes) for s in shifts)
        for name, inside in held.items():
            found = paired_change([second], [first], labels, 0.0, samples=500, seed=0, name=name)
            if found["low"] is not None:
                inside.append(found["low"] <= truth[name] <= found["high"])
    return {name: f"{np.mean(found):.2f}" for name, found in held.items()}


def seconds(memes: int) -> float:
    """Of all metrics with intervals on so many memes."""
    scores, labels = World("", 2.0).draw(memes, np.random.default_rng(0))
    start = time.perf_counter()
    for name in NAMES:
        metric_estimate(name, [ThresholdedScores.binary(scores, 1.0)], labels, samples=1000, seed=0)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=400, help="sets of memes per line")
    parser.add_argument("--bootstrap-sets", type=int, default=400, help="sets for the bootstrap; 0: none")
    options = parser.parse_args()
    rows = []
    for world in WORLDS:
        for memes in SIZES:
            found = coverage(world, memes, options.sets, ours)
            old = (
                coverage(world, memes, options.bootstrap_sets, percentile)
                if options.bootstrap_sets and memes <= 200
                else {}
            )
            rows.append([world.title, str(memes),
                         *(f"{found[name]} ({old[name]})" if old else found[name] for name in NAMES)])  # fmt: skip
    header = ["classes", "memes", *NAMES]
    print(f"\n{options.sets} sets per line, in brackets the percentile bootstrap on {options.bootstrap_sets}\n")
    print(markdown_table(header, rows))
    paired = [[str(memes), *paired_coverage(memes, options.sets).values()] for memes in SIZES]
    print("\nDifference of two heads on the same memes\n")
    print(markdown_table(["memes", "accuracy", "auroc"], paired))
    print(f"\n100,000 memes take {seconds(100_000) / seconds(1000):.1f} times as long as 1,000.")


if __name__ == "__main__":
    main()
