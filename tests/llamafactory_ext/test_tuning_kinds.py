"""Other ways to tune, and what is done with a finished run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from json_files import read_json
from llamafactory.train import tuner
from safetensors.torch import load_file

from ra_hmd.data.meme_files import read_memes
from ra_hmd.features.extract_lmm import extract_hidden_states
from ra_hmd.features.store import read_features
from ra_hmd.models.checkpoint import open_run

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]


def features(run: Path, memes: Path, output: Path) -> Any:
    extract_hidden_states(open_run(run), read_memes(memes / "a" / "dev.jsonl"), output, num_workers=0)
    return read_features(output)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("full", {"finetuning_type": "full"}),
        ("freeze", {"finetuning_type": "freeze", "freeze_trainable_layers": 1}),
        ("accumulated", {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}),
        ("pooled", {"embed_mode": "pool", "embed_layer": "penultimate", "num_layers": 3, "dropout": [0.1, 0.1]}),
        ("one_loss", {"loss_ratio": [0.0, 1.0], "num_layers": 1}),
    ],
)
def test_trains_and_reopens(
    stage1_config: Config, memes: Path, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    tuner.run_exp(stage1_config(tmp_path / name, do_eval=True, save_strategy="epoch", **changes), callbacks=[])
    found = features(tmp_path / name, memes, tmp_path / "features")
    assert np.isfinite(found.lrc_logit).all()
    for file in (tmp_path / name).glob("model*.safetensors"):
        assert not any("ra_hmd_head" in key for key in load_file(file))


@pytest.mark.parametrize("changes", [{"finetuning_type": "full"}, {"finetuning_type": "freeze"}])
def test_full_and_freeze_tuning_resume_and_restore_the_best(
    stage1_config: Config, tmp_path: Path, changes: dict[str, Any]
) -> None:
    steps = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2} | changes
    tuner.run_exp(stage1_config(tmp_path / "whole", **steps), callbacks=[])
    resumed = stage1_config(tmp_path / "resumed", resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"), **steps)
    tuner.run_exp(resumed, callbacks=[])
    for name in ("model.safetensors", "head.safetensors"):
        whole, again = (load_file(tmp_path / folder / name) for folder in ("whole", "resumed"))
        assert max(float((whole[key].float() - again[key].float()).abs().max()) for key in whole) <= 1e-6
    # The worst evaluation is asked for, so that the kept checkpoint is not the last one anyway.
    best = {"metric_for_best_model": "eval_loss", "load_best_model_at_end": True, "greater_is_better": True}
    tuner.run_exp(stage1_config(tmp_path / "best", **steps, **best), callbacks=[])
    chosen = read_json(tmp_path / "best" / "ra_hmd.json").best.checkpoint
    for name in ("model.safetensors", "head.safetensors"):
        kept, saved = load_file(tmp_path / "best" / name), load_file(Path(chosen) / name)
        assert all(torch.equal(kept[key], saved[key]) for key in saved)
    assert chosen.endswith("checkpoint-2")


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"finetuning_type": "oft", "oft_block_size": 8},
        {"additional_target": "lm_head"},
        {"use_fast_tokenizer": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_training_and_extraction_give_the_same_scores(
    stage1_config: Config, memes: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = stage1_config(tmp_path / "run", do_predict=True, max_steps=2, max_samples=None, **changes)
    tuner.run_exp(config, callbacks=[])
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    found = features(tmp_path / "run", memes, tmp_path / "features")
    assert [row["id"] for row in rows] == list(found.ids)
    scores = torch.from_numpy(found.lrc_logit[:, 0]).double().sigmoid().tolist()
    assert [row["lrc_score"] for row in rows] == pytest.approx(scores, abs=1e-6)


def test_accumulation_gives_the_loss_of_one_large_batch(stage1_config: Config, tmp_path: Path) -> None:
    found = []
    for name, changes in (("one", {}), ("two", {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})):
        tuner.run_exp(stage1_config(tmp_path / name, lora_dropout=0.0, **changes), callbacks=[])
        found.append(load_file(tmp_path / name / "head.safetensors"))
    assert all(torch.allclose(found[0][key], found[1][key], atol=5e-3) for key in found[0])


def test_merged_export_opens_like_a_run(stage1_run: Path, stage1_config: Config, memes: Path, tmp_path: Path) -> None:
    config = stage1_config(tmp_path)
    options = {
        "model_name_or_path": config["model_name_or_path"],
        "adapter_name_or_path": str(stage1_run),
        "template": "qwen2_vl",
        "finetuning_type": "lora",
        "export_dir": str(tmp_path / "merged"),
        "export_device": "cpu",
    }
    tuner.export_model(options)
    words = [f"--{key}={value}" for key, value in (options | {"export_dir": str(tmp_path / "by_words")}).items()]
    tuner.export_model(words)
    assert (tmp_path / "by_words" / "head.safetensors").is_file()
    assert {"head.safetensors", "head.json", "ra_hmd.json", "config.json"} <= {
        path.name for path in (tmp_path / "merged").iterdir()
    }
    merged, run = (
        features(folder, memes, tmp_path / f"f{index}")
        for index, folder in enumerate((tmp_path / "merged", stage1_run))
    )
    assert merged.ids == run.ids
    assert np.abs(merged.hidden - run.hidden).max() < 1e-4
    assert np.abs(merged.lrc_logit - run.lrc_logit).max() < 1e-4


def test_liger_is_applied_without_its_own_loss(tiny: Callable[[str], Path]) -> None:
    # Its kernels need a GPU (Triton); here it is seen that the host patches the model for our stage, and leaves the
    # loss to our forward pass.
    import subprocess
    import sys

    script = f"""
from llamafactory.hparams import FinetuningArguments, ModelArguments
from llamafactory.model import load_model, load_tokenizer
import llamafactory.train.tuner
from llamafactory_ext.arguments import ClassifierFinetuningArguments
args = ModelArguments(model_name_or_path={str(tiny("qwen2_vl"))!r}, enable_liger_kernel=True)
model = load_model(load_tokenizer(args)["tokenizer"], args, ClassifierFinetuningArguments(stage="sft-classifier"), True)
print("FORWARD", type(model.get_base_model()).forward.__module__)
layer = model.get_base_model().model.language_model.layers[0]
print("NORM", type(layer.input_layernorm).__module__, layer.input_layernorm.forward.__module__)
print("MLP", layer.mlp.forward.__func__.__module__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert "liger_kernel" in done.stdout.split("FORWARD")[1].split("NORM")[1]
    assert "liger_kernel" not in done.stdout.split("FORWARD")[1].split("NORM")[0]
