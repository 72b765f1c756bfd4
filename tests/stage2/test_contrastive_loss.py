"""The contrastive loss against naive Python loops, closed forms and invariances."""

import math

import pytest
import torch

from stage2.losses.contrastive import contrastive_loss
from stage2.losses.similarity import Similarity

B, P, M, D = 7, 3, 2, 5


def make_inputs(dtype=torch.float64, seed=0, classes=2, scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    labels = torch.arange(B) % classes
    positive_mask = torch.rand(B, P, generator=generator) > 0.3
    hard_mask = torch.rand(B, M, generator=generator) > 0.4
    positive_mask[0] = False  # an anchor without positives
    hard_mask[1] = False
    return {
        "anchors": draw(B, D),
        "labels": labels,
        "positives": draw(B, P, D),
        "positive_mask": positive_mask,
        "hard_negatives": draw(B, M, D),
        "hard_negative_mask": hard_mask,
    }


def naive_loss(inputs, metric, in_batch_negatives):
    def similarity(a, b):
        dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
        if metric == "ip":
            return dot / len(a)
        return dot / (math.sqrt(sum(float(x) ** 2 for x in a)) * math.sqrt(sum(float(x) ** 2 for x in b)))

    losses = []
    for i, anchor in enumerate(inputs["anchors"]):
        positives = [math.exp(similarity(anchor, row)) for row, there in
                     zip(inputs["positives"][i], inputs["positive_mask"][i], strict=True) if there]  # fmt: skip
        hard = [math.exp(similarity(anchor, row)) for row, there in
                zip(inputs["hard_negatives"][i], inputs["hard_negative_mask"][i], strict=True) if there]  # fmt: skip
        batch = [math.exp(similarity(anchor, other)) for j, other in enumerate(inputs["anchors"])
                 if in_batch_negatives and inputs["labels"][j] != inputs["labels"][i]]  # fmt: skip
        if positives:
            p = sum(positives) / len(positives)
            h = sum(hard) / len(hard) if hard else 0.0
            losses.append(-math.log(p / (p + h + sum(batch))))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("metric", ["cos", "ip"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [2, 3])
def test_equals_naive_loops(dtype, metric, in_batch, classes):
    inputs = make_inputs(dtype, classes=classes)
    loss = contrastive_loss(**inputs, similarity=Similarity(metric), in_batch_negatives=in_batch)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.item() == pytest.approx(naive_loss(inputs, metric, in_batch), rel=1e-5)


def test_closed_forms():
    one = torch.tensor([[1.0, 0.0]])
    there, nothing = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    label = torch.zeros(1, dtype=torch.long)
    same, opposite = one[None], -one[None]
    # Only a positive: nothing to tell it from.
    assert contrastive_loss(one, label, same, there, opposite, nothing, similarity=Similarity("cos")).item() == 0
    # cos(+) = 1, cos(−) = −1.
    loss = contrastive_loss(one, label, same, there, opposite, there, similarity=Similarity("cos"))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2)))
    # <a, b> / D = ±1/2.
    loss = contrastive_loss(one, label, same, there, opposite, there, similarity=Similarity("ip"))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)))


def test_a_similarity_of_exactly_zero_counts():
    """Orthogonal embeddings are common after ReLU; masking by value would lose all three negatives."""
    anchors = torch.eye(4)[:2]
    labels = torch.tensor([0, 1])
    there = torch.ones(2, 1, dtype=torch.bool)
    loss = contrastive_loss(anchors, labels, torch.eye(4)[2:][:, None], there, torch.eye(4)[2:][:, None], there)
    assert loss.item() == pytest.approx(math.log(3))


def test_positives_and_hard_negatives_are_means_and_the_batch_is_a_sum():
    inputs = make_inputs()
    twice = inputs | {
        "positives": inputs["positives"].repeat(1, 2, 1),
        "positive_mask": inputs["positive_mask"].repeat(1, 2),
        "hard_negatives": inputs["hard_negatives"].repeat(1, 3, 1),
        "hard_negative_mask": inputs["hard_negative_mask"].repeat(1, 3),
    }
    assert torch.allclose(contrastive_loss(**inputs), contrastive_loss(**twice))


@pytest.mark.parametrize("metric", ["cos", "ip"])
def test_row_order_changes_neither_loss_nor_gradient(metric):
    inputs = make_inputs()
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    anchors = inputs["anchors"].requires_grad_()
    contrastive_loss(**inputs, similarity=Similarity(metric)).backward()
    straight, anchors.grad = anchors.grad.clone(), None
    loss = contrastive_loss(**{name: value[order] for name, value in inputs.items()}, similarity=Similarity(metric))
    loss.backward()
    assert torch.allclose(loss, contrastive_loss(**inputs, similarity=Similarity(metric)))
    assert torch.allclose(straight, anchors.grad)


@pytest.mark.parametrize("metric", ["cos", "ip"])
def test_what_is_masked_does_not_matter(metric):
    inputs = make_inputs()
    other = dict(inputs)
    for name, mask in (("positives", "positive_mask"), ("hard_negatives", "hard_negative_mask")):
        other[name] = torch.where(inputs[mask][..., None], inputs[name], 1e6)
    other["positives"][0] = 3.0  # also where the anchor has no positive at all
    assert torch.allclose(
        contrastive_loss(**inputs, similarity=Similarity(metric)),
        contrastive_loss(**other, similarity=Similarity(metric)),
    )


@pytest.mark.parametrize("metric", ["cos", "ip"])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e3, 1e6])
def test_finite_for_extreme_embeddings(metric, scale):
    inputs = make_inputs(torch.float32, scale=scale)
    inputs["anchors"].requires_grad_()
    loss = contrastive_loss(**inputs, similarity=Similarity(metric))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(inputs["anchors"].grad).all()


@pytest.mark.parametrize("metric", ["cos", "ip"])
@pytest.mark.parametrize("in_batch", [True, False])
def test_gradient(metric, in_batch):
    inputs = make_inputs()

    def loss(anchors, positives, hard_negatives):
        changed = {"anchors": anchors, "positives": positives, "hard_negatives": hard_negatives}
        return contrastive_loss(**inputs | changed, similarity=Similarity(metric), in_batch_negatives=in_batch)

    tensors = [inputs[name].requires_grad_() for name in ("anchors", "positives", "hard_negatives")]
    assert torch.autograd.gradcheck(loss, tensors)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_no_anchor_with_a_positive_gives_an_attached_zero():
    inputs = make_inputs()
    inputs["positive_mask"][:] = False
    inputs["anchors"].requires_grad_()
    with torch.autograd.detect_anomaly():
        loss = contrastive_loss(**inputs)
        loss.backward()
    assert loss.item() == 0
    assert (inputs["anchors"].grad == 0).all()


def test_no_hard_negatives_asked_for():
    inputs = make_inputs()
    none = inputs | {"hard_negatives": torch.empty(B, 0, D).double(), "hard_negative_mask": torch.empty(B, 0).bool()}
    masked = inputs | {"hard_negative_mask": torch.zeros(B, M).bool()}
    assert torch.allclose(contrastive_loss(**none), contrastive_loss(**masked))
