"""Losses of steps, read later than they were computed."""

import math

import torch

from ra_hmd.training.finite import BadBatch, LossRecord, not_finite

IDS = ["cat", "cake", "train", "tram"]
ROWS = torch.tensor([2, 0])


def losses(*values):
    return torch.tensor([sum(values), *values])


def test_the_first_loss_that_is_not_finite_is_found():
    record = LossRecord(("language", "classifier"))
    record.add(1, losses(0.5, 0.25), ROWS)
    record.add(2, losses(0.5, math.nan), ROWS, torch.tensor([True, False]))
    record.add(3, losses(math.inf, math.nan), ROWS)
    assert record.found is None, "nothing is read by then"
    record.read()
    assert record.found == BadBatch(2, ("classifier",), (0,))
    assert (record.steps, record.bad_batches) == (1, 2)
    assert record.found.describe(IDS) == "the classifier loss was not finite for the meme 'cat'"
    record.add(4, losses(0.5, 0.25), ROWS)
    record.read()
    assert record.found.step == 2, "what was found stays"


def test_only_the_sum_overflows():
    record = LossRecord(("language", "classifier"))
    record.add(1, losses(3e38, 3e38), ROWS, torch.tensor([True, True]))
    record.read()
    assert record.found.describe(IDS) == "the sum of the losses was not finite for the memes 'train', 'cat'"


def test_many_memes_and_losses_in_a_message():
    batch = BadBatch(3, ("language", "classifier", "contrastive"), tuple(range(20)))
    assert batch.describe([f"m{row}" for row in range(20)]).startswith(
        "the language loss, the classifier loss and the contrastive loss were not finite for the memes 'm0', 'm1', "
    )
    assert batch.describe([f"m{row}" for row in range(20)]).endswith("'m15' and 4 more")


def test_steps_in_a_row_count_across_reads_and_micro_batches():
    record = LossRecord(("classifier",), patience=3)
    bad, good = losses(math.nan), losses(1.0)
    for step, batches in enumerate(([good, bad], [bad, good], [good, good], [bad, good], [good, bad]), 1):
        for batch in batches:
            record.add(step, batch, ROWS)
        record.read()
    assert record.found is None
    assert (record.steps, record.bad_batches, record.last_bad.step) == (1, 4, 4)
    record.add(6, bad, ROWS)
    record.end()
    assert record.found.step == 4


def test_a_training_without_a_finite_loss_does_not_end_well():
    record = LossRecord(("classifier",), patience=10)
    record.add(1, losses(math.nan), ROWS)
    record.read()
    assert record.found is None
    record.end()
    assert record.found.step == 1
    nothing_left = LossRecord(("classifier",))
    nothing_left.end()
    assert nothing_left.found is None, "a resumed training that was at its end"


def test_names_of_tensors_that_are_not_finite():
    tensors = {"a": torch.zeros(2), "b": torch.tensor([1.0, math.inf]), "c": torch.tensor(math.nan), "d": torch.ones(0)}
    assert not_finite(tensors) == not_finite(iter(tensors.items())) == ["b", "c"]
    assert not_finite({}) == []
