"""A loss that is not finite ends Stage 1 on every rank, and nothing of it is saved."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from engines import BIN, ROOT, run
from llamafactory.train import tuner
from safetensors.torch import load_file
from transformers import TrainerCallback

from llamafactory_ext.sft_classifier.finite_training import CHECK_EVERY, LOSSES, FiniteTraining
from ra_hmd.core.artifacts import sha256_file
from ra_hmd.core.errors import UserError
from ra_hmd.models.classifier import ClassifierOutput

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]
PROBE = str(Path(__file__).with_name("finite_probe.py"))
FOUR_STEPS = {
    "max_samples": 16,
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "logging_steps": 100,
    "eval_dataset": None,
}


class Poison(TrainerCallback):
    """Makes a weight of the head NaN at the event `event`, once `step` steps are done."""

    def __init__(self, step: int, event: str = "on_step_begin") -> None:
        self.step = step
        setattr(self, event, self.poison)

    def poison(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            weight = next(weight for name, weight in model.named_parameters() if "ra_hmd_head" in name)
            with torch.no_grad():
                weight.view(-1)[0] = math.nan


def stopped(config: dict[str, Any], *callbacks: TrainerCallback) -> str:
    with pytest.raises(UserError) as error:
        tuner.run_exp(config, callbacks=list(callbacks))
    return str(error.value)


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def finite(folder: Path) -> bool:
    files = ("adapter_model.safetensors", "head.safetensors")
    return all(torch.isfinite(weight).all() for file in files for weight in load_file(folder / file).values())


def test_a_stopped_training_goes_on_from_its_last_checkpoint(stage1_config: Config, tmp_path: Path) -> None:
    output, before = tmp_path / "run", {}

    class Note(TrainerCallback):
        def on_save(self, *args: Any, **kwargs: Any) -> None:
            before.update(digests(output / "checkpoint-2"))

    message = stopped(stage1_config(output, **FOUR_STEPS), Note(), Poison(2))
    assert message.startswith("Training was stopped: at step 3 (epoch 1.50) the classifier loss was not finite for")
    assert message.count("'") == 2 * 8, "the ids of the batch"
    assert "Lower `learning_rate` (0.002) and `classifier_lr` (0.001). " in message
    assert "`ra-hmd doctor`" in message
    assert "bf16" not in message
    checkpoint = output / "checkpoint-2"
    assert f"Nothing was saved after {checkpoint}: `adapter_name_or_path: {checkpoint}` with another" in message
    assert before
    assert before.items() <= digests(checkpoint).items()
    assert finite(checkpoint)
    assert not list(output.glob("checkpoint-4"))
    assert not list(output.glob("*.safetensors"))

    lower = {"adapter_name_or_path": str(checkpoint), "learning_rate": 1e-4, "save_strategy": "no"}
    tuner.run_exp(stage1_config(tmp_path / "lower", **FOUR_STEPS | lower), callbacks=[])
    assert finite(tmp_path / "lower")

    resumed = stage1_config(output, **FOUR_STEPS, resume_from_checkpoint=str(output), overwrite_output_dir=False)
    tuner.run_exp(resumed, callbacks=[])
    assert finite(output)
    assert json.loads((output / "trainer_state.json").read_text())["global_step"] == 4


@pytest.mark.parametrize(
    ("changes", "poison", "expected"),
    [
        ({"logging_steps": 1}, Poison(1), "at step 2 (epoch 1.00) the classifier loss was not finite"),
        ({}, Poison(1, "on_step_end"), "after step 1 1 trained tensors hold values that are not finite, the first is "),
        (
            {"save_strategy": "no", "num_train_epochs": 1},
            Poison(2, "on_step_end"),
            "though the loss of every step was finite. Lower",
        ),
        (
            {"rgcl": True, "rgcl_reindex_every": 1, "save_strategy": "no"},
            Poison(1, "on_step_end"),
            "after step 1 1 trained tensors",
        ),
        (
            {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": "confounders_a_dev", "save_strategy": "no"},
            Poison(0),
            "at step 1 (epoch 0.50) the classifier loss was not finite",
        ),
    ],
    ids=["at-a-log", "at-a-save", "at-the-end", "before-a-bank", "before-an-evaluation"],
)
def test_it_stops_where_values_leave_the_device(
    stage1_config: Config, tmp_path: Path, changes: dict[str, Any], poison: Poison, expected: str
) -> None:
    output = tmp_path / "run"
    save_each = {"save_steps": 1, "max_samples": 16, "logging_steps": 100, "num_train_epochs": 2}
    message = stopped(stage1_config(output, **FOUR_STEPS | save_each | changes), poison)
    assert expected in message
    assert not list(output.rglob("*.safetensors")) or "at step 2" in message
    assert all(finite(folder) for folder in output.glob("checkpoint-*"))


def test_the_command_fails_and_leaves_no_adapter(stage1_config: Config, tmp_path: Path) -> None:
    changes = {"learning_rate": 1e30, "lr_scheduler_type": "constant", "save_strategy": "no"}
    config = stage1_config(tmp_path / "run", **FOUR_STEPS | changes)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    done = run([str(BIN / "llamafactory-cli"), "train", "run.yaml"], tmp_path)
    assert done.returncode == 1, done.stdout[-6000:]
    assert "Training was stopped: at step 2 (epoch 1.00) the language loss and the classifier loss" in done.stdout
    assert "Lower `learning_rate` (1e+30)" in done.stdout
    assert "Nothing of stage sft-classifier was saved." in done.stdout
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert not (tmp_path / "run" / "ra_hmd.json").exists()


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_a_rank_whose_data_is_bad_stops_all(stage1_config: Config, tmp_path: Path, engine: str) -> None:
    changes: dict[str, Any] = FOUR_STEPS | {"per_device_train_batch_size": 4, "save_steps": 1, "save_strategy": "steps"}
    if engine != "ddp":
        changes["deepspeed"] = str(ROOT / f"configs/deepspeed/{engine}.json")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(stage1_config(tmp_path / "run", **changes)))
    launcher = [str(BIN / "torchrun"), "--nproc_per_node", "2", "--standalone"]
    done = run([*launcher, PROBE, str(tmp_path / "run.yaml")], tmp_path)
    assert done.returncode == 1, done.stdout[-6000:]
    # One traceback for each rank; torchrun may end the second one before it is printed.
    assert 1 <= done.stdout.count("Training was stopped: at step 1 (epoch 0.50) the language loss and the") <= 2
    assert "on rank 1. Lower `learning_rate`" in done.stdout
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def watched(**args: Any) -> FiniteTraining:
    """A record of a trainer that has nothing else."""
    settings = {"fp16": False, "device": "cpu", "world_size": 1, "output_dir": "out", "max_grad_norm": 1.0}
    rates = {"learning_rate": 1e-4}
    trainer = SimpleNamespace(
        args=SimpleNamespace(**settings | rates | args),
        finetuning_args=SimpleNamespace(classifier_lr=1e-4, router_lr=1e-3, finetuning_type="lora"),
        state=SimpleNamespace(global_step=0, epoch=0.0),
        accelerator=SimpleNamespace(reduce=lambda flag, reduction: flag),
        train_dataset={"sample_id": ["cat", "cake"]},
        model=torch.nn.Linear(1, 1),
        experts=None,
    )
    return FiniteTraining(trainer)


def step(training: FiniteTraining, value: float) -> None:
    losses = torch.full((1 + len(LOSSES),), value)
    training.add(losses, torch.tensor([1]), ClassifierOutput(logits=torch.full((1, 1), value)))
    training._trainer.state.global_step += 1
    training.on_step_end(None, training._trainer.state, None)


def test_fp16_may_overflow_a_few_times() -> None:
    training = watched(fp16=True)
    for value in (*[math.inf] * 9, 1.0, *[math.inf] * 9):
        step(training, value)
    training.check(weights=True, ends=True)
    step(training, math.nan)
    with pytest.raises(UserError, match=r"at step 11 .* and every step from then on, until step 20, ") as error:
        training.check()
    assert "the language loss, " in str(error.value)
    assert " for the meme 'cake'. " in str(error.value)
    assert "`bf16: true` in place of `fp16: true`" in str(error.value)
    short = watched(fp16=True)
    step(short, math.nan)
    short.check()
    with pytest.raises(UserError, match="at step 1 "):
        short.check(ends=True)


def test_it_is_checked_where_nothing_is_logged() -> None:
    training = watched()
    step(training, math.nan)
    for _ in range(CHECK_EVERY - 2):
        step(training, 1.0)
    with pytest.raises(UserError, match=r"the contrastive loss, the balance loss and the divergence loss were not"):
        step(training, 1.0)
