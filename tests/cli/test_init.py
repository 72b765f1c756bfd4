"""`ra-hmd init`: five answers become files that the other commands take, and commands that run in their order."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from ra_hmd.cli.app import app
from ra_hmd.core.config import load_yaml
from ra_hmd.experiments.project import data_names
from ra_hmd.models.stage1_config import read_stage1_config
from stage2.arguments import Stage2Arguments


def init(*words: str | Path, answers: str = "") -> Result:
    return CliRunner().invoke(app, ["init", *map(str, words)], input=answers)


def made(folder: Path, source: Path, **options: Any) -> dict[str, Any]:
    given = {
        "data": "hateful_memes",
        "source": source,
        "model": "qwen2_vl_7b",
        "gpus": 1,
        "report-to": "none",
    } | options
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    done = init(folder, *words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("data", data_names())
@pytest.mark.parametrize("model", ["qwen2_vl_2b", "gemma3_4b", "clip-vit-l-14-336"])
def test_every_recipe_gives_files_and_commands_that_are_accepted(data: str, model: str, tmp_path: Path) -> None:
    folder = tmp_path / "my project"
    said = made(folder, tmp_path, data=data, model=model)
    refined = load_yaml(Stage2Arguments, folder / "stage2.yaml", [])
    assert refined.output_dir == folder / "stage2"
    if model == "clip-vit-l-14-336":
        assert not (folder / "stage1.yaml").exists()
        assert refined.init_head is None
    else:
        assert refined.init_head == folder / "stage1"
        read_stage1_config(folder / "stage1.yaml")
        stated = yaml.safe_load((folder / "stage1.yaml").read_text())
        assert stated["output_dir"] == str(folder / "stage1")
        assert stated["eval_dataset"].startswith(stated["dataset"])
    root = typer.main.get_command(app)
    for command in said["commands"]:
        words = shlex.split(command)
        if words[0] != "ra-hmd":
            assert words == ["llamafactory-cli", "train", f"{folder}/stage1.yaml"]
            continue
        group, words = root, words[1:]
        while hasattr(group, "commands"):
            group, words = group.commands[words[0]], words[1:]
        group.make_context("", words)


def test_several_gpus_keep_the_global_batch(tmp_path: Path) -> None:
    said = made(tmp_path / "p", tmp_path, gpus=8, **{"report-to": "wandb"})
    stated = yaml.safe_load((tmp_path / "p" / "stage1.yaml").read_text())
    assert stated["per_device_train_batch_size"] * stated["gradient_accumulation_steps"] * 8 == 16
    assert stated["report_to"] == "wandb"
    assert Path(stated["deepspeed"]).is_file()
    assert any(one.startswith("FORCE_TORCHRUN=1 NPROC_PER_NODE=8 llamafactory-cli") for one in said["commands"])
    assert load_yaml(Stage2Arguments, tmp_path / "p" / "stage2.yaml", []).report_to == ("wandb",)


def test_without_a_gpu_nothing_needs_one(tmp_path: Path) -> None:
    made(tmp_path / "p", tmp_path, gpus=0)
    stated = yaml.safe_load((tmp_path / "p" / "stage1.yaml").read_text())
    assert "quantization_bit" not in stated
    assert (stated["bf16"], stated["flash_attn"], stated["enable_liger_kernel"]) == (False, "disabled", False)


def test_what_options_do_not_answer_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ra_hmd.cli.finish.at_a_terminal", lambda: True)
    done = init(tmp_path / "p", "--model", "clip-vit-l-14", "--gpus", "1", answers=f"mami\n{tmp_path}\ntensorboard\n")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("Model") == 0
    assert done.stderr.count("Data set (") == 1
    assert f"Next: ra-hmd data import mami {tmp_path}" in done.stderr
    assert load_yaml(Stage2Arguments, tmp_path / "p" / "stage2.yaml", []).report_to == ("tensorboard",)


def test_wrong_answers_are_told_together(tmp_path: Path) -> None:
    words = ["--data", "cats", "--model", "gpt", "--gpus", "1", "--source", tmp_path, "--report-to", "none"]
    done = init(tmp_path / "p", *words)
    assert done.exit_code == 2
    assert "--data 'cats' is not one of" in done.output
    assert "--model 'gpt' is not one of" in done.output
    assert not (tmp_path / "p").exists()


def test_a_folder_with_files_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    words = ["--data", "mami", "--model", "align", "--gpus", "1", "--source", tmp_path, "--report-to", "none"]
    assert init(tmp_path, *words).exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_the_commands_of_a_project_lead_from_data_to_a_bank(served_clip: Path, memes: Path, tmp_path: Path) -> None:
    given = {"data": "generic", "model": "clip-vit-l-14", "model-path": served_clip / "clip", "gpus": 0}
    folder = tmp_path / "p"
    said = made(folder, memes / "a", **given)
    for command in said["commands"][:-1]:  # the last one serves
        more = {
            "ra-hmd stage2": ["epochs=1", "map_dim=16", "proj_dim=16"],
            "ra-hmd evaluate": ["--bootstrap-samples", "100"],
        }
        words = [*shlex.split(command)[1:], *more.get(" ".join(command.split()[:2]), [])]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"
    assert (folder / "report" / "report.md").is_file()
    assert yaml.safe_load((folder / "serve.yaml").read_text()) == {"bank": f"{folder}/bank"}
    assert (folder / "bank").is_dir()
