"""An imported data set of each kind trains one step in stock LLaMA-Factory; one of them by the user's commands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from data_copies import COPIES, IMPORT_OPTIONS, SHAREGPT_OPTIONS
from engines import BIN, run, train
from llamafactory.train import tuner
from typer.testing import CliRunner

from ra_hmd.cli.app import app

pytestmark = pytest.mark.slow

BY_COMMANDS = "hateful_memes"


def ra_hmd(by_command: bool, *arguments: str) -> str:
    """What a command of ours prints, run in a process of its own or in this one."""
    if by_command:
        done = run([str(BIN / "ra-hmd"), *arguments], Path.cwd())
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output


@pytest.mark.parametrize("name", COPIES)
def test_imported_set_trains_one_step(
    name: str, stage1_config: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    COPIES[name](tmp_path / "copy")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    by_command = name == BY_COMMANDS
    options = IMPORT_OPTIONS.get(name, [])
    ra_hmd(by_command, "data", "import", name, "../copy", "--output", "memes", *options, "--workers", "1")
    printed = ra_hmd(by_command, "data", "to-sharegpt", "memes", "--output", "lf", *SHAREGPT_OPTIONS.get(name, []))
    lines = yaml.safe_load(printed.split("For the YAML file:")[1])
    config = stage1_config(
        elsewhere / "run", eval_dataset=None, max_steps=1, per_device_train_batch_size=2, cutoff_len=256, **lines
    )
    if by_command:
        train(config, elsewhere)
    else:
        tuner.run_exp(config, callbacks=[])
    manifest = json.loads((elsewhere / "run" / "ra_hmd.json").read_text())
    assert manifest["data"]["train"]["rows"] == sum(
        1 for line in (elsewhere / "memes" / "train.jsonl").read_text().split("\n") if line
    )
    assert (elsewhere / "run" / "adapter_model.safetensors").is_file()
