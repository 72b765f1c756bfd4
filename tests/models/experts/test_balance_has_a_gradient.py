"""The balance loss: its value, and its gradient with and without gradient checkpointing."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_models import lmm, lmm_batch, small_model, with_experts
from torch import Tensor, nn

from ra_hmd.models.experts.attach import SHARE_MOMENTUM, attach_experts
from ra_hmd.models.experts.settings import ExpertSettings

CAPTIONS = ["my cat", "the dog knows best", "a kitten has other plans for monday", "be like this bunny"]
IDS = torch.tensor([1, -1, 0, 2])
SHARE = torch.tensor([0.55, 0.25, 0.15, 0.05])
CHECKPOINTING = {"none": None, "reentrant": True, "non_reentrant": False}


class Lmm:
    """A tiny Qwen2-VL in training mode, whose experts alone are trained, and a batch of four memes."""

    def __init__(self, folder: Path, kind: str = "none", **settings: Any) -> None:
        self.model = lmm(folder).train()
        self.model.requires_grad_(False)
        self.experts = with_experts(self.model, **{"num_clusters": 3, **settings})
        self.experts.running_share.copy_(SHARE)
        self.batch = lmm_batch(folder, CAPTIONS)
        if kind != "none":
            self.model.gradient_checkpointing_enable({"use_reentrant": CHECKPOINTING[kind]})
            self.model.enable_input_require_grads()  # as the host does
        self.kept: list[Tensor] = []

    def keep_probabilities(self) -> None:
        """Keep the probabilities of each layer with their graph: what a plain implementation would use."""
        for layer in self.model.get_decoder().layers:
            layer.mlp.expert_router.register_forward_hook(lambda *call: self.kept.append(call[2]))

    def logits(self, rows: slice = slice(None)) -> Tensor:
        """Last logits of some memes."""
        size = len(self.batch["pixel_values"]) // len(CAPTIONS)
        start, stop, _ = rows.indices(len(CAPTIONS))
        batch = {name: value[rows] for name, value in self.batch.items() if name != "pixel_values"}
        batch["pixel_values"] = self.batch["pixel_values"][start * size : stop * size]
        self.experts.routing.set(IDS[rows], batch["attention_mask"])
        return self.model(**batch, use_cache=False).logits[:, -1]

    def gradients(self, kind: str = "router") -> dict[str, Tensor]:
        """Gradients of the routers (or of all experts), by name."""
        named = {name: value for name, value in self.experts.state().items() if name != "share" and kind in name}
        assert all(value.grad is not None for value in named.values())
        return {name: value.grad.clone() for name, value in named.items()}


@pytest.fixture
def make(tiny: Callable[[str], Path]) -> Callable[..., Lmm]:
    return partial(Lmm, tiny("qwen2_vl"))


def plain_loss(kept: list[Tensor], mask: Tensor, scope: str) -> Tensor:
    """The loss with loops over memes and experts, in the graph."""
    total = torch.zeros(())
    for meme in range(len(mask)):
        valid = mask[meme].bool()
        for expert in range(len(SHARE)):
            probabilities = torch.stack([layer[meme, valid, expert] for layer in kept])
            chosen = torch.stack([(layer[meme, valid].argmax(-1) == expert).float() for layer in kept])
            factor = len(SHARE) * SHARE[expert] if scope == "batch" else chosen.mean()
            total = total + probabilities.mean() * factor / len(mask)
    return total


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("kind", CHECKPOINTING)
def test_router_gradient_is_that_of_the_loss_with_every_kind_of_checkpointing(
    make: Callable[..., Lmm], kind: str, scope: Any
) -> None:
    plain = make()
    plain.keep_probabilities()
    task = plain.logits().square().mean()
    expected = plain_loss(plain.kept, plain.batch["attention_mask"], scope)
    (task + 0.7 * expected).backward()

    without_balance = make()
    without_balance.logits().square().mean().backward()
    share_of_balance = difference(plain.gradients(), without_balance.gradients())
    assert share_of_balance > 1e-4

    run = make(kind)
    run.keep_probabilities()
    logits = run.logits()
    assert [one.requires_grad for one in run.kept] == [kind != "reentrant"] * 2
    loss = run.experts.balance_loss(scope)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    assert loss.shape == ()
    (logits.square().mean() + 0.7 * loss).backward()
    assert len(run.kept) == (2 if kind == "none" else 4), "the layers did not run again"
    assert difference(run.gradients(), plain.gradients()) < 1e-6
    assert difference(run.gradients(""), plain.gradients("")) < 1e-6


@pytest.mark.parametrize("kind", CHECKPOINTING)
def test_balance_alone_reaches_the_router(make: Callable[..., Lmm], kind: str) -> None:
    run = make(kind)
    logits = run.logits()
    (0.0 * logits.sum() + run.experts.balance_loss("batch")).backward()
    for name, gradient in run.gradients().items():
        assert gradient.abs().max() > 1e-5, name


@pytest.mark.parametrize("kind", CHECKPOINTING)
def test_the_gradient_has_the_scale_that_arrives_at_the_loss(make: Callable[..., Lmm], kind: str) -> None:
    results = []
    for scale in (1.0, 1024.0):
        run = make(kind)
        logits = run.logits()
        (scale * (logits.square().mean() + 0.5 * run.experts.balance_loss("batch"))).backward()
        results.append({name: gradient / scale for name, gradient in run.gradients().items()})
    assert difference(*results) < 1e-6


@pytest.mark.parametrize("kind", CHECKPOINTING)
def test_accumulated_micro_batches_equal_one_batch(make: Callable[..., Lmm], kind: str) -> None:
    whole, parts = make(kind), make(kind)
    (whole.logits().square().mean() + whole.experts.balance_loss("batch")).backward()
    for rows in (slice(0, 2), slice(2, 4)):
        loss = parts.logits(rows).square().mean() + parts.experts.balance_loss("batch")
        (loss / 2).backward()
    assert difference(whole.gradients(), parts.gradients()) < 1e-6
    for run in (whole, parts):
        run.experts.end_step(lambda total: total)
    assert torch.allclose(whole.experts.running_share, parts.experts.running_share, atol=1e-6)
    assert (whole.experts.running_share - SHARE).abs().max() > 1e-3


@pytest.mark.parametrize("settings", [{"router_input": "none"}, {"top_k": 2, "universal": True}])
def test_gradient_with_other_kinds_of_routing(make: Callable[..., Lmm], settings: dict[str, Any]) -> None:
    results = []
    for kind in CHECKPOINTING:
        run = make(kind, **settings)
        logits = run.logits()
        (logits.square().mean() + run.experts.balance_loss("batch")).backward()
        results.append(run.gradients())
    run = make(**settings)
    run.keep_probabilities()
    task, mask = run.logits().square().mean(), run.batch["attention_mask"]
    expanded = [layer.expand(-1, mask.shape[1], -1) for layer in run.kept]
    (task + plain_loss(expanded, mask, "batch")).backward()
    assert all(difference(result, run.gradients()) < 1e-6 for result in results)


def test_a_loss_that_is_differentiated_apart_is_an_error(make: Callable[..., Lmm]) -> None:
    run = make()
    logits = run.logits()
    balance = run.experts.balance_loss("batch")
    logits.sum().backward()
    with pytest.raises(RuntimeError, match="would be lost"):
        balance.backward()


def test_what_is_not_known_is_an_error(make: Callable[..., Lmm]) -> None:
    run = make()
    with pytest.raises(RuntimeError, match="attention mask"):
        run.experts.balance_loss("batch")
    run.experts.routing.set(IDS, run.batch["attention_mask"])
    with pytest.raises(RuntimeError, match="0 of 2 layers"):
        run.experts.balance_loss("batch")
    run.logits()
    with torch.no_grad():
        assert not run.experts.balance_loss("batch").requires_grad


def test_no_balance_loss_leaves_the_gradient_of_the_task(make: Callable[..., Lmm]) -> None:
    run, other = make(), make()
    run.logits().square().mean().backward()
    other.logits()
    other.experts.routing.clear()
    other.model(**other.batch, use_cache=False)  # another pass between: of its own
    other.logits().square().mean().backward()
    assert difference(run.gradients(), other.gradients()) < 1e-7


class Routers(nn.Module):
    """Small model with routers trained on the balance loss alone, each meme with a cluster of its own expert."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__()
        self.model = small_model(dtype=torch.float32).train().requires_grad_(False)
        self.experts = attach_experts(self.model, ExpertSettings(num_clusters=4, dropout=0.0), seed=0, trainable=True)
        self.ids = torch.tensor(ids)
        self.tokens = torch.randint(0, 40, (len(ids), 9), generator=torch.Generator().manual_seed(0))

    def train_balance(self, scope: Any, steps: int = 40) -> None:
        """Minimise the loss."""
        trained = [value for name, value in self.experts.state().items() if "router" in name]
        optimizer = torch.optim.Adam(trained, lr=0.02)
        for _ in range(steps):
            optimizer.zero_grad()
            self.run()
            output = self.model(input_ids=self.tokens).logits
            (0.0 * output.sum() + self.experts.balance_loss(scope)).backward()
            optimizer.step()
            self.experts.end_step(lambda total: total)

    def run(self) -> Tensor:
        """Mean probabilities of each meme, [B, E]."""
        self.experts.routing.set(self.ids, torch.ones_like(self.tokens))
        with torch.no_grad():
            self.model(input_ids=self.tokens)
        return self.experts.routing.balance.mean()

    def entropy(self) -> float:
        """Mean entropy of a meme's probabilities, in nats."""
        return float(torch.special.entr(self.run()).sum(dim=1).mean())


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_scope_sample_raises_the_entropy_within_memes_and_batch_does_not() -> None:
    before = Routers([0, 1, 2, 3] * 2).entropy()
    after = {}
    for scope in ("sample", "batch"):
        routers = Routers([0, 1, 2, 3] * 2)
        routers.train_balance(scope)
        after[scope] = routers.entropy()
    assert after["sample"] > before + 0.2
    assert after["batch"] < before + 0.05


def test_scope_batch_balances_experts_over_the_batch() -> None:
    routers = Routers([0] * 8)  # all memes of one cluster, which starts at expert 0
    before = routers.run().mean(dim=0)
    routers.train_balance("batch")
    after = routers.run().mean(dim=0)
    assert before[0] > 0.6
    assert after[0] < 0.5


def without_tokens(ids: list[int]) -> Routers:
    """Routers that follow the cluster alone."""
    routers = Routers(ids)
    for name, tensor in routers.experts.state().items():
        if name.endswith(("weight", "bias")):
            tensor.data.zero_()
    return routers


def test_running_share_follows_the_most_probable_experts() -> None:
    routers = without_tokens([0, 0, 0, 1])
    experts = routers.experts
    share = experts.state()["share"]
    assert share.tolist() == [0.25] * 4
    routers.run()
    experts.balance_loss("sample")
    routers.ids = torch.tensor([3, 3, 3, 3])
    routers.run()
    with torch.no_grad():
        experts.balance_loss("batch")  # of an evaluation: not counted
    experts.end_step(lambda total: total)
    expected = (1 - SHARE_MOMENTUM) * 0.25 + SHARE_MOMENTUM * torch.tensor([0.75, 0.25, 0.0, 0.0])
    assert torch.allclose(share, expected)
    routers.ids = torch.tensor([2, 2, 2, 2])
    routers.run()
    experts.end_step(lambda total: total)  # a step in which no loss was asked for
    assert torch.allclose(share, expected)
    assert share is experts.state()["share"], "what is saved is the share itself"


def test_shares_of_two_ranks_are_those_of_one_process() -> None:
    whole, ranks = without_tokens([0, 1, 1, 3, 3, 3]), [without_tokens([0, 1]), without_tokens([1, 3, 3, 3])]
    totals: list[Tensor] = []
    for routers in (whole, *ranks):
        routers.run()
        routers.experts.balance_loss("batch")
    whole.experts.end_step(lambda total: total)
    for routers in ranks:
        routers.experts.end_step(lambda total: totals.append(total.clone()) or total)
    again = [without_tokens([0, 1]), without_tokens([1, 3, 3, 3])]
    for routers in again:
        routers.run()
        routers.experts.balance_loss("batch")
        routers.experts.end_step(lambda _: totals[0] + totals[1])
        assert torch.allclose(routers.experts.running_share, whole.experts.running_share)
    assert (whole.experts.running_share - 0.25).abs().max() > 0.01
