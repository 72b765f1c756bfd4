"""Fixtures of all tests: tiny models, synthetic memes, a trained run."""

import os
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import offline  # noqa: F401 - first of what imports libraries
import pytest
import torch
from cross_lab import cross
from engines import train
from expert_runs import expert_config, expert_run, guides
from hypothesis import HealthCheck, settings
from lab import lab
from matplotlib.figure import Figure
from object_stores import bucket
from once import SharedFolders, shared_root
from PIL import Image
from served import clip_bank, served_clip, served_experts, served_lmm

from ra_hmd.data.synthetic.confounders import make_confounders
from ra_hmd.models.families import FAMILIES
from ra_hmd.models.tiny import make_tiny_lmm

# Fixtures of cross_lab.py, expert_runs.py, lab.py, object_stores.py and served.py.
__all__ = [
    "bucket",
    "clip_bank",
    "cross",
    "expert_config",
    "expert_run",
    "guides",
    "lab",
    "served_clip",
    "served_experts",
    "served_lmm",
]
SIZE = 96
# Fixtures that train an LMM or start a browser: tests that need them are slow.
SLOW_FIXTURES = {"expert_run", "stage1_run", "served_lmm", "served_experts", "browser"}
# With `--dist loadfile` a process takes the next file of this order when it is free, so the last one should be short.
LONGEST_FIRST = (
    "docs/test_documented_walks.py",
    "docs/test_howto.py",
    "e2e/test_few_shot_study.py",
    "llamafactory_ext/test_expert_engines.py",
    "e2e/test_families.py",
    "e2e/test_ssmoe_walk.py",
    "e2e/test_ablate.py",
    "llamafactory_ext/test_stage1.py",
    "llamafactory_ext/test_joint_training.py",
    "llamafactory_ext/test_finite_training.py",
    "llamafactory_ext/test_tuning_kinds.py",
    "e2e/test_demo.py",
    "privacy/test_nothing_leaves.py",
    "docs/test_tutorials.py",
    "e2e/test_encoder_track.py",
    "llamafactory_ext/test_gpu_recipe.py",
    "packaging/test_gpu_check.py",
    "packaging/test_wheel.py",
    "experiments/test_in_context.py",
    "llamafactory_ext/test_reuse.py",
    "inference/test_predict_files.py",
    "docs/test_notebook.py",
    "features/test_extract.py",
)
BLANK = BytesIO()
Image.new("RGB", (1, 1)).save(BLANK, "PNG")

# The same examples in each run, however slow the machine is. `pytest --hypothesis-profile default` draws others.
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")

# With tensors as small as these, more threads only wait for each other.
torch.set_num_threads(1)
faiss.omp_set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, and mark the tests whose fixtures are slow."""
    here = Path(__file__).parent
    rank = {here / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets`, mapping over several processes, puts a copy in the place of `os.environ`; who holds the old one, as
    rich does, would no longer see what later tests set.
    """
    monkeypatch.setattr(os, "environ", os.environ)  # so that this one is put back


@pytest.fixture(autouse=True)
def _figures_are_not_rendered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering takes most of an evaluation's time: outside the tests marked `renders` and outside shared fixtures and
    child processes, figures are built, and a blank PNG is written.
    """
    if request.node.get_closest_marker("renders") is None:
        monkeypatch.setattr(Figure, "savefig", _write_blank)


def _write_blank(figure: Figure, file: str | Path | BinaryIO, **options: Any) -> None:
    if isinstance(file, str | Path):
        Path(file).write_bytes(BLANK.getvalue())
    else:
        file.write(BLANK.getvalue())


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedFolders]:
    """Folders that are made once per test run, whatever the number of worker processes; tests only read them."""
    folders = SharedFolders(shared_root(tmp_path_factory))
    yield folders
    folders.check_unchanged()


@pytest.fixture(scope="session")
def tiny(once: SharedFolders) -> Callable[[str], Path]:
    """Folder of a tiny LMM of a family."""

    def make(family: str) -> Path:
        return (
            once(family, lambda folder: make_tiny_lmm(family, folder / "model", hidden_size=64, num_layers=2)) / "model"
        )

    return make


@pytest.fixture(scope="session")
def memes(once: SharedFolders) -> Path:
    """A few synthetic memes, with their LLaMA-Factory files."""
    return once("memes", lambda folder: make_confounders(folder / "data", size=SIZE)) / "data"


@pytest.fixture(scope="session")
def stage1_config(tiny: Callable[[str], Path], memes: Path) -> Callable[..., dict[str, Any]]:
    """A small `sft-classifier` configuration; keyword arguments override, None removes."""

    def make(output: Path, family: str = "qwen2_vl", **changes: Any) -> dict[str, Any]:
        config = {
            "model_name_or_path": str(tiny(family)),
            "stage": "sft-classifier",
            "do_train": True,
            "finetuning_type": "lora",
            "lora_target": "all",
            "lora_rank": 8,
            "lora_dropout": 0.1,
            "dataset": "confounders_a",
            "eval_dataset": "confounders_a_dev",
            "dataset_dir": str(memes),
            "template": FAMILIES[family].templates[0],
            "cutoff_len": 192,
            "overwrite_cache": True,
            "max_samples": 32,
            "output_dir": str(output),
            "logging_steps": 1,
            "save_strategy": "no",
            "overwrite_output_dir": True,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "learning_rate": 2e-3,
            "num_train_epochs": 1,
            "report_to": "none",
            "seed": 7,
            "loss_ratio": [1.0, 1.0],
            "classifier_lr": 1e-3,
            "proj_dim": 32,
        }
        return {key: value for key, value in (config | changes).items() if value is not None}

    return make


@pytest.fixture(scope="session")
def stage1_run(stage1_config: Callable[..., dict[str, Any]], once: SharedFolders) -> Path:
    """A LoRA run of stock `llamafactory-cli`, with checkpoints, evaluation, predictions; `run.log` is beside it."""

    def make(folder: Path) -> None:
        config = stage1_config(
            folder / "run",
            save_strategy="steps",
            save_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            do_predict=True,
            metric_for_best_model="eval_lrc_auroc",
            load_best_model_at_end=True,
            plot_loss=True,
        )
        (folder / "run.log").write_text(train(config, folder))

    return once("stage1", make) / "run"
