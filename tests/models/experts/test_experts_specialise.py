"""Experts specialise: with the clusters of its memes a model learns opposite rules for them, which no other can."""

import math
from types import ModuleType

import pytest
import torch
from expert_models import bench


@pytest.fixture(scope="module")
def specialise() -> ModuleType:
    return bench("experts_specialise")


@pytest.mark.slow
def test_experts_specialise(specialise: ModuleType) -> None:
    results = specialise.specialise([0], steps=350, size=320, prior_scale=0.5)
    right, shuffled, lora = results
    assert [result.arm for result in results] == ["right", "shuffled", "lora"]
    assert right.accuracy >= 0.95
    assert right.accuracy_other_ids <= 0.6
    assert shuffled.accuracy <= 0.6
    assert lora.accuracy <= 0.6
    assert lora.trained > 0.9 * right.trained
    assert right.information > 2 * right.information_before
    assert shuffled.information < 0.005
    assert shuffled.id_information < 1.6 * shuffled.id_information_before


def test_information_of_groups_and_experts(specialise: ModuleType) -> None:
    groups = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    alike = torch.full((4, 2), 0.5)
    assert specialise.information(apart[None], groups) == pytest.approx(math.log(2))
    assert specialise.information(alike[None], groups) == pytest.approx(0)
    assert specialise.information(torch.stack([apart, alike]), groups) == pytest.approx(math.log(2) / 2)
    assert specialise.information(apart[None], torch.tensor([0, 1, 0, 1])) == pytest.approx(0)
