"""The demo's every command, with little training."""

import json
import shutil
from pathlib import Path

import pytest
from documented import blocks, expanded
from engines import BIN, run

from ra_hmd.experiments.demo import demo_steps

pytestmark = pytest.mark.slow


def test_quick_demo(tmp_path: Path) -> None:
    command = [str(BIN / "ra-hmd"), "demo", "--output", "out dir", "--quick"]
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stdout
    for step in demo_steps(Path("out dir"), quick=True):
        assert step.title in done.stdout
    metrics = json.loads((tmp_path / "out dir/report/metrics.json").read_text())
    assert set(metrics["a_test"]) == {"lmh", "lrc", "rkc", "krr"}
    for curve in metrics["bank_update"].values():
        assert all("std" in point["krr"]["auroc"] for point in curve[1:]), "several draws of each size"
    assert set(metrics["bank_update"]) == {"a_test", "b_test"}
    for figure in ("bank_update.svg", "embeddings.svg"):
        assert (tmp_path / "out dir/report" / figure).is_file()
    assert [point["added"] for point in metrics["bank_update"]["b_test"]] == [0, 8, 32, 128]
    assert metrics["a_test"]["rkc"]["auroc"]["low"] <= metrics["a_test"]["rkc"]["auroc"]["value"]
    assert (tmp_path / "out dir/report/report.md").is_file()
    assert len(list((tmp_path / "out dir/report").glob("*.png"))) >= 4
    searches = json.loads((tmp_path / "out dir/stage2/mining.json").read_text())["searches"]
    assert [search["epoch"] for search in searches] == list(range(1, 11)), "one search in each of the ten epochs"
    assert all(search["hard_negatives"]["found"] == search["anchors"] for search in searches), "one for every anchor"

    picture = sorted((tmp_path / "out dir/data/a/img").iterdir())[0]
    shutil.copy(picture, tmp_path / "picture.png")
    (block,) = (one for one in blocks("bash", ("docs/start.md",)) if "ra-hmd predict" in one.text)
    ((program, *words),) = expanded(block.text, tmp_path)
    asked = run([str(BIN / program), *(word.replace("outputs/demo", "out dir") for word in words)], tmp_path)
    assert asked.returncode == 0, asked.stdout
    assert "verdict" in asked.stdout
    assert "similarity" in asked.stdout

    again = run(command, tmp_path)
    assert again.returncode == 0
    assert again.stdout.count("already done") == len(demo_steps(Path("out dir"), quick=True))
