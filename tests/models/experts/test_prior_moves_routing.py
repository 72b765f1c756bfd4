"""The prior of a meme's cluster decides which experts its tokens take."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from expert_models import lmm, lmm_batch, small_model, with_experts
from torch import Tensor

from ra_hmd.models.experts.attach import Experts, attach_experts
from ra_hmd.models.experts.settings import ExpertSettings

CLUSTERS = 6


@pytest.fixture
def run(tiny: Callable[[str], Path]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Mean probabilities and last logits of one meme in each of several clusters."""
    folder = tiny("qwen2_vl")
    batch = lmm_batch(folder, ["my cat on a monday"] * CLUSTERS)
    batch["pixel_values"] = batch["pixel_values"][: len(batch["pixel_values"]) // CLUSTERS].repeat(CLUSTERS, 1)

    def call(ids: list[int] | None, **settings: object) -> tuple[Tensor, Tensor]:
        model = lmm(folder)
        experts = with_experts(model, **{"num_clusters": CLUSTERS, **settings})
        _reset_prior(experts)
        experts.routing.set(None if ids is None else torch.tensor(ids), batch["attention_mask"])
        with torch.no_grad():
            logits = model(**batch).logits[:, -1]
        return experts.routing.balance.mean(), logits

    return call


def _reset_prior(experts: Experts) -> None:
    """Give the prior its initial values again, where `with_experts` drew some."""
    fresh = small_model()
    initial = attach_experts(fresh, experts.settings, seed=0, trainable=False).state()
    with torch.no_grad():
        for name, tensor in experts.state().items():
            if name.endswith(".prior"):
                tensor.copy_(initial[name])


def test_permuting_ids_permutes_probabilities_and_changes_logits(run: Callable[..., tuple[Tensor, Tensor]]) -> None:
    order = [3, 0, 5, 1, 2, 4]
    plain, logits = run(list(range(CLUSTERS)), num_experts=CLUSTERS)
    permuted, permuted_logits = run(order, num_experts=CLUSTERS)
    assert torch.allclose(permuted, plain[order], atol=1e-6)
    assert torch.allclose(permuted_logits, logits[order], atol=1e-4)
    assert (logits - permuted_logits).abs().amax(dim=1).min() > 1e-3
    assert torch.equal(plain.argmax(dim=1), torch.arange(CLUSTERS))


def test_assign_gives_cluster_c_to_expert_c_mod_e(run: Callable[..., tuple[Tensor, Tensor]]) -> None:
    settings = ExpertSettings(num_clusters=CLUSTERS)
    model = small_model()
    experts = attach_experts(model, settings, seed=0, trainable=False)
    state = experts.state()
    expected = torch.zeros(CLUSTERS, 4)
    for cluster in range(CLUSTERS):
        expected[cluster, cluster % 4] = 2.0
    assert torch.equal(state["layers.1.router.prior"], expected)
    with torch.no_grad():
        for name, tensor in state.items():
            if "router.weight" in name or "router.bias" in name:
                tensor.zero_()
        probabilities = model.model.layers[0].mlp.expert_router(torch.randn(1, 1, 16), torch.tensor([5]))
    assert probabilities[0, 0].tolist() == pytest.approx([0.0963, 0.7112, 0.0963, 0.0963], abs=1e-4)


def test_an_unknown_cluster_equals_a_prior_without_weight(run: Callable[..., tuple[Tensor, Tensor]]) -> None:
    unknown, logits = run([-1] * CLUSTERS)
    without, other_logits = run(list(range(CLUSTERS)), prior_weight=0)
    not_given, _ = run(None)
    known, _ = run(list(range(CLUSTERS)))
    assert torch.equal(unknown, without)
    assert torch.equal(logits, other_logits)
    assert torch.equal(unknown, not_given)
    assert (unknown - known).abs().max() > 0.1


@pytest.mark.parametrize("settings", [{"prior_weight": 0}, {"num_clusters": 0}])
def test_without_weight_or_clusters_ids_change_nothing(
    run: Callable[..., tuple[Tensor, Tensor]], settings: dict[str, int]
) -> None:
    one, logits = run(list(range(CLUSTERS)), **settings)
    other, other_logits = run([2] * CLUSTERS, **settings)
    assert torch.equal(one, other)
    assert torch.equal(logits, other_logits)


@pytest.mark.parametrize(
    ("settings", "rate", "at_least", "at_most"),
    [
        ({"prior_init": "zero"}, 2e-4, 0.0, 1e-3),  # as released: 8 steps cannot move the routing
        ({"prior_init": "assign"}, 1e-3, 0.2, 1.0),
    ],
)
def test_reach_of_the_prior_in_eight_steps(
    tiny: Callable[[str], Path], settings: dict[str, str], rate: float, at_least: float, at_most: float
) -> None:
    folder = tiny("qwen2_vl")
    batch = lmm_batch(folder, ["my cat on a monday", "the dog knows best"] * 2)
    model = lmm(folder)
    experts = attach_experts(model, ExpertSettings(num_clusters=2, **settings), seed=0, trainable=True)
    trained = [parameter for name, parameter in experts.state().items() if name != "share"]
    optimizer = torch.optim.Adam(trained, lr=rate)
    ids, targets = torch.tensor([0, 1, 0, 1]), torch.tensor([7, 9, 7, 9])
    for _ in range(8):
        optimizer.zero_grad()
        experts.routing.set(ids, batch["attention_mask"])
        torch.nn.functional.cross_entropy(model(**batch).logits[:, -1], targets).backward()
        optimizer.step()
    means = []
    for known in (ids, None):
        experts.routing.set(known, batch["attention_mask"])
        with torch.no_grad():
            model(**batch)
        means.append(experts.routing.balance.mean())
    shift = float((means[0] - means[1]).abs().max())
    assert at_least < shift < at_most
