"""What the memes of `ra-hmd bank suggest` teach the kernel head, against as many memes drawn at random.

AUROC on test rows, after 8, 32 and 128 memes of a pool were labelled and added to a bank; mean over five draws, and
the paired difference with a 95 % interval (Student's t). Random memes are drawn three times per draw. A draw of digits
(even against odd) is 16 rows as the bank, 984 as the pool, and the others as the test; of the given stores bank and
test stay the same, and the pool is four fifths of its store. Width and noise of the kernel are those of the bank.

    python scripts/bench/bank_suggest.py [--bank DEMO/features/a_train --pool DEMO/features/b_train
        --test DEMO/features/b_test --checkpoint DEMO/stage2 --final --views embedding]
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.stats import t as student
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from ra_hmd.bank.embed_features import embed_store
from ra_hmd.bank_review.settings import SuggestSettings
from ra_hmd.bank_review.suggest import suggest_memes
from ra_hmd.core.problem import BINARY
from ra_hmd.features.test_lock import open_labels
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings, kernel_settings
from ra_hmd.scoring.kernel_classifier import KernelClassifier, fit_kernel_classifier

SEEDS, BUDGETS, RANDOM = range(10, 15), (8, 32, 128), 3
Draw = tuple[KernelClassifier, Embeddings, Embeddings, Embeddings]
"""The kernel head of the bank, the bank, the pool and the test rows."""


def digits() -> Iterator[Draw]:
    """Draws of scikit-learn's digits."""
    data = load_digits()
    rows = Embeddings([str(row) for row in range(len(data.target))], data.target % 2, data.data.astype(np.float32))
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(len(rows))
        bank, pool, test = (rows.select(order[part]) for part in (slice(16), slice(16, 1000), slice(1000, None)))
        yield fit_kernel_classifier(bank, BINARY, KernelSettings()), bank, pool, test


def stores(options: argparse.Namespace) -> Iterator[Draw]:
    """Draws of the given stores."""
    found = [embed_store(options.checkpoint, place) for place in (options.bank, options.pool, options.test)]
    open_labels({options.test: found[2].features}, [options.checkpoint], final=options.final, command="bank_suggest.py")
    bank, pool, test = (one.embeddings for one in found)
    head = fit_kernel_classifier(bank, found[0].problem, kernel_settings(options.views))
    for seed in SEEDS:
        some = np.random.default_rng(seed).permutation(len(pool))[: 4 * len(pool) // 5]
        yield head, bank, pool.select(np.sort(some)), test


def compared(draws: Iterator[Draw]) -> dict[int, np.ndarray]:
    """Budget to AUROC of suggested and of random memes, [draws, 2]; budget 0 to that of the bank alone."""
    auroc: dict[int, list[tuple[float, float]]] = {budget: [] for budget in (0, *BUDGETS)}
    defaults = SuggestSettings()
    for seed, (head, bank, pool, test) in zip(SEEDS, draws, strict=True):

        def measured(rows: np.ndarray, draw: Draw = (head, bank, pool, test)) -> float:
            head, bank, pool, test = draw
            scores = head.with_rows(bank.plus(pool.select(rows))).predict(test, 0).scores[:, 0]
            return float(roc_auc_score(test.labels, scores))

        chosen = suggest_memes(
            head, pool, max(BUDGETS), sample=defaults.sample, candidates=defaults.candidates, seed=seed
        ).rows
        random = np.random.default_rng([seed, 1])
        orders = [random.permutation(len(pool)) for _ in range(RANDOM)]
        for budget, values in auroc.items():
            by_chance = np.mean([measured(order[:budget]) for order in (orders if budget else orders[:1])])
            values.append((measured(chosen[:budget]), float(by_chance)))
    return {budget: np.array(values) for budget, values in auroc.items()}


def main() -> None:
    """Print one line per data set and budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("bank", "pool", "test", "checkpoint"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--views", nargs="+", default=[], help="what the kernel head compares in the given stores")
    parser.add_argument("--final", action="store_true", help="the test store is of a test split")
    options = parser.parse_args()
    sets = {"digits": digits()}
    if options.bank is not None:
        sets["the given stores"] = stores(options)
    print("| data | added | suggested | random | difference |\n|---|---|---|---|---|")
    for name, draws in sets.items():
        for budget, auroc in compared(draws).items():
            gain = auroc[:, 0] - auroc[:, 1]
            half = student.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
            means = " | ".join(f"{value:.3f}" for value in auroc.mean(axis=0))
            difference = f"{gain.mean():+.3f} ± {half:.3f}" if budget else ""
            print(f"| {name} | {budget} | {means} | {difference} |", flush=True)


if __name__ == "__main__":
    main()
