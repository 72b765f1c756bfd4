"""Stage 1 through stock LLaMA-Factory, each engine for real."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import ROOT, train, train_and_kill
from json_files import read_json
from llamafactory.train import tuner
from safetensors.torch import load_file
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.features.store import read_features
from ra_hmd.models.head import load_head, read_head_config

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]


def history(output: Path, key: str = "loss") -> list[float]:
    state = json.loads((output / "trainer_state.json").read_text())
    return [row[key] for row in state["log_history"] if key in row]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}:{key}": value
        for name in ("adapter_model.safetensors", "head.safetensors")
        for key, value in load_file(output / name).items()
    }


def largest_difference(one: Path, other: Path) -> float:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    return max(float((left[key].float() - right[key].float()).abs().max()) for key in left)


def test_run_folder(stage1_run: Path) -> None:
    for folder in (stage1_run, stage1_run / "checkpoint-2", stage1_run / "checkpoint-4"):
        assert load_head(folder).config.input_dim == 64
        manifest = read_json(folder / "ra_hmd.json")
        assert manifest.kind == "stage1"
        assert manifest.seed == 7
        assert manifest.inputs.template == "qwen2_vl"
        assert manifest.data.train.rows == 32
        assert sum(manifest.data.train.rows_per_class.values()) == 32
        assert manifest.arguments.finetuning.classifier_lr == 1e-3
        assert manifest.versions.llamafactory
    assert not any("ra_hmd_head" in key for key in load_file(stage1_run / "adapter_model.safetensors"))
    assert (stage1_run / "training_eval_lrc_auroc.png").stat().st_size > 1000


def test_evaluation_logs_both_heads(stage1_run: Path) -> None:
    state = json.loads((stage1_run / "trainer_state.json").read_text())
    logged = next(row for row in state["log_history"] if "eval_loss" in row)
    for head in ("lrc", "lmh"):
        for metric in ("loss", "accuracy", "auroc", "precision", "recall", "f1", "macro_f1"):
            assert f"eval_{head}_{metric}" in logged
    assert logged["eval_loss"] == pytest.approx(logged["eval_lrc_loss"] + logged["eval_lmh_loss"], rel=1e-2)
    training = next(row for row in state["log_history"] if "lm_loss" in row)
    assert training["loss"] == pytest.approx(training["lm_loss"] + training["lrc_loss"], rel=1e-3)


def test_best_checkpoint_is_restored_with_its_head(stage1_run: Path) -> None:
    state = json.loads((stage1_run / "trainer_state.json").read_text())
    assert largest_difference(stage1_run, Path(state["best_model_checkpoint"])) == 0
    assert largest_difference(stage1_run / "checkpoint-2", stage1_run / "checkpoint-4") > 0


def test_predictions_keep_ids_and_order(stage1_run: Path, memes: Path) -> None:
    predicted = [json.loads(line) for line in (stage1_run / "predictions.jsonl").read_text().splitlines()]
    expected = json.loads((memes / "confounders_a_dev.json").read_text())[:32]
    assert [row["id"] for row in predicted] == [row["id"] for row in expected]
    assert [row["label"] for row in predicted] == [row["label"] for row in expected]
    assert all(0 < row[key] < 1 for row in predicted for key in ("lmh_score", "lrc_score"))


def test_optimizer_groups(stage1_run: Path) -> None:
    groups = torch.load(stage1_run / "checkpoint-2" / "optimizer.pt", weights_only=True)["param_groups"]
    described = [(group["initial_lr"], len(group["params"])) for group in groups]
    assert [lr for lr, _ in described] == [2e-3, 1e-3, 1e-3]
    assert described[1][1] == described[2][1] == 2  # two weights and two biases of a two-layer head
    assert groups[2]["weight_decay"] == 0.0


def test_the_other_families_train(stage1_config: Config, tmp_path: Path) -> None:
    for family in ("qwen2_5_vl", "qwen3_vl"):
        tuner.run_exp(stage1_config(tmp_path / family, family, max_samples=16, do_eval=True), callbacks=[])
        assert read_head_config(tmp_path / family).input_dim == 64
        assert "eval_lmh_auroc" in json.loads((tmp_path / family / "eval_results.json").read_text())


@pytest.fixture(scope="module")
def one_rank(stage1_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    tuner.run_exp(stage1_config(folder / "out", lora_dropout=0.0), callbacks=[])
    return folder / "out"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ddp", {}),
        ("zero2", {"deepspeed": str(ROOT / "configs/deepspeed/zero2.json")}),
        ("zero3", {"deepspeed": str(ROOT / "configs/deepspeed/zero3.json")}),
    ],
)
def test_two_ranks_equal_one(
    stage1_config: Config, one_rank: Path, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    config = stage1_config(
        tmp_path / name, lora_dropout=0.0, per_device_train_batch_size=4, do_eval=True, save_strategy="epoch", **changes
    )
    train(config, tmp_path, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    assert history(tmp_path / name) == pytest.approx(history(one_rank), rel=0.02)
    assert largest_difference(tmp_path / name, one_rank) < 5e-3
    assert largest_difference(tmp_path / name, tmp_path / name / "checkpoint-4") < 1e-6
    results = json.loads((tmp_path / name / "eval_results.json").read_text())
    # Evaluated by the trained head, not by a fresh one: the run on one rank opened again gives the same.
    fresh = stage1_config(
        tmp_path / "again", do_train=None, do_eval=True, adapter_name_or_path=str(tmp_path / name), eval_strategy="no"
    )
    tuner.run_exp(fresh, callbacks=[])
    again = json.loads((tmp_path / "again" / "eval_results.json").read_text())
    assert again["eval_lrc_loss"] == pytest.approx(results["eval_lrc_loss"], rel=1e-3)
    assert read_json(tmp_path / "again" / "evaluation_manifest.json").data.eval.rows == 16
    assert again["eval_lmh_loss"] == pytest.approx(results["eval_lmh_loss"], rel=1e-3)


def test_official_spelling_of_4_bit_really_quantises(stage1_config: Config, tmp_path: Path) -> None:
    config = stage1_config(tmp_path / "q", quantization_bit=4, quantization_method="bitsandbytes", max_samples=16)
    config["classifier_lr"] = "1e-3"  # what YAML 1.1 makes of 1e-3
    printed = train(config, tmp_path, LLAMAFACTORY_VERBOSITY="INFO")
    assert "was read as `bnb`" in printed
    assert "Quantizing model to 4 bit" in printed
    assert read_json(tmp_path / "q" / "ra_hmd.json").base_model.loading.quantization_bit == 4
    data = str(Path(config["dataset_dir"]) / "a")
    words = ["extract", "--checkpoint", str(tmp_path / "q"), "--data", data, "--split", "dev", "--workers", "0"]
    done = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "features")])
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    assert read_features(tmp_path / "features").embedding.shape[1] == 32


def test_killed_and_resumed_training_gives_the_same_weights(stage1_config: Config, tmp_path: Path) -> None:
    changes = {"save_strategy": "steps", "save_steps": 3, "max_samples": 64, "num_train_epochs": 2}
    tuner.run_exp(stage1_config(tmp_path / "whole", **changes), callbacks=[])

    train_and_kill(stage1_config(tmp_path / "killed", **changes), tmp_path, tmp_path / "killed" / "checkpoint-6")
    assert not (tmp_path / "killed" / "adapter_model.safetensors").exists()
    # A checkpoint that was being written at the kill: resuming must pass it over.
    torn = tmp_path / "killed" / "checkpoint-9"
    shutil.rmtree(torn, ignore_errors=True)
    for later in (tmp_path / "killed").glob("checkpoint-1*"):
        shutil.rmtree(later)
    torn.mkdir()
    (torn / "adapter_config.json").write_text("{}")

    printed = train(stage1_config(tmp_path / "killed", resume_from_checkpoint=str(torn), **changes), tmp_path)
    assert "checkpoint-9 is not complete" in printed
    assert largest_difference(tmp_path / "whole", tmp_path / "killed") <= 1e-6
