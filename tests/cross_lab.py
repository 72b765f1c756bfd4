"""Two systems and two data sets for cross-evaluations of a second."""

import numpy as np
import pytest
import yaml
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from ra_hmd.core.artifacts import write_json
from ra_hmd.core.config import load_yaml
from ra_hmd.experiments.cross_eval.config import CrossEvalArguments
from ra_hmd.features.store import read_features

SHOTS, SEEDS = (2, 5), 3


def k_shot(features, path, *, split="train", shots=SHOTS):
    """Lists as `ra-hmd data k-shot` writes them."""
    lists = []
    for count in shots:
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            rows = [rng.permutation(np.flatnonzero(features.labels == label))[:count] for label in (0, 1)]
            lists.append({"shots": count, "seed": seed, "ids": [features.ids[row] for row in np.concatenate(rows)]})
    write_json(path, {"kind": "k_shot", "split": split, "lists": lists})
    return path


@pytest.fixture
def cross(lab):
    """Two systems (one head of one data set each), two data sets; ids occur in both."""
    for number, system in enumerate(("alpha", "beta")):
        lab.head(f"{system}/head")
        for place, target in enumerate(("alpha", "beta")):
            for split, rows in (("train", 60), ("dev", 40)):
                features = lab.features(rows, 10 * place + rows, f"{split}-", domain=float(place), lmh=number == 0)
                lab.store(f"{system}/features/{target}/{split}", features, model=system * 8)
    for target in ("alpha", "beta"):
        k_shot(read_features(lab.folder / f"alpha/features/{target}/train"), lab.folder / f"{target}_k.json")

    def make(**changes):
        values = {
            "systems": {
                name: {
                    "head": str(lab.folder / name / "head"),
                    "features": str(lab.folder / name / "features/{target}/{split}"),
                }
                for name in ("alpha", "beta")
            },
            "targets": {
                name: {"data": f"data/{name}", "split": "dev", "k_shot": str(lab.folder / f"{name}_k.json")}
                for name in ("alpha", "beta")
            },
            "output_dir": str(lab.folder / "out"),
            "topk": 7,
            "bootstrap_samples": 30,
        }
        path = lab.folder / "cross.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return load_yaml(CrossEvalArguments, path, [])

    return make


def cell_of(result, system, target, head, bank=None, shots=None):
    keys = ("system", "target", "head", "bank", "shots")
    (cell,) = [one for one in result["cells"] if tuple(one[key] for key in keys) == (system, target, head, bank, shots)]
    return cell


def check_metrics(cell, scores, labels, threshold):
    predicted = scores >= threshold
    assert cell["auroc"]["value"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert cell["accuracy"]["value"] == pytest.approx(accuracy_score(labels, predicted))
    assert cell["macro_f1"]["value"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert cell["auroc"]["low"] <= cell["auroc"]["value"] <= cell["auroc"]["high"]
