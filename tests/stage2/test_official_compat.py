"""`compat: official`: each quirk of the released code by a case small enough for a sheet of paper."""

from math import exp, log

import numpy as np
import pytest
import torch
from json_files import read_json

from ra_hmd.core.errors import UserError
from stage2.losses.contrastive import contrastive_loss
from stage2.losses.naive import naive_loss
from stage2.losses.official import official_loss
from stage2.losses.similarity import Similarity
from stage2.losses.triplet import triplet_loss
from stage2.official_mining import mine_official, official_rows
from stage2.trainer import run_stage2

IP, COS, L2 = Similarity("ip"), Similarity("cos"), Similarity("l2")


def tensors(anchors, labels, positives, hard_negatives):
    """Arguments of a loss; None is a row that was not found, and holds numbers that must not matter."""
    width = len(anchors[0])

    def rows(lists):
        values = [[[9.0] * width if row is None else row for row in line] for line in lists]
        mask = [[row is not None for row in line] for line in lists]
        count = len(lists[0])
        return (
            torch.tensor(values, dtype=torch.float64).reshape(len(lists), count, width),
            torch.tensor(mask, dtype=torch.bool).reshape(len(lists), count),
        )

    return (
        torch.tensor(anchors, dtype=torch.float64),
        torch.tensor(labels),
        *rows(positives),
        *rows(hard_negatives),
    )


# Two anchors of two classes, D = 2. Inner products are divided by 2: s(a, b) = 1·3/2 = 1.5.
PAIR = tensors(
    anchors=[[1.0, 0.0], [3.0, 1.0]],
    labels=[0, 1],
    positives=[[[2.0, 0.0], [4.0, 0.0]], [[1.0, 1.0], [1.0, 3.0]]],
    hard_negatives=[[[2.0, 2.0], [0.0, 2.0]], [[2.0, 0.0], [2.0, 2.0]]],
)


def test_contrastive_averages_positives_and_hard_negatives_and_sums_in_batch():
    """s: anchor 0 has positives 1, 2; negatives 1, 0 (which does not count); anchor 1 has 2, 3; 3, 4; in-batch 1.5."""
    first = (exp(1) + exp(2)) / 2
    second = (exp(2) + exp(3)) / 2
    expected = [
        -log(first / (first + exp(1) + exp(1.5))),
        -log(second / (second + (exp(3) + exp(4)) / 2 + exp(1.5))),
    ]
    assert official_loss(*PAIR, similarity=IP).item() == pytest.approx(sum(expected) / 2, abs=1e-12)


def test_corrected_keeps_the_similarity_of_zero():
    first = (exp(1) + exp(2)) / 2
    second = (exp(2) + exp(3)) / 2
    expected = [
        -log(first / (first + (exp(1) + exp(0)) / 2 + exp(1.5))),
        -log(second / (second + (exp(3) + exp(4)) / 2 + exp(1.5))),
    ]
    assert contrastive_loss(*PAIR, similarity=IP).item() == pytest.approx(sum(expected) / 2, abs=1e-12)


def test_in_batch_negatives_of_similarity_zero_vanish():
    """Anchor 0 has negatives 1 and 2 of the batch, s = 0 and 1; each of the others has s to anchor 0 alone."""
    batch = tensors(
        anchors=[[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]],
        labels=[0, 1, 1],
        positives=[[[1.0, 0.0]], [[0.0, 2.0]], [[2.0, 0.0]]],
        hard_negatives=[[], [], []],
    )
    expected = [-log(exp(1) / (exp(1) + exp(1))), 0.0, -log(exp(1) / (exp(1) + exp(1)))]
    assert official_loss(*batch, similarity=IP).item() == pytest.approx(sum(expected) / 3, abs=1e-12)
    corrected = [-log(exp(1) / (exp(1) + exp(1) + exp(0))), -log(exp(1) / (exp(1) + exp(0))), expected[2]]
    assert contrastive_loss(*batch, similarity=IP).item() == pytest.approx(sum(corrected) / 3, abs=1e-12)


def test_in_batch_negatives_cannot_be_switched_off_for_contrastive():
    on, off = (official_loss(*PAIR, similarity=IP, in_batch_negatives=wanted) for wanted in (True, False))
    assert on.item() == off.item()
    on, off = (contrastive_loss(*PAIR, similarity=IP, in_batch_negatives=wanted) for wanted in (True, False))
    assert off.item() < on.item() - 0.1


def test_a_missing_positive_is_a_zero_vector():
    lone = tensors([[1.0, 0.0]], [0], [[[4.0, 0.0], None]], [[[2.0, 0.0]]])
    positive = (exp(2) + exp(0)) / 2
    assert official_loss(*lone, similarity=IP).item() == pytest.approx(-log(positive / (positive + exp(1))), abs=1e-12)
    assert official_loss(*lone, similarity=IP, loss="naive").item() == pytest.approx(1 - (2 + 0) / 2)
    assert contrastive_loss(*lone, similarity=IP).item() == pytest.approx(-log(exp(2) / (exp(2) + exp(1))), abs=1e-12)
    assert naive_loss(*lone, similarity=IP).item() == pytest.approx(1 - 2)


def test_a_missing_positive_is_not_far_away_under_l2():
    """The zero vector is at squared distance 4 of the anchor: s = −4 / 2."""
    lone = tensors([[2.0, 0.0]], [0], [[None]], [[[2.0, 2.0]]])
    assert official_loss(*lone, similarity=L2, loss="naive").item() == pytest.approx(-2 + 2)
    assert contrastive_loss(*lone, similarity=L2).item() == 0.0, "without a positive the anchor does not count"


def test_a_missing_hard_negative_counts_nowhere():
    lone = tensors([[1.0, 0.0]], [0], [[[4.0, 0.0]]], [[[2.0, 0.0], None]])
    assert official_loss(*lone, similarity=IP).item() == pytest.approx(-log(exp(2) / (exp(2) + exp(1))), abs=1e-12)
    none = tensors([[1.0, 0.0]], [0], [[[4.0, 0.0]]], [[None, None]])
    assert official_loss(*none, similarity=IP).item() == pytest.approx(0.0, abs=1e-12)


def test_triplet_and_naive_sum_hard_negatives_and_average_the_rest():
    """Anchor 0: in-batch 1.5, hard 1 + 0, positives 1.5. Anchor 1: 1.5, 3 + 4, 2.5."""
    gaps = [1.5 + 1 - 1.5, 1.5 + 7 - 2.5]
    assert official_loss(*PAIR, similarity=IP, loss="naive").item() == pytest.approx(sum(gaps) / 2)
    triplet = official_loss(*PAIR, similarity=IP, loss="triplet", margin=0.1)
    assert triplet.item() == pytest.approx((gaps[0] + 0.1 + gaps[1] + 0.1) / 2)
    off = official_loss(*PAIR, similarity=IP, loss="naive", in_batch_negatives=False)
    assert off.item() == pytest.approx((gaps[0] + gaps[1]) / 2 - 1.5)


def test_anchors_without_any_negative_stay_in_the_mean():
    batch = tensors([[1.0, 0.0], [2.0, 0.0]], [0, 0], [[[2.0, 0.0]], [[2.0, 0.0]]], [[None], [[1.0, 1.0]]])
    assert official_loss(*batch, similarity=IP, loss="naive").item() == pytest.approx(((0 - 1) + (1 - 2)) / 2)
    assert naive_loss(*batch, similarity=IP).item() == pytest.approx(1 - 2), "corrected leaves the first out"
    assert triplet_loss(*batch, similarity=IP).item() == pytest.approx(0.0)


@pytest.mark.parametrize("loss", ["contrastive", "triplet", "naive"])
@pytest.mark.parametrize("similarity", [IP, COS, L2], ids=lambda one: one.metric)
def test_gradients(loss, similarity):
    rng = np.random.default_rng(3)
    anchors, positives, hard = (torch.tensor(rng.normal(size=shape)) for shape in ((5, 4), (5, 2, 4), (5, 3, 4)))
    labels = torch.tensor([0, 1, 0, 1, 1])
    masks = torch.tensor([[True, True]] * 5), torch.tensor([[True, True, False]] * 5)
    rows = positives, masks[0], hard, masks[1]
    assert torch.autograd.gradcheck(
        lambda x: official_loss(x, labels, *rows, loss=loss, similarity=similarity, margin=2.0),
        anchors.requires_grad_(),
    )


@pytest.mark.parametrize("loss", [contrastive_loss, naive_loss, triplet_loss])
def test_both_agree_where_no_quirk_applies(loss):
    """All found, no similarity of zero, one positive and one hard negative."""
    rng = np.random.default_rng(4)
    anchors, positives, hard = (torch.tensor(rng.normal(size=shape)) for shape in ((6, 4), (6, 1, 4), (6, 1, 4)))
    labels, mask = torch.tensor([0, 1, 0, 1, 1, 0]), torch.ones(6, 1, dtype=torch.bool)
    batch = anchors, labels, positives, mask, hard, mask
    name = loss.__name__.removesuffix("_loss")
    assert official_loss(*batch, loss=name, similarity=COS).item() == pytest.approx(
        loss(*batch, similarity=COS).item(), abs=1e-12
    )


@pytest.fixture
def separated():
    rng = np.random.default_rng(1)
    labels = np.arange(400) % 2
    bank = np.where(labels[:, None] == 1, 1.0, -1.0) + 0.01 * rng.normal(size=(400, 8))
    return torch.tensor(bank, dtype=torch.float32), torch.tensor(labels)


def test_the_search_is_12_deep_and_finds_the_anchor_itself(separated):
    bank, labels = separated
    mined = mine_official(bank, labels, depth=12, positives=1, hard_negatives=1, similarity=COS)
    assert (mined.positives.rows[:, 0] == np.arange(400)).all()
    assert not mined.hard_negatives.present.any(), "the 12 nearest are all of the anchor's class"
    assert np.allclose(mined.positives.similarity, 1, atol=1e-6)


def test_candidates_are_shared_in_their_order():
    """On a line, seen from the origin's neighbour: candidates 0 … 3 by inner product are rows 3, 2, 1, 0."""
    bank = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    labels = torch.tensor([0, 1, 0, 1])
    query, own = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    search = {"positives": 2, "hard_negatives": 2, "similarity": IP}
    positives, hard, similarity = official_rows(query, own, bank, labels, depth=3, **search)
    assert positives.tolist() == [[2, -1]], "row 0 is the fourth candidate"
    assert hard.tolist() == [[3, 1]]
    assert similarity[0, [0, 2, 3]].tolist() == [1.5, 2.0, 1.0]


def test_l2_searches_by_direction_and_weighs_by_distance():
    bank = torch.tensor([[10.0, 0.1], [0.0, 1.0]])
    positives, _, similarity = official_rows(
        torch.tensor([[1.0, 0.0]]), torch.tensor([0]), bank, torch.tensor([0, 0]),
        depth=2, positives=1, hard_negatives=0, similarity=L2,
    )  # fmt: skip
    assert positives.tolist() == [[0]], "the nearer row is the other one"
    assert similarity.item() == pytest.approx(-(81 + 0.01) / 2)


def test_a_run_shows_the_defects_and_says_so(world, features):
    """Positives are the anchors themselves, and hard negatives run out as the classes separate (D-21, D-22)."""
    world.store("easy", features(300, 5, "easy", noise=0.05))
    args = world.arguments(train=world.folder / "easy", epochs=10, compat="official", loss="triplet")
    result = run_stage2(args)
    last = read_json(args.output_dir / "mining.json").searches[-1]
    assert last.hard_negatives.anchors_without > 150
    assert last.positives.similarity.min == pytest.approx(1, abs=1e-5)
    assert any("found fewer hard negatives than requested among 12" in note for note in result["notes"])
    corrected = world.arguments(
        train=world.folder / "easy", epochs=10, loss="triplet", output_dir=world.folder / "corrected"
    )
    run_stage2(corrected)
    last = read_json(corrected.output_dir / "mining.json").searches[-1]
    assert last.hard_negatives.anchors_short == 0


def test_official_refuses_what_the_released_code_has_not(world):
    with pytest.raises(UserError, match=r"(?s)`temperature` is 0.5.*`mining` is sparse"):
        world.arguments(compat="official", temperature=0.5, mining="sparse")
    with pytest.raises(UserError, match="needs `pseudo_gold_positives`"):
        world.arguments(compat="official", pseudo_gold_positives=0)
    assert world.arguments(compat="official", pseudo_gold_positives=3).official_depth == 36
