"""General instruction data mixed in with memes: it counts in the language loss, and in nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import ROOT, train
from json_files import read_json
from llamafactory.train import tuner

from llamafactory_ext.arguments import STAGE, ClassifierFinetuningArguments
from llamafactory_ext.sft_classifier.general import head_loss, labelled
from llamafactory_ext.sft_classifier.trainer import ClassifierTrainer
from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import Problem
from ra_hmd.data.training_records import dataset_info_entry
from ra_hmd.models.losses import Objective

Config = Callable[..., dict[str, Any]]
PROBLEMS = [Problem(), Problem("single_label", 3), Problem("multi_label", 3)]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.kind)
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_without_a_class_leave_the_mean_over_memes_as_it_is(problem: Problem, weighted: bool) -> None:
    """Batches of two: their losses have the mean of the memes alone, and so have the gradients."""
    torch.manual_seed(0)
    several = problem.kind == "multi_label"
    classes = torch.randint(0, 2 if problem.kind != "single_label" else 3, (4, 3) if several else (4,))
    labels = torch.full((6, 3) if several else (6,), -1)
    known = [0, 1, 2, 4]
    labels[known] = classes
    logits = torch.randn(6, problem.outputs, requires_grad=True)
    weights = torch.full(labels.shape, 0.5) if weighted else None
    objective = Objective(problem, focal_gamma=1.0)
    total = torch.stack([
        head_loss(objective, logits[rows], labels[rows], None if weights is None else weights[rows], 6 / 4)
        for rows in ([0, 3], [1, 2], [4, 5])
    ]).mean()  # fmt: skip
    expected = objective(logits[known], classes)
    torch.testing.assert_close(total, expected)
    (found,), (wanted,) = (torch.autograd.grad(loss, logits, retain_graph=True) for loss in (total, expected))
    torch.testing.assert_close(found, wanted)
    assert found[[3, 5]].abs().max() < 1e-30
    nothing = head_loss(objective, logits[3:4], labels[3:4], None if weights is None else weights[3:4], 6 / 4)
    (none,) = torch.autograd.grad(nothing, logits)
    assert nothing.item() == none.abs().max() == 0
    assert labelled(labels.tolist()).tolist() == classes.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rgcl": True}, "does not go with `rgcl`"),
        ({"loss_ratio": [0.0, 1.0]}, "counts in the language loss alone, and its weight"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClassifierFinetuningArguments(stage=STAGE, general_dataset="talk", **changes)


@pytest.fixture(scope="module")
def mixed(memes: Path, stage1_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Memes with two general data sets: conversations about pictures, of several turns, and texts alone."""
    folder = tmp_path_factory.mktemp("general")
    picture = str(memes / "a" / "img")
    pictures = sorted(str(path) for path in Path(picture).iterdir())[:4]
    talk = [
        {
            "messages": [
                {"role": "user", "content": f"<image>What is drawn in picture {number}?"},
                {"role": "assistant", "content": "A cake."},
                {"role": "user", "content": "And below?"},
                {"role": "assistant", "content": f"A caption with {number} words."},
            ],
            "images": [name],
        }
        for number, name in enumerate(pictures)
    ]
    texts = [
        {"messages": [{"role": "user", "content": "Count to three."}, {"role": "assistant", "content": "1 2 3"}]}
        for _ in range(6)
    ]
    long = [{"messages": [{"role": "user", "content": "word " * 500}, {"role": "assistant", "content": "No."}]}]
    files = {"talk": talk, "texts": texts, "long": long}
    info = json.loads((memes / "dataset_info.json").read_text(encoding="utf-8"))
    for entry in info.values():
        entry["file_name"] = str(memes / entry["file_name"])
    for name, records in files.items():
        (folder / f"{name}.json").write_text(json.dumps(records), encoding="utf-8")
        info[name] = dataset_info_entry(f"{name}.json")
        if name != "talk":
            info[name]["columns"].pop("images", None)
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")

    def make(output: Path, **changes: Any) -> dict[str, Any]:
        given = {
            "dataset": "confounders_a,talk,texts",
            "general_dataset": "talk,texts",
            "dataset_dir": str(folder),
            "media_dir": str(memes),
            "lora_dropout": 0.0,
        }
        return stage1_config(output, **(given | changes))

    return make


@pytest.mark.slow
def test_a_run_counts_memes_and_learns_the_answers_of_both(
    mixed: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    prepare = ClassifierTrainer._prepare_objectives

    def look(trainer: ClassifierTrainer) -> None:
        prepare(trainer)
        rows = trainer.train_dataset
        seen["labels"] = np.asarray(rows["class_label"])
        tokenizer = trainer.processing_class
        for row in rows:
            answer = tokenizer.decode([token for token in row["labels"] if token != -100], skip_special_tokens=True)
            seen.setdefault(row["class_label"], set()).add(answer.strip())
        seen["scale"] = trainer._rows_per_meme

    monkeypatch.setattr(ClassifierTrainer, "_prepare_objectives", look)
    tuner.run_exp(mixed(tmp_path / "run", do_eval=True, class_weights="balanced"), callbacks=[])
    assert (seen["labels"] == -1).sum() == 10
    assert seen[-1] == {"1 2 3", *(f"A caption with {number} words." for number in range(4))}
    assert {answer.partition(".")[0] for answer in seen[0] | seen[1]} == {"Yes", "No"}
    assert seen["scale"] == pytest.approx(42 / 32)
    data = read_json(tmp_path / "run" / "ra_hmd.json").data
    assert data.train.rows == 42
    assert sum(data.train.rows_per_class.values()) == 32
    assert json.loads((tmp_path / "run" / "eval_results.json").read_text(encoding="utf-8"))["eval_lmh_auroc"] >= 0


@pytest.mark.slow
def test_data_that_does_not_fit_is_refused_together(mixed: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="(?s)other is not in `dataset.*talk is in `eval_dataset` too"):
        tuner.run_exp(mixed(tmp_path / "a", general_dataset="talk,other", eval_dataset="talk"), callbacks=[])
    with pytest.raises(UserError, match="names nothing else; memes with a class are needed too"):
        tuner.run_exp(mixed(tmp_path / "b", dataset="talk,texts"), callbacks=[])
    with pytest.raises(UserError, match=r"record long.json 0: it has \d+ tokens and `cutoff_len` is 192"):
        tuner.run_exp(mixed(tmp_path / "c", dataset="confounders_a,long", general_dataset="long"), callbacks=[])
    with pytest.raises(UserError, match="it has 4 valid messages; a classifier record is one"):
        tuner.run_exp(mixed(tmp_path / "d", dataset="confounders_a,talk", general_dataset=None), callbacks=[])


@pytest.mark.slow
def test_two_ranks_under_zero3_train_on_both_with_the_divergence(mixed: Config, tmp_path: Path) -> None:
    """A rank whose batch has no picture, or no meme, keeps in step with the other."""
    config = mixed(
        tmp_path / "run",
        deepspeed=str(ROOT / "configs/deepspeed/zero3.json"),
        per_device_train_batch_size=1,
        max_samples=4,
        lm_kl_weight=0.5,
    )
    train(config, tmp_path, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert all(np.isfinite(row["kl_loss"]) and np.isfinite(row["lrc_loss"]) for row in log if "lrc_loss" in row)
