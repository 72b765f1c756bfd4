"""How well `ra-hmd bank audit` finds wrong labels: 5 % of a bank's labels are replaced at random, five times.

Precision is the share of the reported rows whose label was replaced, recall the share of the replaced labels that are
reported; mean over the draws with a 95 % interval (Student's t). Labels that were wrong already count as errors of the
audit. Data sets are scikit-learn's and, where they are given, the feature store of a bank with its head.

    python scripts/bench/bank_audit.py [--features DEMO/features/a_train --checkpoint DEMO/stage2] [--noise 0.05]

With `--growth` it prints how long the audit of vectors and labels takes instead, for rows of 128 dimensions around 200
centres, in a bank in a folder.

    OMP_NUM_THREADS=1 python scripts/bench/bank_audit.py --growth 2500 5000 10000 20000 40000
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import t as student
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.embed_features import embed_store
from ra_hmd.bank.versions import BankRows
from ra_hmd.bank_review.audit import audit_labels
from ra_hmd.bank_review.reviewed_bank import ReviewedBank
from ra_hmd.bank_review.settings import AuditSettings
from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.scoring.kernel_classifier import fit_kernel_classifier
from ra_hmd.scoring.label_audit import find_contradictions

SEEDS = range(10, 15)


def rows_of(vectors: np.ndarray, labels: np.ndarray) -> Embeddings:
    """Rows of a table of numbers, whose columns are standardised: the kernel head compares vectors of unit length."""
    scaled = (vectors - vectors.mean(axis=0)) / np.where(vectors.std(axis=0) > 0, vectors.std(axis=0), 1)
    return Embeddings([str(row) for row in range(len(labels))], labels.astype(np.int64), scaled.astype(np.float32))


def data_sets(options: argparse.Namespace) -> Iterator[tuple[str, Embeddings, Problem]]:
    """Name, rows and kind of label of each bank."""
    if options.features:
        found = embed_store(options.checkpoint, options.features)
        yield "the given bank", found.embeddings, found.problem
    digits, wine, cancer = load_digits(), load_wine(), load_breast_cancer()
    plain = Embeddings([str(row) for row in range(len(digits.target))], digits.target % 2, digits.data)
    yield "digits, even against odd", plain, BINARY
    yield "digits, ten classes", replace(plain, labels=digits.target), Problem("single_label", 10)
    yield "wine, three classes", rows_of(wine.data, wine.target), Problem("single_label", 3)
    yield "breast cancer", rows_of(cancer.data, cancer.target), BINARY


def planted(rows: Embeddings, problem: Problem, noise: float, seed: int) -> tuple[Embeddings, np.ndarray]:
    """The rows with a share of wrong labels, and which have one."""
    draws = np.random.default_rng(seed)
    wrong = draws.permutation(len(rows))[: round(noise * len(rows))]
    labels = rows.labels.copy()
    labels[wrong] = (labels[wrong] + draws.integers(1, problem.classes, len(wrong))) % problem.classes
    return replace(rows, labels=labels), np.isin(np.arange(len(rows)), wrong)


def audited_in(count: int) -> str:
    """A line of the second table: the time of an audit of drawn rows."""
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 2, count)
    centres = draws.normal(size=(200, 128))
    vectors = (centres[2 * draws.integers(0, 100, count) + labels] + draws.normal(size=(count, 128))).astype(np.float32)
    rows = BankRows([f"m{row}" for row in range(count)], labels)
    with tempfile.TemporaryDirectory() as folder:
        said = {"fingerprint": {}, "author": "bench", "reason": "bench"}
        with Bank.create(Path(folder) / "bank", rows, vectors, **said) as bank:
            reviewed = ReviewedBank(bank, rows, BINARY, {}, {}, {}, {})
            began = time.perf_counter()
            found = audit_labels(reviewed, AuditSettings())
            seconds = time.perf_counter() - began
    return f"| {count:,} | {found.kernel['method']} | {seconds:.1f} | {1000 * seconds / count:.2f} |"


def interval(values: list[float]) -> str:
    """Mean and 95 % interval."""
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {half:.3f}"


def main() -> None:
    """Print one line per bank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--growth", type=int, nargs="+", default=[])
    options = parser.parse_args()
    if options.growth:
        print("| rows | method | seconds | ms per row |\n|---|---|---|---|")
        for count in options.growth:
            print(audited_in(count), flush=True)
        return
    if (options.features is None) != (options.checkpoint is None):
        parser.error("give both --features and --checkpoint, or neither")
    print("| bank | rows | reported without planted labels | precision | recall |\n|---|---|---|---|---|")
    for name, rows, problem in data_sets(options):
        clean = fit_kernel_classifier(rows, problem, KernelSettings()).leave_one_out()
        already = find_contradictions(clean, rows.labels, problem).contradicted.sum()
        precision, recall = [], []
        for seed in SEEDS:
            noisy, wrong = planted(rows, problem, options.noise, seed)
            scores = fit_kernel_classifier(noisy, problem, KernelSettings()).leave_one_out()
            found = find_contradictions(scores, noisy.labels, problem).contradicted
            precision.append((found & wrong).sum() / max(found.sum(), 1))
            recall.append((found & wrong).sum() / wrong.sum())
        print(f"| {name} | {len(rows):,} | {already} | {interval(precision)} | {interval(recall)} |", flush=True)


if __name__ == "__main__":
    main()
