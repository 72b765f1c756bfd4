"""Evaluation inside and after training: every row, metrics that exist, and checkpoints that lie there before it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from json_files import read_json
from llamafactory.train import tuner
from safetensors.torch import load_file

from llamafactory_ext.sft_classifier import workflow
from ra_hmd.core.errors import UserError

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]
BINARY_NAMES = ["accuracy", "precision", "recall", "f1", "macro_f1", "auroc"]


def refused(config: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        tuner.run_exp(config, callbacks=[])
    return str(error.value)


@pytest.fixture
def steps(stage1_config: Config, tmp_path: Path) -> Config:
    """A run of two steps of eight memes with an evaluation of 13 memes after each."""

    def make(name: str, **changes: Any) -> dict[str, Any]:
        settings = {"max_samples": 13, "max_steps": 2, "eval_strategy": "steps", "eval_steps": 1} | changes
        return stage1_config(tmp_path / name, **settings)

    return make


def test_a_metric_that_no_evaluation_gives_is_refused_with_the_names(steps: Config, tmp_path: Path) -> None:
    several = {"eval_dataset": "confounders_a_dev,confounders_b_dev", "eval_on_each_dataset": True}
    message = refused(steps("out", metric_for_best_model="eval_lrc_auroc", **several))
    names = {f"eval_confounders_{domain}_dev_{head}_{name}" for domain in "ab" for head in ("lrc", "lmh")
             for name in ["loss", *BINARY_NAMES]}  # fmt: skip
    names |= {f"eval_confounders_{domain}_dev_loss" for domain in "ab"}
    assert set(message.partition("choose one of ")[2].removesuffix(".").split(", ")) == names
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.parametrize(
    "changes",
    [
        {"eval_dataset": "confounders_a_test", "metric_for_best_model": "eval_lrc_auroc"},
        {"eval_dataset": "confounders_a_test", "load_best_model_at_end": True, "save_strategy": "steps",
         "save_steps": 1},
        {"eval_dataset": "confounders_a_dev,confounders_a_test", "metric_for_best_model": "eval_lrc_auroc"},
        {"eval_dataset": "confounders_a_dev,confounders_a_test", "eval_on_each_dataset": True,
         "metric_for_best_model": "eval_confounders_a_test_lrc_auroc"},
    ],
)  # fmt: skip
def test_no_checkpoint_is_chosen_on_a_test_split(changes: dict[str, Any], steps: Config, tmp_path: Path) -> None:
    message = refused(steps("out", **changes))
    assert "`eval_dataset: confounders_a_test`" in message
    assert "confounders_a_dev`" not in message
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_the_metric_of_one_of_several_sets_and_of_one_set_is_taken(steps: Config, tmp_path: Path) -> None:
    several = {"eval_dataset": "confounders_a_dev,confounders_b_dev", "eval_on_each_dataset": True}
    name = "eval_confounders_b_dev_lrc_accuracy"
    tuner.run_exp(steps("out", metric_for_best_model=name, save_strategy="best", **several), callbacks=[])
    logged = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert logged["best_metric"] == max(row[name] for row in logged["log_history"] if name in row)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"metric_for_best_model": "loss_of_sleep"}, "'loss_of_sleep'"),
        ({"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1, "eval_on_each_dataset": True},
         "'loss'"),
        ({"early_stopping_steps": 2}, "`early_stopping_steps: 2` needs `metric_for_best_model`"),
        ({"save_strategy": "best", "metric_for_best_model": "lrc_auroc", "eval_strategy": "no"}, "`eval_strategy`"),
    ],
)  # fmt: skip
def test_a_best_checkpoint_that_cannot_be_chosen(steps: Config, changes: dict[str, Any], named: str) -> None:
    assert named in refused(steps("out", **changes))


def test_one_class_dev_data_has_no_auroc_to_choose_by(steps: Config, memes: Path, tmp_path: Path) -> None:
    data = one_class(memes, tmp_path, "confounders_a_dev")
    message = refused(steps("out", dataset_dir=str(data), media_dir=str(memes), metric_for_best_model="lrc_auroc"))
    assert "eval_lrc_accuracy" in message
    assert "eval_lrc_auroc" not in message


def one_class(memes: Path, tmp_path: Path, name: str) -> Path:
    """The data of domain A, of `name` only the memes of class 0."""
    data = tmp_path / "data"
    data.mkdir()
    for file in ("dataset_info.json", "confounders_a.json", "confounders_a_dev.json"):
        content = json.loads((memes / file).read_text())
        if file == f"{name}.json":
            content = [record for record in content if record["label"] == 0]
        (data / file).write_text(json.dumps(content))
    return data


def test_training_data_of_one_class_is_refused(steps: Config, memes: Path, tmp_path: Path) -> None:
    data = one_class(memes, tmp_path, "confounders_a")
    message = refused(steps("out", dataset_dir=str(data), media_dir=str(memes)))
    assert "The training data has memes of class 0 only" in message


def test_a_class_that_no_training_row_has_is_told(
    class_config: Config, class_memes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in ("dataset_info.json", "single.json", "single_dev.json"):
        content = json.loads((class_memes / file).read_text())
        if file == "single.json":
            content = [record for record in content if record["label"] != 2]
        (tmp_path / file).write_text(json.dumps(content))
    config = class_config(tmp_path / "out", "single", max_steps=1, max_samples=16)
    tuner.run_exp(config | {"dataset_dir": str(tmp_path)}, callbacks=[])
    assert "does not vary in classes [2]" in caplog.text


def test_evaluation_and_prediction_keep_the_rows_of_the_last_batch(steps: Config, memes: Path, tmp_path: Path) -> None:
    after = {"do_eval": True, "do_predict": True, "eval_strategy": "no"}
    config = steps("out", dataloader_drop_last=True, **after)
    tuner.run_exp(config, callbacks=[])
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    predicted = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    expected = json.loads((memes / "confounders_a_dev.json").read_text())[:13]
    assert [row["id"] for row in predicted] == [record["id"] for record in expected]
    right = sum((row["lrc_score"] >= 0.5) == row["label"] for row in predicted)
    assert results["eval_lrc_accuracy"] == pytest.approx(right / 13)


def test_dropping_every_training_row_is_refused(steps: Config) -> None:
    assert "13 training rows do not fill one of 16" in refused(
        steps("out", dataloader_drop_last=True, per_device_train_batch_size=16)
    )


def test_a_failing_evaluation_leaves_a_checkpoint_that_resumes(
    steps: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1, "lora_dropout": 0.1, "max_samples": 16}
    chosen = saving | {"metric_for_best_model": "lrc_loss", "load_best_model_at_end": True}
    tuner.run_exp(steps("whole", **chosen), callbacks=[])

    def fail(*args: Any, **kwargs: Any) -> None:
        raise MemoryError("evaluation")

    with monkeypatch.context() as patch:
        patch.setattr(workflow, "compute_metrics", fail)
        with pytest.raises(MemoryError, match="evaluation"):
            tuner.run_exp(steps("failed", **chosen), callbacks=[])
    assert [path.name for path in (tmp_path / "failed").glob("checkpoint-*")] == ["checkpoint-1"]
    tuner.run_exp(steps("failed", resume_from_checkpoint=True, overwrite_output_dir=None, **chosen), callbacks=[])
    whole, resumed = (load_file(tmp_path / name / "head.safetensors") for name in ("whole", "failed"))
    assert all(torch.equal(whole[key], resumed[key]) or torch.allclose(whole[key], resumed[key], atol=1e-2)
               for key in whole)  # fmt: skip


def test_a_checkpoint_knows_the_evaluation_that_followed_it(steps: Config, tmp_path: Path) -> None:
    chosen = {"save_strategy": "steps", "save_steps": 1, "metric_for_best_model": "lrc_loss", "early_stopping_steps": 3}
    config = steps("out", max_steps=3, save_total_limit=2, load_best_model_at_end=True, **chosen)
    # The first evaluation is the best one by this order, so its checkpoint must outlive the later ones.
    tuner.run_exp(config | {"greater_is_better": True}, callbacks=[])
    kept = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    losses = {row["step"]: row["eval_lrc_loss"] for row in history["log_history"] if "eval_lrc_loss" in row}
    best = max(losses, key=lambda step: losses[step])
    assert kept == sorted({f"checkpoint-{best}", "checkpoint-3"})
    last = json.loads((tmp_path / "out" / "checkpoint-3" / "trainer_state.json").read_text())
    assert last["best_metric"] == losses[best]
    assert last["best_model_checkpoint"].endswith(f"checkpoint-{best}")
    assert [row["step"] for row in last["log_history"] if "eval_lrc_loss" in row] == [1, 2, 3]
    worse = last["stateful_callbacks"]["EarlyStoppingCallback"]["attributes"]["early_stopping_patience_counter"]
    assert worse == sum(losses[step] < losses[best] for step in losses if step > best)
    manifest = read_json(tmp_path / "out" / "checkpoint-3" / "ra_hmd.json")
    assert manifest.best == {"checkpoint": last["best_model_checkpoint"], "value": losses[best]}
