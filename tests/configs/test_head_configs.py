"""configs/hateclipper and configs/rgcl: each published hyper-parameter, in the defaults and in every file."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from config_files import check_each

from ra_hmd.core.config import load_yaml
from ra_hmd.data.readers import READERS
from ra_hmd.features.store import Features
from ra_hmd.models.clip_presets import PRESETS
from ra_hmd.models.fusion import FusionConfig
from ra_hmd.models.head import HeadConfig
from ra_hmd.training.arguments import HeadArguments
from ra_hmd.training.classification import TrainHeadArguments
from ra_hmd.training.inputs import head_config
from stage2.arguments import Stage2Arguments

ROOT = Path(__file__).resolve().parents[2]
HATECLIPPER = sorted((ROOT / "configs" / "hateclipper").rglob("*.yaml"))
RGCL = sorted((ROOT / "configs" / "rgcl").rglob("*.yaml"))
FILES = [*HATECLIPPER, *RGCL]
DATA_SETS = ("hateful_memes", "harm_c", "harm_p", "mami", "multioff", "pridemm", "propaganda")

# Hate-CLIPper (arXiv 2210.05916 and its code's run.sh): AdamW, lr 1e-4, weight decay 1e-4, batch 64, at most 20 epochs,
# gradient clip 0.1, best by AUROC on dev of its output; n = 1024, pre-output layers of 1024, dropout 0.2/0.4/0.1.
HATECLIPPER_TRAINING = {
    "lr": 1e-4,
    "weight_decay": 1e-4,
    "batch_size": 64,
    "epochs": 20,
    "grad_clip": 0.1,
    "select_by": "dev_lrc_auroc",
    "class_weights": "none",
    "classification_loss": "cross_entropy",
    "image_loss": 0.0,
    "text_loss": 0.0,
    "fine_grained_loss": 0.0,
}
# RGCL (arXiv 2311.08110 and its released script): the same projections, fusion align, m = 3, dropout 0.2/0.4/0.1; lr
# 1e-4, batch 64, 30 epochs, top-K 20 (the paper's text: 10), seed 0; cosine, triplet with margin 0.1, hybrid CE 0.5,
# one hard negative, one pseudo-gold positive, negatives of the batch.
RGCL_TRAINING = {
    "lr": 1e-4,
    "batch_size": 64,
    "epochs": 30,
    "topk": 20,
    "seed": 0,
    "metric": "cos",
    "loss": "triplet",
    "margin": 0.1,
    "ce_weight": 0.5,
    "hard_negatives": 1,
    "pseudo_gold_positives": 1,
    "in_batch_negatives": True,
    "mining": "dense",
}
LAYERS = {"align": 3, "cross": 1, "concat": 3}  # m
PUBLISHED = {  # features of the encoder that the authors used: ViT-L/14, image 1024, text 768
    "image_dim": 1024,
    "text_dim": 768,
    "map_dim": 1024,
    "mapping_layers": 1,
    "map_dropout": 0.2,
}
CONFOUNDERS_DIFFER = {"epochs": 10, "lr": 1e-3}


def published_head(fusion: str, layers: int, **changes: Any) -> HeadConfig:
    """Hate-CLIPper's head with m pre-output layers."""
    fused = FusionConfig(kind=fusion, **PUBLISHED)
    rates = {"input_dropout": 0.4, "dropout": (0.1,) * layers}
    return HeadConfig(input_dim=1792, num_layers=layers + 1, proj_dim=1024, fusion=fused, **rates, **changes)


def features() -> Features:
    """Of ViT-L/14."""
    return Features(["a", "b"], np.array([0, 1]), np.zeros((2, 1792), np.float32), modalities=(1024, 768))


def load(path: Path, *overrides: str) -> HeadArguments:
    return load_yaml(Stage2Arguments if path in RGCL else TrainHeadArguments, path, list(overrides))


@pytest.fixture(scope="module")
def make_configs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_head_configs", ROOT / "scripts" / "make_head_configs.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_defaults_of_train_head_are_hateclippers() -> None:
    args = TrainHeadArguments(train="t", output_dir="o")
    for name, value in HATECLIPPER_TRAINING.items():
        assert getattr(args, name) == value, name
    assert head_config(args, features()) == published_head("align", 3)
    assert args.patience is None, "the authors train all epochs"


def test_the_defaults_of_stage_2_that_rgcl_shares() -> None:
    """Stage 2's defaults are RA-HMD's; what RGCL has otherwise stands in its files."""
    args = Stage2Arguments(train="t", output_dir="o")
    differing = {name for name, value in RGCL_TRAINING.items() if getattr(args, name) != value}
    assert differing == {"seed", "metric", "loss"}


def test_each_file_of_hateclipper() -> None:
    check_each([path for path in HATECLIPPER if "confounders" not in path.stem], _check_each_file_of_hateclipper)


def _check_each_file_of_hateclipper(path: Path) -> None:
    args, fusion = load(path), path.stem.rsplit("_", 1)[1]
    for name, value in HATECLIPPER_TRAINING.items():
        assert getattr(args, name) == value, name
    classes = {"problem_type": "multi_label", "output_dim": 22} if "propaganda" in path.stem else {}
    assert head_config(args, features()) == published_head(fusion, LAYERS[fusion], **classes)


def test_each_file_of_rgcl() -> None:
    check_each([path for path in RGCL if "confounders" not in path.stem], _check_each_file_of_rgcl)


def _check_each_file_of_rgcl(path: Path) -> None:
    args, sets = load(path), path.stem == "propaganda"
    for name, value in RGCL_TRAINING.items():
        assert getattr(args, name) == ("contrastive" if sets and name == "loss" else value), name
    classes = {"problem_type": "multi_label", "output_dim": 22} if sets else {}
    assert head_config(args, features()) == published_head("align", 3, embedding="linear", **classes)
    assert args.select_by == "dev_rkc_auroc"
    assert "the paper's text says 10" in path.read_text(encoding="utf-8")


def test_the_small_files_differ_in_size_and_speed_alone() -> None:
    check_each(
        [path for path in FILES if "confounders" in path.stem], _check_the_small_files_differ_in_size_and_speed_alone
    )


def _check_the_small_files_differ_in_size_and_speed_alone(path: Path) -> None:
    small, whole = load(path), load(path.with_name(path.name.replace("confounders", "hateful_memes")))
    paths = {"train", "dev", "output_dir"}
    differing = {
        name: value for name, value in small.model_dump().items() if name not in paths and value != getattr(whole, name)
    }
    size = {"map_dim": 128, "proj_dim": 128, "num_layers": 2}
    if "cross" in path.stem:
        del size["num_layers"]  # which has one pre-output layer anyway
    assert differing == size | CONFOUNDERS_DIFFER


def test_there_is_a_file_for_each_data_set_and_fusion() -> None:
    names = (*DATA_SETS, "confounders")
    assert {path.stem for path in RGCL} == set(names)
    assert {path.stem for path in HATECLIPPER} == {f"{name}_{fusion}" for name in names for fusion in LAYERS}


def test_every_file_tells_how_to_run_it(make_configs: ModuleType) -> None:
    check_each(FILES, lambda path: _check_every_file_tells_how_to_run_it(path, make_configs))


def _check_every_file_tells_how_to_run_it(path: Path, make_configs: ModuleType) -> None:
    header = path.read_text(encoding="utf-8").partition("\n\n###")[0]
    command = "stage2" if path in RGCL else "train-head"
    assert f"ra-hmd {command} {path.relative_to(ROOT).as_posix()}" in header
    assert all(line.startswith("#") and len(line) <= 124 for line in header.splitlines())
    args = load(path, "epochs=2")
    assert args.epochs == 2
    for store in (args.train, args.dev):
        assert f"--output {store}" in header
    encoder = header.split("--encoder ")[1].split()[0]
    assert encoder in PRESETS or "confounders" in path.stem


def test_the_overrides_that_a_header_names_are_understood(make_configs: ModuleType) -> None:
    check_each(FILES, lambda path: _check_the_overrides_that_a_header_names_are_understood(path, make_configs))


def _check_the_overrides_that_a_header_names_are_understood(path: Path, make_configs: ModuleType) -> None:
    recipe = next(one for one in make_configs.recipes() if ROOT / "configs" / one.path == path)
    for key, _ in make_configs._overrides(recipe):
        words = [word.strip("'") for word in key.replace("\\\n", " ").split()]
        load(path, *words)


@pytest.mark.parametrize("name", DATA_SETS)
def test_fine_grained_tasks_and_splits_are_those_of_the_readers(name: str, make_configs: ModuleType) -> None:
    dataset = next(one for one in make_configs.DATASETS if one.file == name)
    tasks = {task.name: task for task in READERS[name].tasks}
    assert set(dataset.fine.split(",") if dataset.fine else []) <= set(tasks)
    if dataset.task is not None:
        assert len(tasks[dataset.task].classes) == dataset.classes
    splits = {split for expected in READERS[name].expected.values() for split in expected}
    assert {"train", dataset.dev} <= splits


def test_the_folders_hold_what_the_table_says_and_nothing_else(make_configs: ModuleType, tmp_path: Path) -> None:
    assert make_configs.compare() == []
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "make_head_configs.py", "--check"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "32 files" in done.stdout
    for path, text in make_configs.render_all().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    assert make_configs.compare(tmp_path) == []
    (tmp_path / "rgcl" / "mami.yaml").unlink()
    (tmp_path / "rgcl" / "harm_c.yaml").write_text("lr: 1\n", encoding="utf-8")
    (tmp_path / "hateclipper" / "deep").mkdir()
    (tmp_path / "hateclipper" / "deep" / "extra.yaml").write_text("", encoding="utf-8")
    problems = make_configs.compare(tmp_path)
    assert len(problems) == 3
    assert "mami.yaml is missing" in problems[0]
    assert "extra.yaml has no recipe" in problems[1]
    assert "harm_c.yaml differs" in problems[2]


def test_no_two_files_share_an_output_folder() -> None:
    assert len({load(path).output_dir for path in FILES}) == len(FILES)
