"""The kernel head with few labels, on three public tables, beside the vote and classifiers that are fitted again.

Digits (8 × 8 pixels, even against odd), wine (the first class against the others) and breast cancer come with
scikit-learn. Of each table half is for tests, split by class; of the other half 16, 64 and 256 rows are labelled, as
far as it goes, drawn again for each of the draws. Columns are standardised on the labelled rows. Compared are

- `KRR`: the kernel head, with the default settings (it scales each vector to unit length, as the vote does);
- `RKC`: the vote of the 20 nearest rows by cosine, threshold 0;
- `LRC refit`: logistic regression, fitted on the labelled rows;
- `linear probe`: the same with its penalty chosen by cross-validation;
- `SVM`: a support vector machine with a Gaussian kernel, C = 1.

Accuracy is at the classifiers' own thresholds. Intervals are of the mean over draws (Student's t).

    OMP_NUM_THREADS=1 python scripts/bench/bank_few_labels.py [--draws 10] [--labels 16 64 256] [--output x.json]
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
from scipy import stats
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from ra_hmd.core.problem import Problem
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.kernel_classifier import fit_kernel_classifier
from ra_hmd.scoring.knn_classifier import knn_classify

BINARY = Problem("binary", 1)
FOLDS = 4  # of the linear probe's cross-validation


def tables() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name of each table to its rows [N, D] and labels [N]."""
    digits, wine, cancer = load_digits(), load_wine(), load_breast_cancer()
    return {
        "digits": (digits.data, digits.target % 2),
        "wine": (wine.data, (wine.target == 0).astype(int)),
        "breast cancer": (cancer.data, cancer.target),
    }


def scores_of(rows: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> dict[str, np.ndarray]:
    """Name of each classifier to its scores of Q test rows, above 0 for class 1."""
    bank = Embeddings([f"row {number}" for number in range(len(rows))], labels, rows.astype(np.float32))
    queries = Embeddings([f"test {number}" for number in range(len(asked))], np.zeros(len(asked), int), asked)
    fitted = {
        "LRC refit": LogisticRegression(max_iter=1000),
        "linear probe": LogisticRegressionCV(cv=FOLDS, max_iter=1000),
        "SVM": SVC(),
    }
    return {
        "KRR": fit_kernel_classifier(bank, BINARY, KernelSettings()).predict(queries, 0).scores[:, 0],
        "RKC": knn_classify(queries, bank, Voting(20), BINARY, np.zeros(1)).scores[:, 0],
        **{name: model.fit(rows, labels).decision_function(asked) for name, model in fitted.items()},
    }


def draws_of(rows: np.ndarray, labels: np.ndarray, count: int, draws: int) -> dict[str, np.ndarray]:
    """Name of each classifier to AUROC and accuracy of every draw, [draws, 2]."""
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(draws):
        half, test, half_labels, truth = train_test_split(
            rows, labels, test_size=0.5, stratify=labels, random_state=seed
        )
        chosen, _, chosen_labels, _ = train_test_split(
            half, half_labels, train_size=count, stratify=half_labels, random_state=seed
        )
        scale = StandardScaler().fit(chosen)
        for name, scores in scores_of(scale.transform(chosen), chosen_labels, scale.transform(test)).items():
            accuracy = float(((scores >= 0) == truth).mean())
            found.setdefault(name, []).append((float(roc_auc_score(truth, scores)), accuracy))
    return {name: np.array(values) for name, values in found.items()}


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval."""
    return float(values.mean()), float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))


def main() -> None:
    """Print a table of AUROC and one of accuracy, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.simplefilter("ignore", FutureWarning)
    results = []
    for table, (rows, labels) in tables().items():
        for count in [count for count in options.labels if count < len(rows) // 2]:
            for name, values in draws_of(rows, labels, count, options.draws).items():
                pairs = zip(("auroc", "accuracy"), values.T, strict=True)
                results.append(
                    {"table": table, "labels": count, "classifier": name} | {k: interval(v) for k, v in pairs}
                )
    names = list(dict.fromkeys(result["classifier"] for result in results))
    for metric in ("auroc", "accuracy"):
        print(f"\n| {metric} | labels | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}")
        for first in results[:: len(names)]:
            line = [r for r in results if (r["table"], r["labels"]) == (first["table"], first["labels"])]
            cells = " | ".join("{:.3f} ± {:.3f}".format(*result[metric]) for result in line)
            print(f"| {first['table']} | {first['labels']} | {cells} |")
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
