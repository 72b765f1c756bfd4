"""More than two classes in Stage 1: trained by stock `llamafactory-cli`, predicted, extracted, the same numbers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from class_tasks import SEVERAL, SINGLE, read_jsonl
from engines import train
from json_files import read_json
from llamafactory.train import tuner

from llamafactory_ext.arguments import STAGE, ClassifierFinetuningArguments
from ra_hmd.core.artifacts import write_json
from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import Problem
from ra_hmd.data.meme_files import read_memes
from ra_hmd.features.extract_lmm import extract_hidden_states
from ra_hmd.features.store import Features, read_features
from ra_hmd.models.checkpoint import Run, open_run
from ra_hmd.models.head import read_head_config
from ra_hmd.models.losses import Objective
from ra_hmd.models.meme_model import load_encoder
from ra_hmd.models.tokenization import ANSWER_BUDGET, InputSettings

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]
Records = list[dict[str, Any]]


def extracted(run: Run, data: Path, output: Path) -> Features:
    memes = read_memes(data, prompt=run.settings.prompt, answers=run.settings.expected_answers)
    extract_hidden_states(run, memes, output, num_workers=0)
    return read_features(output)


def final_evaluation(output: Path) -> dict[str, float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return next(row for row in reversed(history) if "eval_loss" in row)


@pytest.fixture(scope="module")
def single(class_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    changes = {"classification_loss": "focal", "focal_gamma": 1.5, "class_weights": "effective_number"}
    steps = {"eval_strategy": "epoch", "save_strategy": "epoch", "do_predict": True, "plot_loss": True}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_lrc_macro_f1"}
    train(class_config(folder / "run", "single", **changes, **steps, **best), folder)
    return folder / "run"


@pytest.fixture(scope="module")
def several(class_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    changes = {"class_weights": "balanced", "eval_strategy": "epoch", "do_predict": True, "plot_loss": True}
    train(class_config(folder / "run", "several", **changes), folder)
    return folder / "run"


def test_single_label_run_tells_its_classes(single: Path) -> None:
    config, manifest = read_head_config(single), read_json(single / "ra_hmd.json")
    assert (config.problem_type, config.output_dim) == ("single_label", 3)
    assert (manifest.inputs.problem_type, list(manifest.inputs.answers)) == ("single_label", list(SINGLE))
    assert sum(manifest.data.train.rows_per_class.values()) == manifest.data.train.rows == 32
    metrics = {"loss", "accuracy", "macro_f1", "micro_f1", "auroc"}
    found = final_evaluation(single)
    assert {f"eval_{head}_{name}" for head in ("lrc", "lmh") for name in metrics} <= found.keys()
    # Focal, and without class weights, which are of the training set.
    assert found["eval_loss"] == pytest.approx(found["eval_lrc_loss"] + found["eval_lmh_loss"], rel=1e-2)
    assert (single / "training_eval_lmh_auroc.png").is_file()


def test_single_label_extraction_gives_the_predicted_scores(single: Path, class_memes: Path, tmp_path: Path) -> None:
    found = extracted(open_run(single), class_memes / "single_dev.json", tmp_path / "dev")
    predicted = {row["id"]: row for row in read_jsonl(single / "predictions.jsonl")}
    truth = {record["id"]: record["label"] for record in json.loads((class_memes / "single_dev.json").read_text())}
    assert found.labels.tolist() == [truth[name] for name in found.ids] == [predicted[n]["label"] for n in found.ids]
    assert found.lrc_logit.shape == found.lmh_score.shape == (16, 3)
    exponentials = np.exp(found.lrc_logit.astype(float))
    lrc = exponentials / exponentials.sum(axis=1, keepdims=True)
    for name, one, other in zip(found.ids, lrc, found.lmh_score, strict=True):
        assert predicted[name]["lrc_score"] == pytest.approx(one, abs=1e-4)
        assert predicted[name]["lmh_score"] == pytest.approx(other, abs=1e-4)
        assert sum(predicted[name]["lmh_score"]) == pytest.approx(1)
    # The evaluation's loss is the focal loss of these logits, by its definition.
    p = lrc[np.arange(16), found.labels]
    expected = float(np.mean(-((1 - p) ** 1.5) * np.log(p)))
    assert final_evaluation(single)["eval_lrc_loss"] == pytest.approx(expected, rel=1e-3)


def test_several_labels_run_and_extraction(several: Path, class_memes: Path, tmp_path: Path) -> None:
    config, manifest = read_head_config(several), read_json(several / "ra_hmd.json")
    assert (config.problem_type, list(manifest.inputs.answers)) == ("multi_label", list(SEVERAL))
    sets = [record["label"] for record in json.loads((class_memes / "several.json").read_text())[:32]]
    assert manifest.data.train.rows_per_class == {str(c): sum(c in labels for labels in sets) for c in range(3)}
    logged = final_evaluation(several)
    assert {"eval_lrc_accuracy", "eval_lrc_macro_f1", "eval_lrc_micro_f1", "eval_lmh_loss"} <= logged.keys()
    assert not any(key.startswith("eval_lmh_") for key in logged.keys() - {"eval_lmh_loss"})

    found = extracted(open_run(several), class_memes / "several_dev.json", tmp_path / "dev")
    assert found.lmh_score is None
    truth = {record["id"]: record["label"] for record in json.loads((class_memes / "several_dev.json").read_text())}
    assert [np.flatnonzero(row).tolist() for row in found.labels] == [truth[name] for name in found.ids]
    predicted = {row["id"]: row for row in read_jsonl(several / "predictions.jsonl")}
    for name, logits in zip(found.ids, found.lrc_logit, strict=True):
        assert predicted[name].keys() == {"id", "label", "lrc_score"}
        assert predicted[name]["label"] == truth[name]
        assert predicted[name]["lrc_score"] == pytest.approx([1 / (1 + math.exp(-x)) for x in logits], abs=1e-4)


def test_runs_from_before_there_were_classes_open(stage1_run: Path, memes: Path, tmp_path: Path) -> None:
    manifest = read_json(stage1_run / "ra_hmd.json")
    assert manifest.inputs.pop("problem_type") == "binary"
    assert list(manifest.inputs.pop("answers")) == []
    for path in stage1_run.iterdir():
        if path.is_file() and path.name not in ("ra_hmd.json", "head.json"):
            (tmp_path / path.name).symlink_to(path)
    write_json(tmp_path / "ra_hmd.json", manifest)
    head = read_json(stage1_run / "head.json")
    del head["problem_type"]
    write_json(tmp_path / "head.json", head)
    run = open_run(tmp_path)
    assert run.settings == open_run(stage1_run).settings
    assert run.settings.problem == Problem()
    assert run.settings.expected_answers.words == ("No", "Yes")
    assert run.fingerprint() == open_run(stage1_run).fingerprint()


@pytest.fixture
def train_records(class_config: Config, class_memes: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train one step on eight records of a task, changed by `edit`; returns the output folder."""

    def run(kind: str, edit: Callable[[Records], None], **changes: Any) -> Path:
        records = json.loads((class_memes / f"{kind}.json").read_text())[:8]
        edit(records)
        (tmp_path / f"{kind}.json").write_text(json.dumps(records))
        (tmp_path / "dataset_info.json").write_text((class_memes / "dataset_info.json").read_text())
        settings = {"dataset_dir": str(tmp_path), "eval_dataset": None, "max_steps": 1} | changes
        tuner.run_exp(class_config(tmp_path / "out", kind) | settings, callbacks=[])
        return tmp_path / "out"

    return run


def test_labels_follow_from_the_answers(train_records: Callable[..., Path], class_memes: Path) -> None:
    def without_labels(records: Records) -> None:
        for record in records:
            del record["label"]

    for kind in ("single", "several"):
        data = read_json(train_records(kind, without_labels) / "ra_hmd.json").data.train
        labels = [record["label"] for record in json.loads((class_memes / f"{kind}.json").read_text())[:8]]
        members = [label if isinstance(label, list) else [label] for label in labels]
        counts = {str(c): sum(c in member for member in members) for c in range(3)}
        assert {**dict.fromkeys(counts, 0), **data.rows_per_class} == counts


@pytest.mark.parametrize("kind", ["single", "several"])
def test_class_weights_weigh_the_training_loss(train_records: Callable[..., Path], kind: str) -> None:
    # The first step's loss is of the same head on the same batch: only the weights of its memes differ.
    found, labels = {}, []
    for weights in ("none", "balanced"):
        output = train_records(
            kind, lambda records: labels.append([r["label"] for r in records]), class_weights=weights
        )
        found[weights] = json.loads((output / "trainer_state.json").read_text())["log_history"][0]["lrc_loss"]
    assert len({labels[0].count(label) for label in labels[0]}) > 1
    assert abs(found["none"] - found["balanced"]) > 1e-4


def test_bad_labels_of_several_classes_are_listed_together(train_records: Callable[..., Path]) -> None:
    def edit(records: Records) -> None:
        for record, label, answer in zip(
            records,
            ([0, 1], [0], [3], [1, 1], [2], None, None, []),
            ("match, above.", "match, above", "match", "above", "It has stripes.", "Stripes", "Above, MATCH", "none"),
            strict=True,
        ):
            record["label"], record["messages"][1]["content"] = label, answer

    with pytest.raises(UserError) as error:
        train_records("several", edit)
    text = str(error.value)
    assert "records that cannot be used (4)" in text
    assert "its `label` is [0], but its answer 'match, above' means [0, 1]" in text
    assert "label [3] is not a list of different class indices from 0 to 2" in text
    assert "label [1, 1] is not a list" in text
    assert "answer 'Stripes' is no list of match, above, striped, or 'none'" in text


def test_bad_labels_of_one_class(train_records: Callable[..., Path]) -> None:
    def edit(records: Records) -> None:
        records[0]["messages"][1]["content"] = "Matching"
        records[1]["label"] = (records[1]["label"] + 1) % 3
        records[2]["messages"][1]["content"] = "MATCHING  Above, I say."
        records[2]["label"] = 1

    with pytest.raises(UserError) as error:
        train_records("single", edit)
    assert "records that cannot be used (2)" in str(error.value)
    assert "answer 'Matching' begins with neither 'apart' or 'matching above' or 'together below'" in str(error.value)


@pytest.mark.parametrize(("kind", "label"), [("single", [0]), ("several", 0)])
def test_labels_of_the_other_kind(train_records: Callable[..., Path], kind: str, label: Any) -> None:
    def edit(records: Records) -> None:
        for record in records:
            record["label"] = label

    with pytest.raises(
        UserError, match=r"its `label` is \[0\], but|label '0' is not a list of different class indices"
    ):
        train_records(kind, edit)


def test_answers_that_begin_alike_are_refused_before_the_model_is_loaded(train_records: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="The answers 'matching above' and 'matching below' begin with the same token"):
        train_records("single", lambda records: None, answers=["apart", "matching above", "matching below"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "single_label", "output_dim": 3}, "`output_dim` is 3, and `answers` are None"),
        ({"problem_type": "multi_label", "output_dim": 2, "answers": ["a"]}, r"`answers` are \['a'\]"),
        ({"problem_type": "single_label", "output_dim": 1, "answers": ["a"]}, "needs two or more outputs"),
        ({"problem_type": "single_label", "output_dim": 2, "answers": ["a", "A"]}, "all different"),
        ({"problem_type": "multi_label", "output_dim": 2, "answers": ["None", "a"]}, "name it otherwise"),
        ({"output_dim": 3}, "`output_dim` is 3; set `problem_type: single_label` or `multi_label`"),
        ({"answers": ["No", "Yes"]}, "set `positive_answer` and `negative_answer`"),
        ({"problem_type": "both"}, "'both' is not one of"),
        ({"class_balance_beta": 1.0}, r"`class_balance_beta` is 1.0, it must lie in \[0, 1\)"),
        ({"focal_gamma": -1}, "`focal_gamma` is -1, it must be at least 0"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClassifierFinetuningArguments(stage=STAGE, **changes)


def test_cross_entropy_leaves_gamma_aside() -> None:
    args = {"problem_type": "single_label", "output_dim": 2, "answers": ["a", "b"]}
    problem = Problem("single_label", 2)
    assert ClassifierFinetuningArguments(stage=STAGE, **args).objective == Objective(problem)
    focal = ClassifierFinetuningArguments(stage=STAGE, classification_loss="focal", **args)
    assert focal.objective == Objective(problem, 2.0)


def test_room_is_kept_for_the_longest_answer_whatever_the_label(several: Path) -> None:
    run = open_run(several)
    names = tuple(f"{word} and more about the {word}" for word in SEVERAL)
    encoder, _ = load_encoder(run.base_model, run.settings.replace(answers=names))
    longest = encoder.encode_answer(", ".join(names))
    assert (
        len(longest)
        > ANSWER_BUDGET
        == load_encoder(run.base_model, InputSettings(template="qwen2_vl"))[0].answer_budget
    )
    assert encoder.budget == run.settings.cutoff_len - len(longest)
