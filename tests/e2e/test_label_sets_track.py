"""Sets of 22 labels from raw files to verdicts, by the commands: Propaganda's layout, an encoder, both trainings.

Every number of the evaluation is computed again, by scikit-learn and by loops.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from engines import ROOT
from meme_files import jsonl, picture
from scipy.special import expit
from sklearn.metrics import accuracy_score, hamming_loss, precision_recall_fscore_support, roc_auc_score
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.data.readers.propaganda import TECHNIQUES
from ra_hmd.features.store import Features, read_features
from ra_hmd.models.head import load_head, read_head_config
from ra_hmd.retrieval.embeddings import hidden_tensor, run_head

pytestmark = pytest.mark.slow

C = 22
ROWS = {"train": 60, "val": 30, "test": 40}
TOPICS = ("tea", "rain", "cats", "maps", "bread", "snow")
TOPK = 7


def ra_hmd(*words: Any) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, f"{words}\n{done.output}\n{done.exception!r}"
    return done.output


def raw(root: Path) -> Path:
    """A made copy: a few common techniques, many rare ones, one that a single meme has, and memes without any."""
    rng = random.Random(0)
    number = 0
    for split, rows in ROWS.items():
        lines = []
        for row in range(rows):
            number += 1
            common = [name for name in TECHNIQUES[:4] if rng.random() < 0.4]
            rare = [rng.choice(TECHNIQUES[4:-1])] if row % 3 else []
            labels = common + rare if number > 1 else [TECHNIQUES[-1]]
            image = f"{number}_image_batch_1.png"
            picture(root / "defaults/images" / image, "JPEG")
            text = " and ".join(rng.sample(TOPICS, 2)) + f"\n\n{number}"
            lines.append({"id": f"{number}_batch_1", "labels": labels, "text": text, "image": image})
        jsonl(root / "defaults/annotations" / f"{split}.jsonl", lines)
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything up to the report, by the shipped configurations at a small size."""
    folder = tmp_path_factory.mktemp("propaganda")
    ra_hmd("data", "import", "propaganda", raw(folder / "raw"), "--output", folder / "imported")
    ra_hmd("tiny-encoder", "--output", folder / "encoder")
    for split in ROWS:
        words = ["--data", folder / "imported", "--split", split, "--task", "techniques", "--workers", "0"]
        ra_hmd("encode", "--encoder", folder / "encoder", *words, "--output", folder / "features" / split)
    stores = [f"train={folder / 'features/train'}", f"dev={folder / 'features/val'}"]
    small = ["map_dim=16", "proj_dim=16", "num_layers=2", "epochs=2"]
    ra_hmd("train-head", ROOT / "configs/hateclipper/propaganda_align.yaml", *stores, *small,
           f"output_dir={folder / 'hateclipper'}")  # fmt: skip
    shape = [f"{name}=null" for name in INHERITED]
    ra_hmd("stage2", ROOT / "configs/rgcl/propaganda.yaml", *stores, "epochs=2", f"topk={TOPK}", *shape,
           f"init_head={folder / 'hateclipper'}", f"output_dir={folder / 'rgcl'}")  # fmt: skip
    ra_hmd("evaluate", "--checkpoint", folder / "rgcl", "--bank", folder / "features/train", "--queries",
           folder / "features/test", "--topk", TOPK, "--bootstrap-samples", 100, "--final",
           "--output", folder / "report")  # fmt: skip
    return folder


INHERITED = ("fusion", "map_dim", "num_layers", "proj_dim", "embedding", "problem_type", "output_dim")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def naive_votes(queries: np.ndarray, bank: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """RKC per label, one meme and one label at a time: weights K, K − 1, … over the cosines."""
    scores = np.zeros((len(queries), C))
    for row, query in enumerate(queries.astype(np.float64)):
        cosines = [
            float(query @ other / max(np.linalg.norm(query) * np.linalg.norm(other), 1e-30))
            for other in bank.astype(np.float64)
        ]
        nearest = sorted(range(len(bank)), key=lambda other: (-cosines[other], other))[:TOPK]
        for c in range(C):
            total = sum(
                (TOPK - rank) * (1 if labels[other, c] else -1) * cosines[other] for rank, other in enumerate(nearest)
            )
            scores[row, c] = total / sum(range(1, TOPK + 1))
    return scores


def test_labels_of_the_store_are_those_of_the_files(run: Path) -> None:
    for split, rows in ROWS.items():
        store = read_features(run / "features" / split)
        told = {line["id"]: set(line["labels"]) for line in read_lines(run / f"raw/defaults/annotations/{split}.jsonl")}
        assert store.labels.shape == (rows, C)
        for name, member in zip(store.ids, store.labels, strict=True):
            assert {TECHNIQUES[c] for c in np.flatnonzero(member)} == told[name]
        assert store.manifest.source.to_json() | {"place": ""} == {
            "dataset": "propaganda", "split": split, "task": "techniques", "place": ""
        }  # fmt: skip
    assert 0 < (store.labels.sum(axis=1) == 0).sum() < rows


def test_both_heads_are_fused_and_multi_label(run: Path) -> None:
    for name in ("hateclipper", "rgcl"):
        config = read_head_config(run / name)
        assert (config.problem_type, config.output_dim) == ("multi_label", C)
        assert config.fusion is not None
        assert config.fusion.kind == "align"
    first, second = load_head(run / "hateclipper"), load_head(run / "rgcl")
    history = json.loads((run / "rgcl/history.json").read_text())
    changed = any(not a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert changed == (history["best_epoch"] > 0)
    assert yaml.safe_load((ROOT / "configs/rgcl/propaganda.yaml").read_text())["loss"] == "contrastive"


def test_mined_positives_share_a_technique(run: Path) -> None:
    """A positive is found wherever a meme has a technique in common, or both none; who has no such is counted."""
    labels = read_features(run / "features/train").labels
    alike = (labels @ labels.T > 0) | ((labels.sum(axis=1) == 0)[:, None] & (labels.sum(axis=1) == 0)[None])
    np.fill_diagonal(alike, False)
    assert not alike[0].any()
    searches = json.loads((run / "rgcl/mining.json").read_text())["searches"]
    assert len(searches) >= 2
    for search in searches:
        assert search["positives"]["anchors_short"] == int((~alike.any(axis=1)).sum())
        assert search["hard_negatives"]["anchors_short"] == int((alike.sum(axis=1) == len(labels) - 1).sum())


@pytest.mark.parametrize("head", ["lrc", "rkc"])
def test_every_metric_is_recomputed_from_the_raw_features(run: Path, head: str) -> None:
    test, bank = read_features(run / "features/test"), read_features(run / "features/train")
    model = load_head(run / "rgcl")

    def seen(features: Features) -> tuple[np.ndarray, np.ndarray]:
        embedding, logits = run_head(model, hidden_tensor(features))
        return embedding.numpy(), logits.double().numpy()

    embedding, logits = seen(test)
    scores = expit(logits) if head == "lrc" else naive_votes(embedding, seen(bank)[0], bank.labels)
    lines = read_lines(run / "report/predictions.jsonl")
    assert np.array([line[f"{head}_score"] for line in lines]) == pytest.approx(scores, abs=1e-5)
    assert [line["label"] for line in lines] == test.labels.tolist()
    # Rounding of a score at its threshold must not decide the comparison.
    stated = np.array([line[f"{head}_score"] for line in lines])
    verdicts = (stated >= (0.5 if head == "lrc" else 0)).astype(int)
    metrics = json.loads((run / "report/metrics.json").read_text())["test"][head]
    known = [c for c in range(C) if 0 < test.labels[:, c].sum() < len(test)]
    assert 0 < len(known) < C  # a class without members, or with nothing else, has no AUROC
    assert test.labels[:, known].sum(axis=0).min() == 1
    expected = {
        "accuracy": accuracy_score(test.labels, verdicts),
        "pair_accuracy": 1 - hamming_loss(test.labels, verdicts),
        "auroc": np.mean([roc_auc_score(test.labels[:, c], stated[:, c]) for c in known]),
        "micro_auroc": roc_auc_score(test.labels.ravel(), stated.ravel()),
    }
    for average in ("macro", "micro"):
        values = precision_recall_fscore_support(test.labels, verdicts, average=average, zero_division=0)
        expected |= {f"{average}_{name}": values[place] for place, name in enumerate(("precision", "recall", "f1"))}
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        assert metrics[name]["value"] == pytest.approx(value, abs=1e-9), name
        if name == "auroc":  # its mean has a class with a single member
            assert metrics[name]["why"] == "too few"
        else:
            assert metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"]
    classes = json.loads((run / "report/analysis.json").read_text())["test"]["classes"][head]
    assert [row["memes"] for row in classes] == test.labels.sum(axis=0).tolist()
    assert (classes[0]["auroc"]["value"]) == pytest.approx(roc_auc_score(test.labels[:, 0], stated[:, 0]))


def test_predictions_of_label_sets(run: Path) -> None:
    ra_hmd("predict", "--checkpoint", run / "rgcl", "--queries", run / "features/test", "--bank",
           run / "features/train", "--head", "rkc", "--topk", TOPK, "--output", run / "out.jsonl")  # fmt: skip
    known = read_lines(run / "report/predictions.jsonl")
    for line, other in zip(read_lines(run / "out.jsonl"), known, strict=True):
        assert line["score"] == other["rkc_score"]
        assert line["verdict"] == [int(score >= 0) for score in line["score"]]
        assert np.sum([row["vote"] for row in line["neighbours"]], axis=0) == pytest.approx(np.array(line["score"]))


def test_the_results_page_has_micro_f1_beside_the_published_one(run: Path) -> None:
    ra_hmd("results", run / "report", "--output", run / "results.md")
    page = json.loads((run / "results.json").read_text())
    assert page["columns"] == [{"dataset": "propaganda", "task": "techniques", "split": "test", "role": "test"}]
    measured = {one["head"]: one for one in page["results"] if one["origin"] == "measured"}
    metrics = json.loads((run / "report/metrics.json").read_text())["test"]
    assert measured["LRC"]["system"] == "RGCL align-1, encoder"
    vote = f"RKC, K = {TOPK}, arithmetic weights, cosine"
    assert measured[vote]["metrics"]["micro_f1"] == metrics["rkc"]["micro_f1"]
    (cross,) = [one for one in page["results"] if one["system"] == "Hate-CLIPper cross-1"]
    assert (cross["origin"], cross["metrics"]["micro_f1_doubtful"]["printed"]) == ("published", "90.41")
