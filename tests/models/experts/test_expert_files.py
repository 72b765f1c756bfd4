"""Saving and loading experts."""

import json
from pathlib import Path

import pytest
import torch
from expert_models import small_model, with_experts
from safetensors.torch import load_file, save_file

from ra_hmd.core.errors import UserError
from ra_hmd.models.experts.attach import Experts, attach_experts
from ra_hmd.models.experts.files import (
    EXPERT_CONFIG,
    EXPERT_WEIGHTS,
    has_experts,
    load_experts,
    read_expert_settings,
    save_experts,
)
from ra_hmd.models.experts.settings import ExpertSettings

SETTINGS = ExpertSettings(num_experts=3, rank=2, num_clusters=2)


def new(settings: ExpertSettings = SETTINGS, **options: object) -> Experts:
    return attach_experts(small_model(dtype=torch.float32), settings, **{"seed": 5, "trainable": False, **options})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    experts = with_experts(small_model(dtype=torch.float32), num_experts=3, rank=2, num_clusters=2)
    experts.running_share.copy_(torch.tensor([0.5, 0.3, 0.2]))
    save_experts(tmp_path, SETTINGS, experts.state())
    return tmp_path


def test_saved_experts_are_loaded_again(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [EXPERT_CONFIG, EXPERT_WEIGHTS]
    assert read_expert_settings(saved) == SETTINGS
    experts = new()
    tensors = load_file(saved / EXPERT_WEIGHTS)
    own = dict(experts.state())
    assert not torch.equal(own["layers.1.down.B"], tensors["layers.1.down.B"])
    load_experts(experts, saved)
    assert set(tensors) == set(experts.state())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in experts.state().items())
    assert all(own[name] is tensor for name, tensor in experts.state().items()), "an optimizer holds the parameters"
    assert experts.running_share.tolist() == pytest.approx([0.5, 0.3, 0.2])


def test_files_hold_float32_whatever_the_dtype(tmp_path: Path) -> None:
    experts = new(trainable=True, dtype=torch.bfloat16)
    save_experts(tmp_path, SETTINGS, experts.state())
    assert {tensor.dtype for tensor in load_file(tmp_path / EXPERT_WEIGHTS).values()} == {torch.float32}


def test_other_dropout_or_start_may_go_on_from_saved_experts(saved: Path) -> None:
    load_experts(new(SETTINGS.replace(dropout=0.3, prior_init="zero", prior_scale=1)), saved)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_experts": 4}, "`num_experts` is 3 in .* and 4 here"),
        ({"rank": 3, "tau": 2}, "(?s)`rank` is 2 .*`tau` is 1.0"),
        ({"num_clusters": 5}, "`num_clusters` is 2 .* 5 here"),
        ({"alpha": 1}, "`alpha`"),
    ],
)
def test_other_settings_are_refused(saved: Path, changes: dict[str, float], named: str) -> None:
    experts = new(SETTINGS.replace(**changes))
    before = {name: tensor.clone() for name, tensor in experts.state().items()}
    with pytest.raises(UserError, match=named):
        load_experts(experts, saved)
    assert all(torch.equal(tensor, before[name]) for name, tensor in experts.state().items())


def test_tensors_that_do_not_fit_are_refused(saved: Path) -> None:
    tensors = load_file(saved / EXPERT_WEIGHTS)
    del tensors["share"]
    tensors["layers.0.up.A"] = torch.zeros(2, 9)
    tensors["layers.7.up.A"] = torch.zeros(2, 16)
    save_file(tensors, saved / EXPERT_WEIGHTS)
    with pytest.raises(UserError) as caught:
        load_experts(new(), saved)
    assert sorted(problem.split(" ")[0] for problem in caught.value.problems) == [
        "layers.0.up.A",
        "layers.7.up.A",
        "share",
    ]
    assert "(2, 9)" in str(caught.value)
    assert "(2, 16) is needed" in str(caught.value)


def test_a_folder_without_experts_is_refused(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    assert has_experts(saved)
    assert not has_experts(empty)
    with pytest.raises(UserError, match=f"{empty.name} has no experts: {EXPERT_WEIGHTS}"):
        load_experts(new(), empty)
    values = json.loads((saved / EXPERT_CONFIG).read_text())
    (saved / EXPERT_CONFIG).write_text(json.dumps(values | {"rank": 0}))
    with pytest.raises(UserError, match=rf"{EXPERT_CONFIG}: `rank` is 0"):
        read_expert_settings(saved)
