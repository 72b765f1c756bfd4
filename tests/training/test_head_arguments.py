"""The settings of train-head: help on every field, all problems at once, keys that mean nothing are unknown."""

import pytest

from ra_hmd.core.errors import UserError
from ra_hmd.training.arguments import HeadArguments
from ra_hmd.training.classification import TrainHeadArguments
from stage2.arguments import Stage2Arguments


def test_every_field_has_help_and_none_is_test_data():
    for name, field in TrainHeadArguments.model_fields.items():
        assert len(field.description) > 10, name
        assert "test" not in name


def test_each_command_has_what_it_uses():
    shared, head, refine = (set(cls.model_fields) for cls in (HeadArguments, TrainHeadArguments, Stage2Arguments))
    assert head - shared == {"image_loss", "text_loss", "fine_grained_loss", "fine_grained"}
    assert {"hard_negatives", "margin", "mining", "compat", "ce_weight", "temperature"} <= refine - shared
    assert shared == head & refine


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"epochs": 0, "lr": -1, "map_dim": 0}, ["`epochs` is 0", "`lr` is -1", "`map_dim` is 0"]),
        ({"image_loss": -1, "mapping_layers": -1}, ["`image_loss` is -1", "`mapping_layers` is -1"]),
        ({"image_loss": float("nan")}, ["`image_loss` is nan"]),
        ({"fusion": "product", "mixed_precision": "fp8"}, ["'product' is not one of", "'fp8' is not one of 'no'"]),
        (
            {"dropout": (0.1, 1.0), "map_dropout": -0.1},
            ["`dropout.1` is 1.0", "`map_dropout` is -0.1"],
        ),
        ({"fine_grained_loss": 1}, ["name the tasks with `fine_grained`"]),
        ({"fine_grained": ("kind",)}, ["`fine_grained_loss` is 0"]),
        ({"fine_grained": "kind", "fine_grained_loss": 1}, ["'kind' is not a list"]),
        (
            {"fusion": "none", "map_dim": 8, "map_dropout": 0.1},
            ["`map_dim` is set, and `fusion: none`", "`map_dr"],
        ),
        ({"init_head": "h", "fusion": "align", "embedding": "relu"}, ["`fusion` is set", "`embedding` is set"]),
        ({"dev": "t"}, ["chosen on training data"]),
        ({"output_dir": "t"}, ["`output_dir` is `train`"]),
        ({"problem_type": "binary", "output_dim": 2}, ["has one output, not 2"]),
        ({"patience": 2}, ["there is no `dev`"]),
        ({"dev": "d", "sweep": {"shot_seed": [1]}}, ["`sweep.shot_seed` cannot be swept"]),
        ({"dev": "d", "sweep": {"hard_negatives": [1]}}, ["unknown key `hard_negatives`"]),
    ],
    ids=str,
)
def test_all_problems_are_told_together(changes, messages):
    with pytest.raises(UserError) as error:
        TrainHeadArguments(**{"train": "t", "output_dir": "o"} | changes)
    for message in messages:
        assert message in str(error.value)


def test_no_is_not_false():
    """YAML 1.1 reads the word as a boolean."""
    assert TrainHeadArguments(train="t", output_dir="o", mixed_precision=False).mixed_precision == "no"
