"""Data that nobody here made: Stage 2 raises the KNN vote's dev AUROC over that of the features themselves."""

import json
import sys

import pytest
from engines import ROOT, run

pytestmark = pytest.mark.slow


def test_stage_2_raises_the_vote_on_digits_and_breast_cancer(tmp_path):
    script = ROOT / "scripts" / "bench" / "stage2_real_features.py"
    done = run([sys.executable, str(script), "--seeds", "5", "--output", "result.json"], tmp_path)
    assert done.returncode == 0, done.stdout
    results = json.loads((tmp_path / "result.json").read_text())
    assert [one["data"] for one in results] == ["digits", "breast_cancer"]
    for one in results:
        assert len(one["seeds"]) == 5
        assert min(one["seeds"]) > one["before"], "every seed gains"
    digits, cancer = results
    assert digits["low"] > 0, f"the 95 % interval of the gain begins at {digits['low']}"
    assert digits["low"] < cancer["gain"] < cancer["high"], "285 rows leave a wide interval around a larger gain"
