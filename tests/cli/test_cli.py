"""The command line: quick to start, and clear when something is wrong."""

import json
import sys
from pathlib import Path

import pytest
from engines import BIN, run
from typer.testing import CliRunner

from ra_hmd.cli.app import app


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    script = "import sys, ra_hmd.cli.app; print([m for m in ('torch', 'transformers', 'pyarrow') if m in sys.modules])"
    assert run([sys.executable, "-c", script], tmp_path).stdout.strip() == "[]"


def test_every_command_has_help() -> None:
    for words in (
        [],
        ["data"],
        ["features"],
        ["extract"],
        ["evaluate"],
        ["predict"],
        ["results"],
        ["demo"],
        ["tiny-lmm"],
        ["stage2"],
        ["doctor"],
    ):
        result = CliRunner().invoke(app, [*words, "--help"])
        assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_a_user_error_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    for words, said in (
        (["extract", "--checkpoint", "none", "--data", "x", "--output", "f"], "Error: none does not exist"),
        (["stage2", "none.yaml"], "Error: none.yaml does not exist; give the path of a YAML file."),
        (["tiny-lmm", "--family", "qwen", "--output", "m"], "Error: "),
    ):
        done = run([str(BIN / "ra-hmd"), *words], tmp_path)
        assert done.returncode == 2
        assert said in done.stdout
        assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_make_confounders_and_features_round_trip(tmp_path: Path) -> None:
    import torch

    done = run([str(BIN / "ra-hmd"), "data", "make-confounders", "--output", "data", "--size", "16"], tmp_path)
    assert done.returncode == 0, done.stdout
    rows = [json.loads(line) for line in (tmp_path / "data/a/train.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    assert set(rows[0]) == {"id", "img", "label", "text"}
    torch.save({"ids": ["x", "y"], "feats": torch.eye(2), "labels": torch.tensor([0, 1])}, tmp_path / "old.pt")
    for words in (["import", "old.pt", "--output", "store"], ["export", "store", "--output", "new.pt"]):
        done = run([str(BIN / "ra-hmd"), "features", *words], tmp_path)
        assert done.returncode == 0, done.stdout
    again = torch.load(tmp_path / "new.pt", weights_only=True)
    assert again["ids"] == ["x", "y"]
    assert torch.equal(again["feats"], torch.eye(2))
