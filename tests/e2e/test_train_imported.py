"""An imported set of each kind trains one step in stock LLaMA-Factory, by the commands that a user types."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from data_copies import COPIES, IMPORT_OPTIONS, SHAREGPT_OPTIONS
from engines import BIN, run, train


def ra_hmd(cwd: Path, *arguments: str) -> str:
    done = run([str(BIN / "ra-hmd"), *arguments], cwd)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", COPIES)
def test_imported_set_trains_one_step(name: str, stage1_config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    COPIES[name](tmp_path / "copy")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = IMPORT_OPTIONS.get(name, [])
    ra_hmd(elsewhere, "data", "import", name, "../copy", "--output", "memes", *options, "--workers", "1")
    told = ra_hmd(elsewhere, "data", "to-sharegpt", "memes", "--output", "lf", *SHAREGPT_OPTIONS.get(name, []))
    lines = yaml.safe_load(told.split("For the YAML file:")[1])
    config = stage1_config(
        elsewhere / "run", eval_dataset=None, max_steps=1, per_device_train_batch_size=2, cutoff_len=256, **lines
    )
    train(config, elsewhere)
    manifest = json.loads((elsewhere / "run" / "ra_hmd.json").read_text())
    assert manifest["data"]["train"]["rows"] == sum(
        1 for line in (elsewhere / "memes" / "train.jsonl").read_text().split("\n") if line
    )
    assert (elsewhere / "run" / "adapter_model.safetensors").is_file()
