"""`ra-hmd retention policy`: two evaluations of the memes of an earlier policy."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab import Lab
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.evaluation.metrics.intervals import paired_gain
from ra_hmd.experiments.retention.config import PolicySettings
from ra_hmd.experiments.retention.policy import policy_retention

FEW = PolicySettings(bootstrap_samples=200)


@pytest.fixture
def before(lab: Lab) -> Path:
    lab.store("large", lab.features(400, 3, "q"))
    lab.evaluate(queries=[lab.folder / "large"], output=lab.folder / "before")
    return lab.folder / "before"


def changed(before: Path, name: str, wrong: int = 0, **changes: Any) -> Path:
    """The same evaluation, in which the first `wrong` memes that the LRC had right are wrong."""
    after = before.with_name(name)
    shutil.copytree(before, after)
    rows = [json.loads(line) for line in (before / "predictions.jsonl").read_text().splitlines()]
    for row in rows:
        row.update(changes)
        if wrong and (row["lrc_score"] >= 0.5) == row["label"]:
            row["lrc_score"], wrong = 0.99 - row["label"] * 0.98, wrong - 1
    (after / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return after


def rows_of(gate: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["task"]: row for row in gate["rows"]}


def test_an_equal_run_passes_and_a_worse_head_fails(before: Path, tmp_path: Path) -> None:
    same = policy_retention(before, changed(before, "same"), tmp_path / "out" / "same", FEW)
    assert same["gate"]["verdict"] == "pass"
    worse = policy_retention(before, changed(before, "worse", wrong=60), tmp_path / "out" / "worse", FEW)
    rows = rows_of(worse["gate"])
    assert (rows["LRC"]["verdict"], rows["LMH"]["verdict"], worse["gate"]["verdict"]) == ("fail", "pass", "fail")
    assert rows["LRC"]["difference"]["value"] == pytest.approx(-60 / 400)
    assert "LRC" in (tmp_path / "out" / "worse" / "policy.md").read_text()


def test_the_difference_is_the_paired_gain(before: Path, tmp_path: Path) -> None:
    after = changed(before, "after", wrong=20)
    right = []
    for place in (before, after):
        lines = [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]
        right.append(np.array([(line["lrc_score"] >= 0.5) == line["label"] for line in lines]))
    expected = paired_gain(*right, samples=200, seed=0).as_dict()
    found = policy_retention(before, after, tmp_path / "out", FEW, heads=["lrc"])
    assert rows_of(found["gate"])["LRC"]["difference"] == expected
    assert found["comparisons"][0]["mcnemar"]["only_first"] == 20


def test_a_single_set_is_matched_whatever_its_name(before: Path, tmp_path: Path) -> None:
    renamed = changed(before, "renamed", set="other name")
    assert policy_retention(before, renamed, tmp_path / "out", FEW)["memes"] == 400


def test_exit_codes_are_those_of_the_gate(before: Path, tmp_path: Path) -> None:
    cases = {"equal": (0, 0, 0.03), "lost": (60, 1, 0.03), "open": (12, 2, 0.03)}
    for name, (wrong, code, margin) in cases.items():
        after = changed(before, name, wrong=wrong)
        words = ["retention", "policy", "--before", before, "--after", after, "--output", tmp_path / "out" / name,
                 "--head", "lrc", "--margin", margin]  # fmt: skip
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == code, done.output
        assert (tmp_path / "out" / name / "ra_hmd.json").is_file()


def test_what_does_not_fit_is_a_sentence(before: Path, lab: Lab, tmp_path: Path) -> None:
    cases = [
        (changed(before, "labels", label=1), {}, "have other labels"),
        (changed(before, "ids", id="x"), {}, "no meme in common"),
        (changed(before, "heads", lmh_score=None), {"heads": ["lmh"]}, "lmh: not in both evaluations"),
        (before, {"query_set": "nothing"}, "name with --set"),
        (tmp_path / "missing", {}, "does not exist"),
    ]
    for after, options, words in cases:
        with pytest.raises(UserError, match=words):
            policy_retention(before, after, tmp_path / "out", FEW, **options)
    assert not (tmp_path / "out").exists()
