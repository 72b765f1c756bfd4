"""A run, a checkpoint, tokenised data and a cache are used again only as they were made."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import peft
import pytest
import torch
from json_files import read_json
from llamafactory.train import tuner
from PIL import Image

from llamafactory_ext.sft_classifier import reuse
from ra_hmd.core.artifacts import write_json
from ra_hmd.core.errors import UserError
from ra_hmd.models.checkpoint import ADDITIVE, check_adapter, open_run

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]


def refused(config: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        tuner.run_exp(config, callbacks=[])
    return str(error.value)


@pytest.fixture(scope="module")
def short_run(stage1_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps with other settings than the host's defaults, and a checkpoint after the first."""
    folder = tmp_path_factory.mktemp("short") / "run"
    settings = {"image_max_pixels": 6000, "embed_mode": "pool", "max_samples": 16, "max_steps": 2}
    tuner.run_exp(stage1_config(folder, save_strategy="steps", save_steps=1, do_predict=True, **settings), callbacks=[])
    return folder


@pytest.fixture
def asking(stage1_config: Config, short_run: Path, tmp_path: Path) -> Config:
    """A configuration that asks the run without its settings."""

    def make(**changes: Any) -> dict[str, Any]:
        left_out = {"do_train": None, "cutoff_len": None, "proj_dim": None, "loss_ratio": None, "template": None}
        asks = {"do_predict": True, "adapter_name_or_path": str(short_run), "max_samples": 16}
        return stage1_config(tmp_path / "asked", **(left_out | asks | changes))

    return make


def scores(folder: Path) -> list[float]:
    return [json.loads(line)["lrc_score"] for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_settings_that_are_left_out_are_the_runs(asking: Config, short_run: Path, tmp_path: Path) -> None:
    tuner.run_exp(asking(), callbacks=[])
    assert scores(tmp_path / "asked") == pytest.approx(scores(short_run), abs=1e-6)
    manifest = read_json(tmp_path / "asked" / "evaluation_manifest.json")
    assert manifest.inputs == read_json(short_run / "ra_hmd.json").inputs
    assert (manifest.inputs.image_max_pixels, manifest.inputs.embed_mode) == (6000, "pool")


def test_other_settings_are_refused_with_both_values(asking: Config) -> None:
    message = refused(asking(image_max_pixels=9000, embed_mode="last_token", proj_dim=16, quantization_bit=4))
    for name, there, here in (
        ("image_max_pixels", 6000, 9000),
        ("embed_mode", "'pool'", "'last_token'"),
        ("proj_dim", 32, 16),
        ("quantization_bit", None, 4),
    ):
        line = next(line for line in message.splitlines() if f"`{name}`" in line)
        assert f"{there} in " in line
        assert f"{here} here" in line


def test_another_base_model_is_refused(asking: Config, stage1_config: Config, tiny: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny("qwen2_vl"), other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config, indent=1))
    for changes in ({}, {"do_train": True, "do_predict": None, "template": "qwen2_vl"}):
        message = refused(asking(model_name_or_path=str(other), **changes))
        assert f"{other} is not the base model" in message
    export = asking(model_name_or_path=str(other))
    names = ("model_name_or_path", "adapter_name_or_path", "finetuning_type")
    with pytest.raises(UserError, match="is not the base model"):
        tuner.export_model({name: export[name] for name in names} | {"export_dir": str(tmp_path / "merged")})


def test_adapters_below_the_run_are_named(asking: Config, short_run: Path, tmp_path: Path) -> None:
    shutil.copytree(short_run, tmp_path / "above")
    manifest = dict(read_json(short_run / "ra_hmd.json"))
    manifest["base_model"]["adapters"] = [str(short_run)]
    write_json(tmp_path / "above" / "ra_hmd.json", manifest)
    both = f"{short_run},{tmp_path / 'above'}"
    message = refused(asking(adapter_name_or_path=str(tmp_path / "above")))
    assert f"`adapter_name_or_path: {both}`" in message
    manifest["base_model"]["adapter_digests"] = ["of other weights"]
    write_json(tmp_path / "above" / "ra_hmd.json", manifest)
    assert f"{short_run} is gone or has changed" in refused(asking(adapter_name_or_path=both))
    with pytest.raises(UserError, match="is gone or has changed"):
        open_run(tmp_path / "above")


def resuming(stage1_config: Config, short_run: Path, output: Path, **changes: Any) -> dict[str, Any]:
    same = {"image_max_pixels": 6000, "embed_mode": "pool", "max_samples": 16, "max_steps": 2}
    return stage1_config(output, resume_from_checkpoint=str(short_run / "checkpoint-1"), **(same | changes))


def test_resuming_with_other_settings_is_refused_with_both_values(
    stage1_config: Config, short_run: Path, tmp_path: Path
) -> None:
    changes = {"learning_rate": 1e-3, "classifier_lr": 5e-4, "loss_ratio": [0.0, 1.0], "embed_mode": "last_token",
               "seed": 8, "max_samples": 24, "lora_rank": 4, "dropout": [0.5]}  # fmt: skip
    message = refused(resuming(stage1_config, short_run, tmp_path / "out", **changes))
    for text in (
        "training.learning_rate: 0.002 there, 0.001 here",
        "finetuning.classifier_lr: 0.001 there, 0.0005 here",
        "finetuning.loss_ratio: [1.0, 1.0] there, [0.0, 1.0] here",
        "inputs.embed_mode: 'pool' there, 'last_token' here",
        "training.seed: 7 there, 8 here",
        "head.dropout: [] there, [0.5] here",
    ):
        assert text in message
    message = refused(resuming(stage1_config, short_run, tmp_path / "out", max_samples=24))
    assert "data.train.rows: 16 there, 24 here" in message


def test_resuming_with_another_batch_size_is_told(
    stage1_config: Config, short_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = resuming(stage1_config, short_run, tmp_path / "out", per_device_train_batch_size=4, num_train_epochs=2)
    tuner.run_exp(config, callbacks=[])
    assert "per_device_train_batch_size: 8 there, 4 here" in caplog.text


def test_every_compared_argument_exists(short_run: Path) -> None:
    arguments = read_json(short_run / "ra_hmd.json").arguments
    for group, names in reuse._RESUMED.items():
        assert [name for name in names if name not in arguments[group]] == []


@pytest.mark.parametrize("kind", ["pissa_niter_16", "olora", "loftq", "corda"])
def test_adapters_that_rewrote_the_base_model_are_refused(asking: Config, short_run: Path, tmp_path: Path,
                                                          kind: str) -> None:  # fmt: skip
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    config = json.loads((run / "adapter_config.json").read_text())
    (run / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": kind}))
    assert f"initialised by '{kind}'" in refused(asking(adapter_name_or_path=str(run)))
    with pytest.raises(UserError, match=kind):
        open_run(run)


def test_pissa_is_refused_before_training(stage1_config: Config, tmp_path: Path) -> None:
    assert "`pissa_init: true`" in refused(stage1_config(tmp_path / "out", pissa_init=True))


def test_initialisations_of_peft_that_leave_the_base_model_alone() -> None:
    names = {name for each in get_args(get_type_hints(peft.LoraConfig)["init_lora_weights"]) for name in get_args(each)}
    needs_more = {"corda", "loftq"}  # statistics of data, or a quantised copy: both are written into the base model
    additive = set()
    for name in names - needs_more:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        before = model[0].weight.detach().clone()
        given = "pissa_niter_4" if name.startswith("pissa_niter") else name
        config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=given)
        wrapped = peft.get_peft_model(model, config)
        if torch.equal(wrapped.base_model.model[0].base_layer.weight, before):
            additive.add(name)
    assert additive == set(ADDITIVE)
    check_adapter("no/such/folder")  # a hub name: PEFT loads it


@pytest.fixture
def data(memes: Path, tmp_path: Path) -> Path:
    """Sixteen records of domain A with pictures that a test may change."""
    shutil.copytree(memes, tmp_path / "data")
    path = tmp_path / "data" / "confounders_a.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:16]))
    return tmp_path / "data"


@pytest.fixture
def one_step(stage1_config: Config, data: Path, tmp_path: Path) -> Config:
    """A step on that data; caches are used as the host does by default."""

    def make(**changes: Any) -> dict[str, Any]:
        settings = {"dataset_dir": str(data), "eval_dataset": None, "max_steps": 1, "overwrite_cache": None}
        return stage1_config(tmp_path / "out", **(settings | changes))

    return make


def first_picture(data: Path) -> Path:
    return data / json.loads((data / "confounders_a.json").read_text())[0]["images"][0]


def test_a_picture_that_was_missing_and_came_back_is_found(one_step: Config, data: Path, tmp_path: Path) -> None:
    picture, away = first_picture(data), tmp_path / "away.png"
    picture.rename(away)
    assert "does not exist" in refused(one_step())
    away.rename(picture)
    tuner.run_exp(one_step(), callbacks=[])
    assert read_json(tmp_path / "out" / "ra_hmd.json").data.train.rows == 16
    picture.rename(away)
    assert "does not exist" in refused(one_step())


def test_a_replaced_picture_is_read_again(one_step: Config, data: Path, tmp_path: Path) -> None:
    def fingerprint() -> str:
        tuner.run_exp(one_step(), callbacks=[])
        return read_json(tmp_path / "out" / "ra_hmd.json").data.train.fingerprint

    before, again = fingerprint(), fingerprint()
    Image.new("RGB", (160, 64), (9, 9, 9)).save(first_picture(data))  # of other size, so of other tokens
    assert before == again != fingerprint()


def test_errors_that_leave_no_trace_in_the_files_are_not_kept(
    one_step: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory_ext.sft_classifier import records

    def fail(*args: Any) -> None:
        raise UserError("the network is away")

    with monkeypatch.context() as patch:
        patch.setattr(records, "load_image", fail)
        assert "the network is away" in refused(one_step())
    tuner.run_exp(one_step(), callbacks=[])
    monkeypatch.setattr(records, "load_image", fail)
    tuner.run_exp(one_step(), callbacks=[])  # good rows are kept: nothing is decoded again


def test_tokenized_data_with_bad_rows_is_not_written(one_step: Config, data: Path, tmp_path: Path) -> None:
    picture, away = first_picture(data), tmp_path / "away.png"
    picture.rename(away)
    config = one_step(tokenized_path=str(tmp_path / "tokenized"))
    assert "does not exist" in refused(config)
    assert not (tmp_path / "tokenized").exists()
    away.rename(picture)
    tuner.run_exp(config, callbacks=[])
    written = read_json(tmp_path / "out" / "ra_hmd.json").data
    tuner.run_exp(config, callbacks=[])
    assert read_json(tmp_path / "out" / "ra_hmd.json").data == written
    os.utime(picture)  # as a copy does: the content counts
    tuner.run_exp(config, callbacks=[])
    Image.new("RGB", (160, 64), (9, 9, 9)).save(picture)
    assert f"{picture} has changed" in refused(config)


def test_tokenized_data_of_another_split_is_refused(one_step: Config, data: Path, tmp_path: Path) -> None:
    config = one_step(tokenized_path=str(tmp_path / "tokenized"), eval_dataset="confounders_a_dev", max_samples=8)
    tuner.run_exp(config, callbacks=[])
    message = refused(config | {"eval_dataset": "confounders_b_dev"})
    assert "data.eval_dataset: ['confounders_a_dev'] there, ['confounders_b_dev'] here" in message
    assert "data.max_samples: 8 there, 4 here" in refused(config | {"max_samples": 4})
    path = data / "confounders_a_dev.json"
    path.write_text(json.dumps(json.loads(path.read_text())[1:]))
    assert "sources.confounders_a_dev.content" in refused(config)


def test_tokenized_data_of_an_earlier_version_opens_and_says_what_it_does_not_know(
    one_step: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = one_step(tokenized_path=str(tmp_path / "tokenized"))
    tuner.run_exp(config, callbacks=[])
    path = tmp_path / "tokenized" / "ra_hmd_inputs.json"
    write_json(path, read_json(path).inputs)
    tuner.run_exp(config, callbacks=[])
    assert "does not say which data it was made from" in caplog.text
    assert "inputs.cutoff_len: 192 there, 200 here" in refused(config | {"cutoff_len": 200})
