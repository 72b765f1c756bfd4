"""Does Stage 2 help on data that nobody here made? Two of scikit-learn's sets as features, five seeds each.

`digits` (handwritten digits, 64 pixels, even against odd) and `breast_cancer` (30 measurements, malignant against
benign). A fresh head is trained on the training rows alone, for a fixed number of epochs; the KNN vote (RKC) of the
training rows over its embedding is compared on the dev rows with the same vote over the features themselves. Nothing is
chosen on dev. Features are standardised by the training rows' mean and deviation; with `--raw` pixels are used as they
are. The interval is paired, over dev rows, of the mean over seeds.

    python scripts/bench/stage2_real_features.py [--seeds 5] [--raw] [--output result.json]
"""

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from ra_hmd.evaluation.metrics.classification import auroc
from ra_hmd.evaluation.metrics.runs import paired_change
from ra_hmd.features.store import Features, write_features
from ra_hmd.models.head import load_head
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.knn_classifier import knn_classify
from stage2.arguments import Stage2Arguments
from stage2.trainer import run_stage2

SETTINGS = {"metric": "cos", "temperature": 0.1, "proj_dim": 256, "lr": 1e-3, "epochs": 30}
TRAIN_ROWS = {"digits": 200, "breast_cancer": 284}


def splits(name: str, *, raw: bool) -> tuple[Features, Features]:
    """Training and dev features."""
    data = load_digits() if name == "digits" else load_breast_cancer()
    labels = (data.target % 2 if name == "digits" else data.target).astype(np.int64)
    parts = train_test_split(data.data, labels, train_size=TRAIN_ROWS[name], random_state=0, stratify=labels)
    train, dev, train_labels, dev_labels = parts
    if not raw:
        scaler = StandardScaler().fit(train)
        train, dev = scaler.transform(train), scaler.transform(dev)
    return tuple(
        Features([f"{split}-{row}" for row in range(len(rows))], kinds, rows.astype(np.float32))
        for split, rows, kinds in (("train", train, train_labels), ("dev", dev, dev_labels))
    )


def vote(bank: Embeddings, queries: Embeddings) -> np.ndarray:
    """RKC scores [Q]."""
    return knn_classify(queries, bank, Voting()).scores[:, 0]


def measure(name: str, seeds: int, *, raw: bool = False) -> dict[str, Any]:
    """AUROC of the vote before and after, and the paired gain."""
    train, dev = splits(name, raw=raw)
    before = vote(Embeddings(train.ids, train.labels, train.hidden), Embeddings(dev.ids, dev.labels, dev.hidden))
    after = []
    with tempfile.TemporaryDirectory() as folder:
        write_features(Path(folder) / "train", train, {})
        for seed in range(seeds):
            output = Path(folder) / f"seed-{seed}"
            with contextlib.redirect_stdout(io.StringIO()):
                run_stage2(Stage2Arguments(train=Path(folder) / "train", output_dir=output, seed=seed, **SETTINGS))
            head = load_head(output)
            after.append(vote(Embeddings.of(train, head), Embeddings.of(dev, head)))
    areas = [auroc(scores, dev.labels) for scores in after]
    gain = paired_change(after, [before], dev.labels, 0.0, samples=1000, seed=0)
    first = auroc(before, dev.labels)
    return {
        "data": name,
        "train": len(train),
        "dev": len(dev),
        "features": "raw" if raw else "standardised",
        "before": first,
        "after": float(np.mean(areas)),
        "std": float(np.std(areas, ddof=1)) if seeds > 1 else None,
        "seeds": areas,
        "gain": float(np.mean(areas)) - first,
        "low": gain["low"],
        "high": gain["high"],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--raw", action="store_true", help="Features as they are.")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    results = [measure(name, options.seeds, raw=options.raw) for name in TRAIN_ROWS]
    for one in results:
        spread = f" ± {one['std']:.4f}" if one["std"] is not None else ""
        print(
            f"{one['data']} ({one['features']}, {one['train']} train, {one['dev']} dev): RKC AUROC {one['before']:.4f} "
            f"-> {one['after']:.4f}{spread} over {options.seeds} seeds, gain {one['gain']:+.4f} "
            f"[{one['low']:+.4f}, {one['high']:+.4f}]"
        )
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
