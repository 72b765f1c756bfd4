"""`report_to` of Stage 2 and `train-head`: the curves reach a tracker, and change nothing in what is trained."""

import importlib.util
from pathlib import Path

import pytest
from json_files import read_json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ra_hmd.core.errors import UserError
from ra_hmd.training.classification import train_head
from ra_hmd.training.reporting import LOGS
from stage2.trainer import run_stage2


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Curves in the files of TensorBoard: name → epoch and value."""
    events = EventAccumulator(str(folder / LOGS)).Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.mark.parametrize("command", ["head", "stage2"])
def test_tensorboard_has_the_losses_and_dev_scores_of_every_epoch(encoded, command):
    args = getattr(encoded, command)(epochs=3, report_to="tensorboard")
    (train_head if command == "head" else run_stage2)(args)
    drawn = curves(args.output_dir)
    epochs = read_json(args.output_dir / "history.json").epochs
    assert {"loss", "classification", "dev_rkc_auroc", "dev_lrc_auroc"} <= drawn.keys()
    assert [step for step, _ in drawn["loss"]] == [1, 2, 3]
    assert [step for step, _ in drawn["dev_lrc_auroc"]] == [0, 1, 2, 3]
    for name, values in drawn.items():
        assert values == [
            (one.epoch, pytest.approx(one[name], rel=1e-6)) for one in epochs if one.get(name) is not None
        ]


def test_reporting_changes_neither_the_head_nor_what_is_recorded(encoded):
    plain = encoded.head(epochs=2, output_dir=encoded.folder / "plain")
    told = encoded.head(epochs=2, output_dir=encoded.folder / "told", report_to=["tensorboard"])
    train_head(plain)
    train_head(told)
    heads = [read_json(folder / "ra_hmd.json") for folder in (plain.output_dir, told.output_dir)]
    assert heads[0].head_sha256 == heads[1].head_sha256
    assert heads[0].arguments | {"output_dir": ""} == heads[1].arguments | {"output_dir": ""}


def test_runs_that_are_finished_stay_finished_when_they_are_to_be_reported(encoded, capsys):
    train_head(encoded.head(epochs=2, seeds=2))
    train_head(encoded.head(epochs=2, seeds=2, report_to="tensorboard"))
    assert capsys.readouterr().out.count("already done") == 2


@pytest.mark.parametrize("value", ["none", ["none"], None, ()])
def test_none_reports_nothing(encoded, value):
    args = encoded.head(epochs=1, report_to=value)
    train_head(args)
    assert not (args.output_dir / LOGS).exists()


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_trained(encoded, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else found(name, *rest)
    )
    args = encoded.head(report_to=["tensorboard", "wandb"])
    with pytest.raises(UserError, match=r"wandb is not installed. Use `pip install wandb`"):
        train_head(args)
    assert not args.output_dir.exists()


def test_an_unknown_tracker_is_refused(encoded):
    with pytest.raises(UserError, match="'paper' is not one of 'tensorboard', 'wandb', 'mlflow', 'swanlab'"):
        encoded.head(report_to="paper")
