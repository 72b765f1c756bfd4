"""Every loss of Stage 2 against naive Python loops, over all similarities; gradients and invariances."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stage2.losses.contrastive import contrastive_loss
from stage2.losses.naive import naive_loss
from stage2.losses.similarity import Similarity, mean_over_anchors
from stage2.losses.triplet import triplet_loss

B, P, M, D = 7, 3, 2, 5
SIMILARITIES = [
    Similarity("cos"),
    Similarity("ip"),
    Similarity("l2"),
    Similarity("l2", normalise=True),
    Similarity("l2", squared=False),
    Similarity("l2", normalise=True, squared=False),
]
LOSSES: list[tuple[Callable[..., Tensor], dict[str, float]]] = [
    (contrastive_loss, {"temperature": 1.0}),
    (contrastive_loss, {"temperature": 0.2}),
    (triplet_loss, {"margin": 0.1}),
    (triplet_loss, {"margin": 0.0}),
    (naive_loss, {}),
]


def make_inputs(seed: int = 0, classes: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    positive_mask = torch.rand(B, P, generator=generator) > 0.3
    hard_mask = torch.rand(B, M, generator=generator) > 0.4
    positive_mask[0] = False
    hard_mask[1] = False
    return {
        "anchors": draw(B, D),
        "labels": torch.arange(B) % classes,
        "positives": draw(B, P, D),
        "positive_mask": positive_mask,
        "hard_negatives": draw(B, M, D),
        "hard_negative_mask": hard_mask,
    }


def loop_similarity(a: Tensor, b: Tensor, kind: Similarity) -> float:
    x, y = a.tolist(), b.tolist()
    if kind.metric == "cos" or kind.normalise:
        x, y = ([value / math.sqrt(sum(v * v for v in row)) for value in row] for row in (x, y))
    if kind.metric == "l2":
        distance = sum((p - q) ** 2 for p, q in zip(x, y, strict=True))
        return -(distance if kind.squared else math.sqrt(distance)) / len(x)
    product = sum(p * q for p, q in zip(x, y, strict=True))
    return product / len(x) if kind.metric == "ip" else product


def loop_loss(
    name: Callable[..., Tensor],
    inputs: dict[str, Tensor],
    kind: Similarity,
    setting: dict[str, float],
    in_batch_negatives: bool,
    weights: list[float],
) -> float:
    total = share = 0.0
    for i in range(B):
        anchor = inputs["anchors"][i]
        positives = [loop_similarity(anchor, inputs["positives"][i, k], kind) for k in range(P)
                     if inputs["positive_mask"][i, k]]  # fmt: skip
        hard = [loop_similarity(anchor, inputs["hard_negatives"][i, m], kind) for m in range(M)
                if inputs["hard_negative_mask"][i, m]]  # fmt: skip
        batch = [loop_similarity(anchor, inputs["anchors"][j], kind) for j in range(B)
                 if in_batch_negatives and inputs["labels"][j] != inputs["labels"][i]]  # fmt: skip
        if not positives or (name is not contrastive_loss and not hard + batch):
            continue
        if name is contrastive_loss:
            tau = setting["temperature"]
            p = sum(math.exp(s / tau) for s in positives) / len(positives)
            h = sum(math.exp(s / tau) for s in hard) / len(hard) if hard else 0.0
            n = sum(math.exp(s / tau) for s in batch)
            loss = -math.log(p / (p + h + n))
        else:
            loss = sum(hard) - sum(positives) / len(positives) + (sum(batch) / len(batch) if batch else 0.0)
            if name is triplet_loss:
                loss = max(0.0, loss + setting["margin"])
        total += weights[i] * loss
        share += weights[i]
    return total / share


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("kind", SIMILARITIES, ids=str)
@pytest.mark.parametrize(("name", "setting"), LOSSES)
@pytest.mark.parametrize("classes", [2, 3])
def test_equals_naive_loops(
    name: Callable[..., Tensor],
    setting: dict[str, float],
    kind: Similarity,
    in_batch: bool,
    weighted: bool,
    classes: int,
) -> None:
    inputs = make_inputs(seed=classes, classes=classes)
    weights = [0.5 + i for i in range(B)] if weighted else [1.0] * B
    given = torch.tensor(weights, dtype=torch.float64) if weighted else None
    loss = name(**inputs, similarity=kind, in_batch_negatives=in_batch, weights=given, **setting)
    assert loss.item() == pytest.approx(loop_loss(name, inputs, kind, setting, in_batch, weights), abs=1e-6)


@pytest.mark.parametrize("kind", SIMILARITIES, ids=str)
@pytest.mark.parametrize(("name", "setting"), LOSSES)
def test_gradient(name: Callable[..., Tensor], setting: dict[str, float], kind: Similarity) -> None:
    inputs = make_inputs()
    weights = torch.linspace(0.5, 2, B, dtype=torch.float64)

    def loss(anchors: Tensor, positives: Tensor, hard_negatives: Tensor) -> Tensor:
        changed = {"anchors": anchors, "positives": positives, "hard_negatives": hard_negatives}
        return name(**inputs | changed, similarity=kind, weights=weights, **setting)

    tensors = [inputs[field].requires_grad_() for field in ("anchors", "positives", "hard_negatives")]
    assert torch.autograd.gradcheck(loss, tensors)


@pytest.mark.parametrize("kind", SIMILARITIES, ids=str)
@pytest.mark.parametrize(("name", "setting"), LOSSES)
def test_masked_rows_row_order_and_copies_change_nothing(
    name: Callable[..., Tensor], setting: dict[str, float], kind: Similarity
) -> None:
    inputs = make_inputs()
    loss = name(**inputs, similarity=kind, **setting)
    other = dict(inputs)
    for field, mask in (("positives", "positive_mask"), ("hard_negatives", "hard_negative_mask")):
        other[field] = torch.where(inputs[mask][..., None], inputs[field], 1e3)
    assert torch.allclose(name(**other, similarity=kind, **setting), loss)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    shuffled = {field: value[order] for field, value in inputs.items()}
    assert torch.allclose(name(**shuffled, similarity=kind, **setting), loss)
    twice = inputs | {
        "positives": inputs["positives"].repeat(1, 2, 1),
        "positive_mask": inputs["positive_mask"].repeat(1, 2),
    }
    assert torch.allclose(name(**twice, similarity=kind, **setting), loss)


@pytest.mark.parametrize("kind", SIMILARITIES, ids=str)
@pytest.mark.parametrize(("name", "setting"), LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_with_equal_and_extreme_embeddings(
    name: Callable[..., Tensor], setting: dict[str, float], kind: Similarity, dtype: torch.dtype
) -> None:
    inputs = make_inputs()
    for scale in (0.0, 1e-6, 1e3):
        given = inputs | {
            field: (inputs[field] * scale).to(dtype) for field in ("anchors", "positives", "hard_negatives")
        }
        given["positives"] = given["anchors"][:, None].repeat(1, P, 1)  # distance zero
        given["anchors"] = given["anchors"].clone().requires_grad_()
        loss = name(**given, similarity=kind, **setting)
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(given["anchors"].grad).all()


@pytest.mark.parametrize("name", [contrastive_loss, triplet_loss, naive_loss])
def test_without_positives_the_loss_is_an_attached_zero(name: Callable[..., Tensor]) -> None:
    inputs = make_inputs()
    inputs["positive_mask"][:] = False
    inputs["anchors"].requires_grad_()
    loss = name(**inputs)
    loss.backward()
    assert loss.item() == 0
    assert (inputs["anchors"].grad == 0).all()


@pytest.mark.parametrize("name", [triplet_loss, naive_loss])
def test_anchors_without_any_negative_do_not_count(name: Callable[..., Tensor]) -> None:
    inputs = make_inputs(classes=1)
    inputs["hard_negative_mask"][:] = False
    inputs["hard_negative_mask"][3, 0] = True
    alone: dict[str, Any] = {field: value[3:4] for field, value in inputs.items()}
    assert torch.allclose(name(**inputs), name(**alone))


def test_triplet_in_closed_form() -> None:
    anchor, there = torch.tensor([[1.0, 0.0]]), torch.ones(1, 1, dtype=torch.bool)
    same, apart, across = anchor[None], -anchor[None], torch.tensor([[[0.0, 1.0]]])
    cos = Similarity("cos")
    label = torch.zeros(1, dtype=torch.long)
    assert triplet_loss(anchor, label, same, there, apart, there, similarity=cos).item() == 0
    assert triplet_loss(anchor, label, across, there, same, there, similarity=cos).item() == pytest.approx(1.1)
    assert naive_loss(anchor, label, same, there, apart, there, similarity=cos).item() == -2
    l2 = Similarity("l2", squared=False)
    assert naive_loss(anchor, label, same, there, apart, there, similarity=l2).item() == -1  # distance 2 over D = 2


def test_weights_of_zero_leave_an_anchor_out() -> None:
    losses, valid = torch.tensor([1.0, 2.0, 30.0]), torch.tensor([True, True, False])
    assert mean_over_anchors(losses, valid, None).item() == 1.5
    assert mean_over_anchors(losses, valid, torch.tensor([0.0, 4.0, 1.0])).item() == 2.0
    assert mean_over_anchors(losses, valid, torch.zeros(3)).item() == 0.0
