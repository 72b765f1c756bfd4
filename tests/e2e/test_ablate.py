"""The ablation's every command, with little training."""

import json
from io import StringIO
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
import yaml
from engines import BIN, ROOT, run
from json_files import read_json
from rich.console import Console
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.experiments import pipeline
from ra_hmd.experiments.ablation import SETTINGS, VARIANTS, ablation_steps, run_ablation
from ra_hmd.experiments.pipeline import Step, run_steps
from ra_hmd.features.store import read_features
from ra_hmd.features.test_lock import final_records

pytestmark = pytest.mark.slow

HEAD_KEYS = {"loss_ratio", "classifier_lr", "num_layers", "proj_dim"}


@pytest.fixture
def _own_steps_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The `ra-hmd` steps of a pipeline run here, one at a time. As processes they run in test_demo.py."""
    as_process, alone = pipeline._run, Lock()

    def run_step(step: Step, log: Path) -> float:
        if step.command[0] != "ra-hmd":
            return as_process(step, log)
        with alone:
            done = CliRunner().invoke(app, step.command[1:])
        assert done.exit_code == 0, f"{step.line}\n{done.output}\n{done.exception!r}"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(done.output, encoding="utf-8")
        return 0.0

    monkeypatch.setattr(pipeline, "_run", run_step)


@pytest.mark.usefixtures("_own_steps_in_this_process")
def test_quick_ablation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_ablation("out", quick=True, bootstrap_samples=100, console=Console(file=StringIO()))
    output = tmp_path / "out"
    ablation = json.loads((output / "ablation.json").read_text())
    variants = ablation["variants"]
    assert set(variants) == set(VARIANTS)
    assert set(ablation["against_full"]) == set(VARIANTS) - {"full"}
    for name, cells in ablation["against_full"].items():
        for column, change in cells.items():
            both = [variants[one][column]["auroc"]["value"] for one in (name, "full")]
            assert change["value"] == pytest.approx(both[0] - both[1])
            assert change["low"] <= change["high"]
    same = ablation["against_full"]["no_stage2"]["A · LMH"]
    assert same["value"] == 0
    assert same["low"] < 0 < same["high"], "what is equal on these memes may differ on others"
    for cells in variants.values():
        assert set(cells) == set(SETTINGS)
        for cell in cells.values():
            assert cell["accuracy"]["low"] <= cell["accuracy"]["value"] <= cell["accuracy"]["high"]
    # LMH does not depend on the head: both have the LMM of Stage 1.
    assert variants["full"]["A · LMH"] == variants["no_stage2"]["A · LMH"]
    assert variants["full"]["A · RKC"] != variants["no_stage2"]["A · RKC"]
    merged = read_features(output / "seed-42/features/sft/a_test")
    area = roc_auc_score(merged.labels, merged.lmh_score[:, 0])
    assert variants["sft"]["A · LMH"]["auroc"]["value"] == pytest.approx(area), "the verdict of the merged model itself"
    check_that_trainings_differ(output)
    manifest = read_json(output / "ra_hmd.json")
    assert len(manifest.commands) == len(ablation_steps(Path("out"), [42], quick=True))
    assert len(final_records(output / "seed-42/stage2/full")) == 1
    report = (output / "ablation.md").read_text()
    assert "`--quick`" in report
    assert "llamafactory-cli export" in report
    assert (output / "ablation.png").read_bytes().startswith(b"\x89PNG")

    command = [str(BIN / "ra-hmd"), "ablate", "--output", "out", "--quick", "--bootstrap-samples", "100"]
    again = run(command, tmp_path)
    assert again.returncode == 0, again.stdout
    assert again.stdout.count("already done") == len(manifest.commands)
    assert json.loads((output / "ablation.json").read_text())["variants"] == variants


def check_that_trainings_differ(output: Path) -> None:
    """Each LMM was tuned in its own way, and the combined one saw the retrieval-guided loss."""
    places = {
        "backbone": output / "features/backbone",
        **{name: output / "seed-42/features" / name for name in ("stage1", "sft", "joint")},
    }
    hidden = {name: read_features(place / "b_test").hidden for name, place in places.items()}
    for one, first in hidden.items():
        for other, second in hidden.items():
            assert one == other or not np.allclose(first, second, atol=1e-3), (one, other)
    logs = {
        name: json.loads((output / f"seed-42/{name}/trainer_state.json").read_text())["log_history"]
        for name in ("stage1", "joint")
    }
    assert any("rgcl_loss" in entry for entry in logs["joint"])
    assert not any("rgcl_loss" in entry for entry in logs["stage1"])


def test_variants_share_one_recipe() -> None:
    """The SFT file has every key of the Stage 1 file but the head's, with the same values but the stage's own."""
    files = [ROOT / "configs/demo/stage1_qwen2_vl.yaml", ROOT / "configs/ablate/sft_qwen2_vl.yaml"]
    stage1, sft = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in files)
    assert set(stage1) - set(sft) == HEAD_KEYS
    assert set(sft) <= set(stage1)
    differing = {key for key in sft if sft[key] != stage1[key]}
    assert differing == {"stage", "output_dir", "metric_for_best_model"}


def test_seeds_are_trainings_of_their_own_after_one_pretraining() -> None:
    one, two = (ablation_steps(Path("out"), seeds) for seeds in ([42], [42, 43]))
    assert [step.line for step in two[: len(one)]] == [step.line for step in one]
    lines = [step.line for step in two[len(one) :]]
    assert not any("pretrain" in line.split()[2] or "features/backbone --split" in line for line in lines)
    trainings = [line for line in lines if line.startswith("llamafactory-cli train")]
    assert len(trainings) == 3
    assert all("seed=43" in line and "seed-43" in line for line in trainings)
    assert len({step.line for step in two}) == len(two), "a step is known by its command line"


def test_bad_numbers_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--seeds 0 must be 1 or more"):
        run_ablation(tmp_path / "out", seeds=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_step_that_fails_is_told_and_what_was_done_is_kept(jobs: int, tmp_path: Path) -> None:
    good = [Step(f"good {number}", ["python", "-c", f"print({number})"], "g") for number in range(6)]
    bad = Step("bad", ["python", "-c", "import sys; print('the reason'); sys.exit(3)"], "g")
    console = Console(record=True, width=200)
    steps = [good[0], bad, *good[1:], Step("later", ["python", "-V"])]
    with pytest.raises(UserError, match=r"(?s)Step 'bad' failed \(exit code 3\).*the reason"):
        run_steps("ablate", steps, tmp_path, console=console, jobs=jobs)
    kept = set(read_json(tmp_path / "ablate.json").seconds)
    assert kept == {good[0].line} if jobs == 1 else good[0].line in kept and good[5].line not in kept
    assert "later" not in console.export_text()
    assert set(run_steps("ablate", good, tmp_path, console=console, jobs=jobs)) == {step.line for step in good}
    assert console.export_text().count("already done") == len(kept)
    logs = sorted(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert "5\n" in logs
