"""Auxiliary losses: what the memes' extras say, and the losses against loops."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import UNLABELLED, Problem
from ra_hmd.features.store import read_features
from ra_hmd.training.auxiliary_losses import fine_loss, fine_tasks
from ra_hmd.training.classification import ClassificationTrainer, train_head
from ra_hmd.training.inputs import initial_head


def test_fine_labels_are_read_from_the_extras(features):
    extras = [{"kind": 2, "tags": [0, 2]}, {"kind": None, "tags": []}, {"tags": [3]}, {"kind": 0, "tags": None}]
    kind, tags = fine_tasks(features(4, 0, "x", extras=extras), ["kind", "tags"], "store")
    assert kind.problem == Problem("single_label", 3)
    assert kind.targets.tolist() == [2, UNLABELLED, UNLABELLED, 0]
    assert tags.problem == Problem("multi_label", 4)
    assert tags.targets.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1], [UNLABELLED] * 4]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", "b"], r"'kind' of meme 'x0' in store is 'a', not a class index or a list"),
        ([0, True], r"meme 'x1' in store is True, not a class index"),
        ([0, -1], r"meme 'x1' in store is -1, not a class index"),
        ([[0], 1], r"meme 'x1' in store is 1, not a list of class indices"),
        ([[0], [0.5]], r"meme 'x1' in store is \[0.5\]"),
        ([1, 1], r"have class 1 only of 'kind'; there is nothing to learn"),
        ([None, None], r"have no class of 'kind'"),
        ([[], []], r"have no class of 'kind'"),
    ],
)
def test_fine_labels_that_cannot_be_learnt_are_refused(features, values, message):
    store = features(2, 0, "x", extras=[{"kind": value} for value in values])
    with pytest.raises(UserError, match=message):
        fine_tasks(store, ["kind"], "store")


def test_unknown_fields_are_told_with_the_known_ones(features):
    with pytest.raises(UserError, match=r"(?s)store has both, shown.*'kind' is no field"):
        fine_tasks(features(3, 0, "x"), ["kind", "shown"], "store")
    with pytest.raises(UserError, match="has no further fields"):
        fine_tasks(features(3, 0, "x", extras=None), ["kind"], "store")


def test_fine_losses_against_a_loop():
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(5, 3)))
    single = torch.tensor([2, UNLABELLED, 0, 1, UNLABELLED])
    terms = [
        -np.log(np.exp(row[c]) / np.exp(row).sum()) for row, c in zip(logits.numpy(), single, strict=True) if c >= 0
    ]
    assert fine_loss(logits, single, Problem("single_label", 3)).item() == pytest.approx(np.mean(terms), abs=1e-9)
    sets = torch.tensor([[1, 0, 1], [0, 0, 0], [UNLABELLED] * 3, [1, 1, 1], [UNLABELLED] * 3])
    terms = [
        -np.log(p if y == 1 else 1 - p)
        for row, target in zip(1 / (1 + np.exp(-logits.numpy())), sets.numpy(), strict=True)
        for p, y in zip(row, target, strict=True)
        if y >= 0
    ]
    assert fine_loss(logits, sets, Problem("multi_label", 3)).item() == pytest.approx(np.mean(terms), abs=1e-6)


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_a_batch_without_fine_labels_costs_nothing_and_stays_in_the_graph(kind):
    logits = torch.randn(4, 3, requires_grad=True)
    targets = torch.full((4, 3) if kind == "multi_label" else (4,), UNLABELLED)
    loss = fine_loss(logits, targets, Problem(kind, 3))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


def mlp(state: dict[str, torch.Tensor], prefix: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and embedding of a head of one block, from its weights."""
    hidden = torch.relu(x @ state[f"{prefix}layers.0.weight"].T + state[f"{prefix}layers.0.bias"])
    return hidden @ state[f"{prefix}output.weight"].T + state[f"{prefix}output.bias"], hidden


def test_the_whole_loss_against_its_parts_by_hand(encoded):
    """Weights of classes and focal loss included; from the raw weights, not by the modules."""
    dry = {"map_dropout": 0.0, "input_dropout": 0.0, "dropout": (0.0,)}
    aux = {"image_loss": 0.5, "text_loss": 2.0, "fine_grained_loss": 0.25, "fine_grained": ("shown", "both")}
    args = encoded.head(**dry, **aux, class_weights="balanced", classification_loss="focal", dev=None)
    train = read_features(args.train)
    torch.manual_seed(0)
    trainer = ClassificationTrainer(args, initial_head(args, train), train, None, torch.device("cpu"))
    rows = torch.arange(0, 40, 3)
    found = dict(zip(trainer.losses, trainer._losses(rows).tolist(), strict=True))

    state = {name: value.detach() for name, value in trainer.model.named_parameters()}
    x, labels = torch.tensor(train.hidden[rows]), torch.tensor(train.labels[rows])
    parts = {"image": x[:, :12], "text": x[:, 12:]}
    projected = {
        name: F.normalize(part @ state[f"0.fusion.maps.{name}.0.weight"].T + state[f"0.fusion.maps.{name}.0.bias"])
        for name, part in parts.items()
    }
    counts = np.bincount(train.labels)
    share = torch.tensor(len(train) / (2 * counts), dtype=torch.float32)[labels]

    def focal(logits: torch.Tensor) -> float:
        p = torch.sigmoid(logits[:, 0])
        right = torch.where(labels == 1, p, 1 - p)
        return ((share * (1 - right) ** 2 * -torch.log(right)).sum() / share.sum()).item()

    logits, embedding = mlp(state, "0.", projected["image"] * projected["text"])
    shown = torch.tensor([train.extras[row]["shown"] for row in rows])
    both = torch.tensor([[float(c in train.extras[row]["both"]) for c in range(4)] for row in rows])
    fine = [embedding @ state[f"3.outputs.{n}.weight"].T + state[f"3.outputs.{n}.bias"] for n in (0, 1)]
    fine_parts = F.cross_entropy(fine[0], shown), F.binary_cross_entropy_with_logits(fine[1], both)
    expected = {
        "classification": focal(logits),
        "image_loss": focal(mlp(state, "1.", projected["image"])[0]),
        "text_loss": focal(mlp(state, "2.", projected["text"])[0]),
        "fine_grained_loss": (fine_parts[0] + fine_parts[1]).item() / 2,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    weighed = sum(expected[name] * getattr(args, name, 1.0) for name in expected)
    assert found["loss"] == pytest.approx(weighed, abs=1e-6)


def test_auxiliary_parts_are_trained_and_not_saved(encoded):
    args = encoded.head(image_loss=1.0, fine_grained_loss=1.0, fine_grained=("shown",), dev=None, epochs=1)
    train = read_features(args.train)
    trainer = ClassificationTrainer(args, initial_head(args, train), train, None, torch.device("cpu"))
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.fit()
    after = list(trainer.model.parameters())
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert trainer.outcome().state.keys() == initial_head(args, train).state_dict().keys()
    assert len(after) > len(trainer.outcome().state)


def test_the_picture_teaches_what_it_shows(encoded):
    """The fine-grained outputs learn a task that the label does not hold."""
    args = encoded.head(fine_grained_loss=1.0, fine_grained=("shown",), dev=None, epochs=20)
    train = read_features(args.train)
    trainer = ClassificationTrainer(args, initial_head(args, train), train, None, torch.device("cpu"))
    trainer.fit()
    fine = [entry["fine_grained_loss"] for entry in trainer.history[1:]]
    assert fine[0] > 1.3, "about log 4, which is chance"
    assert fine[-1] < 0.4


def test_losses_of_modalities_that_the_head_has_not(encoded):
    for changes, message in (
        ({"fusion": "none", "map_dim": None, "image_loss": 1.0}, "`image_loss` is 1.0, but the head has no fusion"),
        ({"fusion": "text", "image_loss": 1.0}, "the head has `fusion: text` and projects no image features"),
    ):
        with pytest.raises(UserError, match=message):
            train_head(encoded.head(**changes))
