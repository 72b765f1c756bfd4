"""The few-shot study on tiny models: every arm trained and scored, resumed, and killed."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from engines import BIN, child_env, run
from json_files import read_json
from once import SharedFolders
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.config import load_yaml
from ra_hmd.experiments import pipeline
from ra_hmd.experiments.few_shot.arms import ARMS, optimizer_steps
from ra_hmd.experiments.few_shot.config import FewShotSettings
from ra_hmd.experiments.few_shot.run import run_few_shot
from ra_hmd.experiments.pipeline import Step
from ra_hmd.features.store import read_features
from ra_hmd.features.test_lock import final_records
from ra_hmd.models.tiny_clip import make_tiny_encoder

pytestmark = pytest.mark.slow

TRAINED = [arm for arm, stated in ARMS.items() if stated.tuning is not None]
RECIPE = {
    "template": "qwen2_vl",
    "stage": "sft-classifier",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 4,
    "lora_alpha": 4,
    "loss_ratio": [1.0, 0.0],
    "llm_moe_num_experts": 3,
    "expert_rank": 4,
    "expert_alpha": 4.0,
    "router_lr": 1e-2,
    "cutoff_len": 256,
    "overwrite_cache": True,
    "report_to": "none",
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 5e-3,
    "num_train_epochs": 2.0,
}


@pytest.fixture(scope="module")
def prepared(once: SharedFolders, memes: Path, tiny: Callable[[str], Path]) -> Path:
    """Clusters of a tiny CLIP, hand-written guidance, and a study of all arms: K = 4, two lists."""

    def make(folder: Path) -> None:
        make_tiny_encoder("clip", folder / "clip")
        words = ["cluster", "--data", str(memes / "a"), "--encoder", str(folder / "clip"), "--clusters", "3"]
        told(*words, "--stability-seeds", "1", "--workers", "0", "--output", str(folder / "clusters"))
        (folder / "texts").mkdir()
        for cluster, word in enumerate(("fish", "rain", "tea")):
            (folder / f"texts/{cluster}.txt").write_text(f"Ask what the picture has to do with {word}.")
        place = str(folder / "guidance.json")
        told("guidance", str(folder / "clusters"), "--from", str(folder / "texts"), "--output", place)
        told("data", "k-shot", str(memes / "a"), "--shots", "4", "--seeds", "2", "--output", str(folder / "lists.json"))
        study = {
            "data": str(memes / "a"),
            "keys": RECIPE,
            "model": str(tiny("qwen2_vl")),
            "clusters": str(folder / "clusters"),
            "guidance": place,
            "k_shot": str(folder / "lists.json"),
            "shots": [4],
            "seeds": 2,
            "arms": list(ARMS),
            "bootstrap_samples": 50,
            "output_dir": "out",
        }
        (folder / "study.yaml").write_text(yaml.safe_dump(study))

    return once("few-shot", make)


def told(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return done.output


class InThisProcess:
    """Runs the steps of a study here, one after the other, and remembers them."""

    def __init__(self) -> None:
        self.done: list[Step] = []

    def __call__(self, step: Step, log: Path) -> float:
        self.done.append(step)
        if step.command[0] == "ra-hmd":
            told(*step.command[1:], "--workers", "0")
            return 1.0
        from llamafactory.train import tuner

        _, _, path, *overrides = step.command
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        config |= {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in overrides)}
        tuner.run_exp(config, callbacks=[])
        return 1.0


def settings_of(prepared: Path, *overrides: str) -> FewShotSettings:
    return load_yaml(FewShotSettings, prepared / "study.yaml", list(overrides))


@pytest.fixture(scope="module")
def studied(prepared: Path, once: SharedFolders) -> Path:
    """The finished study."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "_run", InThisProcess())
            settings = settings_of(prepared, f"output_dir={folder / 'out'}")
            run_few_shot(settings, final=True, command="ra-hmd few-shot", console=Console(file=StringIO()))

    return once("few-shot-study", make) / "out"


def weights(run: Path) -> dict[str, Any]:
    """Adapter and experts of a run."""
    files = [path for path in (run / "adapter_model.safetensors", run / "experts.safetensors") if path.is_file()]
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


def test_every_arm_has_its_scores_and_its_differences(studied: Path, memes: Path) -> None:
    found = read_json(studied / "few_shot.json")
    assert {cell.arm for cell in found.cells} == set(ARMS)
    for cell in found.cells:
        runs = 2 if cell.arm in TRAINED or ARMS[cell.arm].bank_head else 1
        assert len(cell.auroc.runs) == runs, cell.arm
        assert 0 <= cell.macro_f1.value <= 1
    assert {(one.arm, one.against) for one in found.differences} == {
        (arm, base) for base in ("lora", "rkc", "ssmoe") for arm in ARMS if arm != base
    }
    assert found.memes == len((memes / "a/test.jsonl").read_text().splitlines())
    assert len(final_records(studied / "runs/hydralora/4-shot-seed-1")) == 1


def test_parameters_that_were_printed_are_those_of_the_files(studied: Path) -> None:
    stated = read_json(studied / "few_shot.json").parameters
    for arm in TRAINED:
        tensors = weights(studied / f"runs/{arm}/4-shot-seed-0")
        assert stated[arm] == sum(tensor.numel() for name, tensor in tensors.items() if name != "share"), arm
    assert abs(stated.lora_matched / stated.ssmoe - 1) <= 0.05


def test_trained_arms_have_equal_steps_and_shots(studied: Path) -> None:
    states = [read_json(path) for path in sorted(studied.glob("runs/*/*/trainer_state.json"))]
    assert len(states) == 2 * len(TRAINED)
    assert {state.global_step for state in states} == {2 * 4 * 2 // 2} == {optimizer_steps(RECIPE, 4)}
    manifests = [read_json(studied / f"runs/{arm}/4-shot-seed-1/ra_hmd.json") for arm in TRAINED]
    assert all((one.data.train.rows, one.data.train.rows_per_class) == (8, {"0": 4, "1": 4}) for one in manifests)
    # Guidance is part of the tokens; without it they are the same.
    tokens = {arm: one.data.train.fingerprint for arm, one in zip(TRAINED, manifests, strict=True)}
    assert tokens["lora"] == tokens["lora_matched"] == tokens["hydralora"] == tokens["ssmoe_without_guidance"]
    assert tokens["ssmoe"] == tokens["lora_guidance"] != tokens["ssmoe_guidance_shuffled"]


def test_arms_are_what_they_say(studied: Path, prepared: Path) -> None:
    inputs = {arm: read_json(studied / f"runs/{arm}/4-shot-seed-0/ra_hmd.json").inputs for arm in TRAINED}
    own = inputs["ssmoe"]
    assert own.clusters == inputs["lora_guidance"].clusters == inputs["ssmoe_guidance_shuffled"].clusters
    assert own.clusters != inputs["ssmoe_ids_shuffled"].clusters
    assert own.guidance == inputs["lora_guidance"].guidance == inputs["ssmoe_ids_shuffled"].guidance
    assert own.guidance != inputs["ssmoe_guidance_shuffled"].guidance
    assert not inputs["ssmoe_without_guidance"].get("guidance")
    assert not inputs["lora"].get("clusters")
    scores = {
        arm: read_features(studied / f"features/{arm}/{'4-shot-seed-0' if arm in TRAINED else 'untuned'}").lmh_score
        for arm in ARMS
        if ARMS[arm].bank_head is None
    }
    for one, first in scores.items():
        for other, second in scores.items():
            assert one == other or np.abs(first - second).max() > 1e-6, (one, other)


def test_a_finished_study_does_only_what_is_missing(
    studied: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    steps = InThisProcess()
    monkeypatch.setattr(pipeline, "_run", steps)
    settings = settings_of(prepared, f"output_dir={studied}", "arms=[zero_shot,lora]")
    before = read_json(studied / "few_shot.json").cells
    copy = Path(shutil.copytree(studied.parent, tmp_path / "copy", copy_function=shutil.copy2)) / "out"
    shutil.move(studied, tmp_path / "kept")
    try:  # commands name the folder, so the copy takes its place for a while
        copy.rename(studied)
        run_few_shot(settings, final=True, console=Console(file=StringIO()))
        assert steps.done == []
        cells = read_json(studied / "few_shot.json").cells
        assert cells == [cell for cell in before if cell.arm in ("zero_shot", "lora")]
        shutil.rmtree(studied / "features/lora/4-shot-seed-1")
        run_few_shot(settings, final=True, console=Console(file=StringIO()))
        assert [step.title for step in steps.done] == ["Score · 4 shots, seed 1: LoRA q,k,v,o"]
        assert read_json(studied / "few_shot.json").cells == cells
    finally:
        shutil.rmtree(studied)
        shutil.move(tmp_path / "kept", studied)


def test_a_study_that_was_killed_goes_on_to_the_same_numbers(studied: Path, prepared: Path, tmp_path: Path) -> None:
    """By the command line: kill -9 hits the command and the training that it runs."""
    overrides = ["arms=[zero_shot,ssmoe]", "seeds=1", f"output_dir={tmp_path / 'out'}"]
    command = [str(BIN / "ra-hmd"), "few-shot", str(prepared / "study.yaml"), *overrides, "--final"]
    log = (tmp_path / "log").open("w")
    child = subprocess.Popen(command, cwd=tmp_path, env=child_env(), stdout=log, stderr=log, start_new_session=True)
    record, trained = tmp_path / "out/few_shot_steps.json", tmp_path / "out/runs/ssmoe/4-shot-seed-0"
    deadline = time.monotonic() + 400
    while not (record.is_file() and trained.is_dir()) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert child.poll() is None, (tmp_path / "log").read_text()[-3000:]
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert len(read_json(record).seconds) == 1
    assert not (tmp_path / "out/few_shot.json").exists()

    again = run(command, tmp_path)
    assert again.returncode == 0, again.stdout[-3000:]
    assert again.stdout.count("already done") == 1
    for name, tensor in weights(trained).items():
        assert np.array_equal(tensor, weights(studied / "runs/ssmoe/4-shot-seed-0")[name]), name
    one, other = (
        {cell.arm: cell.auroc.runs[0] for cell in read_json(out / "few_shot.json").cells}
        for out in (tmp_path / "out", studied)
    )
    assert one == {arm: other[arm] for arm in one}
