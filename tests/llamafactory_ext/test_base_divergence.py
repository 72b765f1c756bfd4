"""Holding the answers to the base model's: the divergence by hand, and training with it on the tiny models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import ROOT, train
from llamafactory.train import tuner
from safetensors.torch import load_file

from llamafactory_ext.arguments import STAGE, ClassifierFinetuningArguments
from llamafactory_ext.sft_classifier.base_divergence import token_divergence
from ra_hmd.core.errors import UserError
from ra_hmd.models.classifier import IGNORE

Config = Callable[..., dict[str, Any]]
HELD = 100.0
UNSEEN = 1e-9
"""A weight that measures the divergence and changes no training."""


def history(output: Path, key: str) -> list[float]:
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    return [row[key] for row in state["log_history"] if key in row]


def largest_difference(one: Path, other: Path) -> float:
    files = ("adapter_model.safetensors", "head.safetensors")
    pairs = [(load_file(one / name), load_file(other / name)) for name in files]
    return max(float((left[key] - right[key]).abs().max()) for left, right in pairs for key in left)


def test_the_divergence_equals_naive_loops_and_its_gradient_the_difference_of_probabilities() -> None:
    torch.manual_seed(0)
    logits, base = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5)
    labels = torch.tensor([[1, 2, IGNORE], [3, IGNORE, IGNORE]])
    found = token_divergence(logits, base, labels)
    places = [(0, 0), (0, 1), (1, 0)]
    total = 0.0
    for place in places:
        p, q = base[place].softmax(-1), logits[place].detach().softmax(-1)
        total += sum(float(p[v]) * float(p[v].log() - q[v].log()) for v in range(5))
    assert found.item() == pytest.approx(total / 3, abs=1e-6)
    found.backward()
    expected = torch.zeros_like(base)
    for place in places:
        expected[place] = (logits[place].softmax(-1) - base[place].softmax(-1)).detach() / 3
    torch.testing.assert_close(logits.grad, expected)
    assert token_divergence(base, base, labels).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("kind", ["full", "freeze"])
def test_tuning_without_an_adapter_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=rf"`lm_kl_weight: 0.1` .*`finetuning_type: {kind}` has none; set"):
        ClassifierFinetuningArguments(stage=STAGE, finetuning_type=kind, lm_kl_weight=0.1)
    with pytest.raises(UserError, match="`lm_kl_weight` is -1"):
        ClassifierFinetuningArguments(stage=STAGE, lm_kl_weight=-1)
    ClassifierFinetuningArguments(stage=STAGE, finetuning_type=kind, lm_kl_weight=0)


@pytest.fixture(scope="module")
def runs(stage1_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("divergence")

    def trained(name: str, **changes: Any) -> Path:
        if not (folder / name).exists():
            tuner.run_exp(stage1_config(folder / name, **({"lora_dropout": 0.0} | changes)), callbacks=[])
        return folder / name

    return trained


@pytest.mark.slow
def test_measuring_changes_no_training_and_the_weight_holds_on_to_the_base_model(runs: Callable[..., Path]) -> None:
    plain, measured, held = runs("plain"), runs("measured", lm_kl_weight=UNSEEN), runs("held", lm_kl_weight=HELD)
    assert history(plain, "kl_loss") == []
    assert history(plain, "loss") == history(measured, "loss")
    assert largest_difference(plain, measured) < 1e-6
    free, bound = history(measured, "kl_loss"), history(held, "kl_loss")
    assert free[0] == bound[0] == pytest.approx(0, abs=1e-6)  # the adapter begins at zero
    assert 0 < bound[-1] < 0.5 * free[-1]
    assert history(held, "loss")[-1] == pytest.approx(
        history(held, "lm_loss")[-1] + history(held, "lrc_loss")[-1] + HELD * bound[-1], abs=1e-3
    )


@pytest.mark.slow
def test_dropout_and_memory_options_leave_it_as_it_is(runs: Callable[..., Path]) -> None:
    """Dropout draws the same numbers as without the pass of the base model; that pass has none."""
    plain = runs("noisy", lora_dropout=0.3, neftune_noise_alpha=5.0)
    measured = runs("noisy_measured", lora_dropout=0.3, neftune_noise_alpha=5.0, lm_kl_weight=UNSEEN)
    assert largest_difference(plain, measured) < 1e-6
    held = runs("held", lm_kl_weight=HELD)
    assert largest_difference(held, runs("kept", lm_kl_weight=HELD, disable_gradient_checkpointing=True)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero3"])
def test_two_ranks_equal_one(stage1_config: Config, runs: Callable[..., Path], tmp_path: Path, engine: str) -> None:
    changes = {} if engine == "ddp" else {"deepspeed": str(ROOT / f"configs/deepspeed/{engine}.json")}
    config = stage1_config(
        tmp_path / engine, lora_dropout=0.0, lm_kl_weight=HELD, per_device_train_batch_size=4, **changes
    )
    train(config, tmp_path, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    held = runs("held", lm_kl_weight=HELD)
    assert history(tmp_path / engine, "kl_loss") == pytest.approx(history(held, "kl_loss"), rel=0.05, abs=1e-4)
    assert largest_difference(tmp_path / engine, held) < 5e-3
