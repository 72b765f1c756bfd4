"""More than two classes, and label sets: losses, mining, a whole run."""

import numpy as np
import pytest
import torch
from json_files import read_json
from sklearn.metrics import f1_score, roc_auc_score

from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import Problem
from ra_hmd.features.store import Features, read_features
from ra_hmd.models.head import load_head
from ra_hmd.models.losses import Objective, class_weights, weights_of
from ra_hmd.retrieval.embeddings import Embeddings, hidden_tensor, run_head
from ra_hmd.retrieval.voting import Voting
from stage2.losses.contrastive import contrastive_loss
from stage2.losses.similarity import Similarity, same_class
from stage2.mining import alike, mine
from stage2.trainer import run_stage2

KINDS = 4


def class_features(rows: int, seed: int, prefix: str, *, multi: bool) -> Features:
    """KINDS directions of the hidden state; a meme has one of them, or any number."""
    rng = np.random.default_rng(seed)
    member = rng.random((rows, KINDS)) < 0.35 if multi else np.eye(KINDS, dtype=bool)[rng.integers(0, KINDS, rows)]
    hidden = 1.5 * rng.normal(size=(rows, 16))
    hidden[:, :KINDS] += 3 * member
    labels = member.astype(np.int64) if multi else member.argmax(axis=1)
    return Features([f"{prefix}{row}" for row in range(rows)], labels, hidden.astype(np.float32))


@pytest.mark.parametrize("multi", [False, True])
def test_a_run_learns_and_its_dev_scores_are_scikit_learns(world, multi):
    kind = "multi_label" if multi else "single_label"
    world.store("c_train", class_features(500, 0, "t", multi=multi))
    dev = class_features(200, 1, "d", multi=multi)
    world.store("c_dev", dev)
    args = world.arguments(
        train=world.folder / "c_train", dev=world.folder / "c_dev", problem_type=kind, output_dim=KINDS, epochs=6,
        class_weights="effective_number", classification_loss="focal", select_by="dev_rkc_macro_f1",
    )  # fmt: skip
    result = run_stage2(args)
    # Sets that share one of several classes count as alike, so neighbours say less of each class.
    assert result["dev"]["dev_rkc_auroc"] > result["dev_before"]["dev_rkc_auroc"] + (0.005 if multi else 0.05)
    assert result["dev"]["dev_lrc_auroc"] > 0.8
    head, problem = load_head(args.output_dir), Problem(kind, KINDS)
    assert head.config.problem == problem
    bank = Embeddings.of(read_features(args.train), head)
    rkc = Voting().vote(bank.nearest(Embeddings.of(dev, head), 20), bank.labels, problem).scores
    lrc = problem.probabilities(run_head(head, hidden_tensor(dev))[1]).numpy()
    member = problem.membership(dev.labels)
    for name, scores, threshold in (("rkc", rkc, 0), ("lrc", lrc, 0.5)):
        predicted = (scores >= threshold).astype(int) if multi else scores.argmax(axis=1)
        expected = {
            "auroc": roc_auc_score(member, scores, average="macro"),
            "accuracy": (predicted == dev.labels).all(axis=1).mean() if multi else (predicted == dev.labels).mean(),
            "macro_f1": f1_score(dev.labels, predicted, average="macro"),
        }
        for metric, value in expected.items():
            assert result["dev"][f"dev_{name}_{metric}"] == pytest.approx(value, abs=1e-6), (name, metric)
    last = read_json(args.output_dir / "mining.json").searches[-1]
    assert last.positives.anchors_short == last.hard_negatives.anchors_short == 0


def test_label_sets_that_overlap_are_alike_and_empty_sets_too():
    labels = torch.tensor([[1, 0, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 0]])
    expected = [
        [True, True, False, False, False],
        [True, True, False, False, False],
        [False, False, True, False, False],
        [False, False, False, True, True],
        [False, False, False, True, True],
    ]
    assert same_class(labels).tolist() == expected
    assert [alike(labels.numpy(), row).tolist() for row in labels.numpy()] == expected


def test_mining_of_label_sets_equals_brute_force():
    store = class_features(80, 3, "m", multi=True)
    mined = mine(store.hidden, store.labels, store.ids, positives=2, hard_negatives=3, similarity=Similarity("cos"))
    unit = store.hidden / np.linalg.norm(store.hidden, axis=1, keepdims=True)
    for near, same in ((mined.positives, True), (mined.hard_negatives, False)):
        for anchor in range(80):
            allowed = [
                row for row in range(80) if row != anchor
                and (bool((store.labels[row] & store.labels[anchor]).any())
                     or not (store.labels[row].any() or store.labels[anchor].any())) == same
            ]  # fmt: skip
            best = sorted((float(unit[anchor] @ unit[row]) for row in allowed), reverse=True)[: near.rows.shape[1]]
            found = near.similarity[anchor][near.present[anchor]]
            assert found == pytest.approx(best, abs=1e-5)


def test_contrastive_of_label_sets_against_a_loop():
    rng = np.random.default_rng(0)
    anchors = torch.tensor(rng.normal(size=(6, 5)))
    labels = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0], [1, 0], [0, 0]])
    rows, mask = torch.tensor(rng.normal(size=(6, 2, 5))), torch.ones(6, 2, dtype=torch.bool)
    hard = torch.tensor(rng.normal(size=(6, 1, 5)))
    found = contrastive_loss(anchors, labels, rows, mask, hard, mask[:, :1], similarity=Similarity("ip"))
    losses = []
    for i in range(6):
        p = np.mean([np.exp(float(anchors[i] @ rows[i, k]) / 5) for k in range(2)])
        h = np.exp(float(anchors[i] @ hard[i, 0]) / 5)
        n = sum(
            np.exp(float(anchors[i] @ anchors[j]) / 5) for j in range(6)
            if not (labels[i] * labels[j]).any() and (labels[i].any() or labels[j].any())
        )  # fmt: skip
        losses.append(-np.log(p / (p + h + n)))
    assert found.item() == pytest.approx(np.mean(losses), abs=1e-9)


@pytest.mark.parametrize("kind", ["binary", "single_label", "multi_label"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_classification_losses_against_a_loop(kind, gamma):
    rng = np.random.default_rng(1)
    outputs = 1 if kind == "binary" else 3
    logits = torch.tensor(rng.normal(size=(7, outputs)), requires_grad=True)
    shape = (7, 3) if kind == "multi_label" else 7
    labels = torch.tensor(rng.integers(0, 3 if kind == "single_label" else 2, shape))
    weights = torch.tensor(rng.random(7) + 0.1)
    terms, shares = [], []
    for i in range(7):
        if kind == "single_label":
            z = np.exp(logits[i].detach().numpy())
            true = [z[labels[i]] / z.sum()]
        else:
            p = 1 / (1 + np.exp(-logits[i].detach().numpy()))
            true = [p[c] if labels[i].reshape(-1)[c] == 1 else 1 - p[c] for c in range(outputs)]
        terms += [-((1 - t) ** gamma) * np.log(t) for t in true]
        shares += [weights[i].item()] * len(true)
    objective = Objective(Problem(kind, outputs), gamma)
    assert objective(logits, labels).item() == pytest.approx(np.mean(terms), abs=1e-9)
    assert objective(logits, labels, weights).item() == pytest.approx(np.average(terms, weights=shares), abs=1e-9)
    assert torch.autograd.gradcheck(lambda x: objective(x, labels, weights), logits)


def test_class_weights_by_hand():
    labels = np.array([0, 0, 0, 1])
    binary = Problem()
    assert class_weights(labels, binary, "none") is None
    assert class_weights(labels, binary, "balanced") == pytest.approx([2 / 3, 2])
    beta = 0.5
    raw = np.array([(1 - beta) / (1 - beta**3), (1 - beta) / (1 - beta)])
    expected = raw / (raw * [3, 1]).sum() * 4
    assert class_weights(labels, binary, "effective_number", beta) == pytest.approx(expected)
    sets = np.array([[1, 0], [0, 0], [0, 1], [1, 1]])
    weights = class_weights(sets, Problem("multi_label", 2), "balanced")
    assert weights == pytest.approx(np.ones((2, 2)))
    rare = class_weights(np.array([[1], [0], [0], [0]]), Problem("multi_label", 1), "balanced")
    assert weights_of(torch.tensor([[1], [0]]), torch.tensor(rare)).reshape(-1).tolist() == pytest.approx([2, 2 / 3])


def test_labels_that_do_not_fit_the_problem_are_refused(world):
    world.store("sets", class_features(20, 0, "s", multi=True))
    with pytest.raises(UserError, match="has 4 labels per row; `problem_type: binary` needs one"):
        run_stage2(world.arguments(train=world.folder / "sets"))
    with pytest.raises(UserError, match="has 4 classes; `problem_type: multi_label` with `output_dim: 3`"):
        run_stage2(world.arguments(train=world.folder / "sets", problem_type="multi_label", output_dim=3))
    with pytest.raises(UserError, match="single_label` needs two or more outputs"):
        world.arguments(problem_type="single_label")
    with pytest.raises(UserError, match="has one output, not 3"):
        world.arguments(output_dim=3)
