"""The settings: help on every field, all problems at once, and every shipped file."""

from pathlib import Path

import pytest

from ra_hmd.core.config import load_yaml
from ra_hmd.core.errors import UserError
from stage2.arguments import Stage2Arguments

CONFIGS = Path(__file__).parents[2] / "configs"
DATA_SETS = sorted((CONFIGS / "stage2").rglob("*.yaml"))
FILES = [*DATA_SETS, CONFIGS / "demo" / "stage2.yaml"]


def test_every_field_has_help_and_none_is_test_data():
    for name, field in Stage2Arguments.model_fields.items():
        assert len(field.description) > 10, name
        assert "test" not in name


def test_defaults_are_the_released_ones():
    args = Stage2Arguments(train="t", output_dir="o")
    assert (args.metric, args.hard_negatives, args.pseudo_gold_positives, args.in_batch_negatives) == ("ip", 1, 1, True)
    assert (args.ce_weight, args.batch_size, args.epochs, args.lr) == (0.5, 64, 30, 1e-4)
    assert (args.weight_decay, args.grad_clip, args.topk, args.weights) == (0.01, 1.0, 20, "arithmetic")
    assert args.select_by == "dev_rkc_auroc"
    assert args.train == Path("t")


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"epochs": 0, "lr": -1, "ce_weight": 2}, ["`epochs` is 0", "`lr` is -1", "`ce_weight` is 2", "[0, 1]"]),
        ({"metric": "l1", "lr": "fast"}, ["'l1' is not one of", "`lr`"]),
        ({"lr": float("nan"), "weight_decay": -0.1}, ["`lr` is nan", "`weight_decay` is -0.1"]),
        ({"hard_negatives": 0, "in_batch_negatives": False}, ["no negatives"]),
        ({"pseudo_gold_positives": 0}, ["the contrastive loss has no positives"]),
        ({"temperature": 0, "margin": -1, "loss": "triplet"}, ["`temperature` is 0", "`margin` is -1"]),
        ({"init_head": "h", "num_layers": 3, "proj_dim": 8}, ["`num_layers` is set", "`proj_dim` is set"]),
        ({"dev": "t"}, ["chosen on training data"]),
        ({"output_dir": "h", "init_head": "h"}, ["`output_dir` is `init_head`"]),
        ({"output_dir": "t"}, ["`output_dir` is `train`"]),
    ],
)
def test_all_problems_are_told_together(changes, messages):
    with pytest.raises(UserError) as error:
        Stage2Arguments(**{"train": "t", "output_dir": "o"} | changes)
    for message in messages:
        assert message in str(error.value)


def test_no_negatives_are_needed_without_the_contrastive_loss():
    Stage2Arguments(train="t", output_dir="o", hard_negatives=0, in_batch_negatives=False, ce_weight=1.0)


def test_there_is_a_file_for_each_data_set():
    names = {"hateful_memes", "harm_c", "harm_p", "mami", "multioff", "pridemm"}
    assert {path.stem for path in DATA_SETS} == names


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_file_loads_and_tells_how_to_run_it(path):
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(CONFIGS.parent).as_posix()
    assert f"ra-hmd stage2 {name}" in text
    args = load_yaml(Stage2Arguments, path, ["epochs=2"])
    assert args.epochs == 2
    assert args.dev is not None
    assert args.init_head is not None


@pytest.mark.parametrize("path", DATA_SETS, ids=lambda path: path.stem)
def test_the_data_sets_files_keep_the_released_hyper_parameters(path):
    args = load_yaml(Stage2Arguments, path, [])
    released = Stage2Arguments(train="t", output_dir="o")
    paths = {"train", "dev", "init_head", "output_dir"}
    for name in Stage2Arguments.model_fields.keys() - paths:
        assert getattr(args, name) == getattr(released, name), name


def test_another_stage_1_run_takes_all_paths_along():
    args = load_yaml(Stage2Arguments, CONFIGS / "stage2" / "mami.yaml", ["init_head=saves/mine"])
    assert (args.train, args.dev) == (Path("saves/mine/features/train"), Path("saves/mine/features/dev"))
    assert args.output_dir == Path("saves/mine/stage2")
