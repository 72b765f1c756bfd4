"""YAML keys: official defaults, every problem told at once, the silent traps of the official files caught."""

import dataclasses
import re

import pytest
import yaml

from llamafactory_ext.arguments import OUR_FIELDS, STAGE, ClassifierFinetuningArguments, correct_host_arguments
from ra_hmd.core.errors import UserError


def test_defaults_are_the_official_ones() -> None:
    args = ClassifierFinetuningArguments(stage=STAGE)
    expected = {
        "classifier_lr": 1e-4,
        "num_layers": 2,
        "proj_dim": 1024,
        "output_dim": 1,
        "input_dropout": 0.0,
        "dropout": None,
        "embed_mode": "last_token",
        "embed_layer": "last",
        "loss_ratio": [1.0, 1.0],
        "positive_answer": "Yes",
    }
    assert {name: getattr(args, name) for name in expected} == expected


def test_every_key_has_help() -> None:
    fields = {field.name: field for field in dataclasses.fields(ClassifierFinetuningArguments)}
    assert set(OUR_FIELDS) >= {"loss_ratio", "classifier_lr", "embed_mode", "prompt_template"}
    assert all(len(fields[name].metadata["help"]) > 20 for name in OUR_FIELDS)


def test_yaml_1_1_strings_become_numbers() -> None:
    args = ClassifierFinetuningArguments(stage=STAGE, classifier_lr="1e-4", loss_ratio=["1", 0.5], dropout=["2e-1"])
    assert (args.classifier_lr, args.loss_ratio, args.dropout) == (1e-4, [1.0, 0.5], [0.2])


@pytest.mark.parametrize(
    ("text", "value"),
    [("Yes", "True"), ("off", "False"), ("1", "1"), ("1.5", "1.5"), ("2026-01-31", "datetime.date(2026, 1, 31)")],
)
@pytest.mark.parametrize("key", ["positive_answer", "prompt_template", "embed_mode", "answers"])
def test_words_that_yaml_makes_something_else_of_are_told_to_be_quoted(key: str, text: str, value: str) -> None:
    read = yaml.safe_load(f"{key}: {f'[{text}, b]' if key == 'answers' else text}")
    several = {"problem_type": "multi_label", "output_dim": 2} if key == "answers" else {}
    with pytest.raises(UserError, match=rf"`{key}(\.0)?`: {re.escape(value)} is not .*quotes"):
        ClassifierFinetuningArguments(stage=STAGE, **several, **read)
    quoted = yaml.safe_load("positive_answer: 'Yes'")
    assert ClassifierFinetuningArguments(stage=STAGE, **quoted).positive_answer == "Yes"


def test_official_dropout_list_with_one_value_too_many_is_accepted() -> None:
    config = ClassifierFinetuningArguments(stage=STAGE, num_layers=3, dropout=[0.2, 0.4, 0.1]).head_config(8)
    assert config.dropout == (0.2, 0.4, 0.1)


def test_problems_are_told_together() -> None:
    with pytest.raises(UserError) as error:
        ClassifierFinetuningArguments(
            stage=STAGE,
            loss_ratio=[1.0],
            classifier_lr=-1,
            dropout=[1.5],
            positive_answer="Yes please",
            use_dft_loss=True,
        )
    for key in ("loss_ratio", "classifier_lr", "`dropout.0` is 1.5", "Yes please", "use_dft_loss"):
        assert key in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("embed_mode", "mean"), ("embed_layer", "first"), ("num_layers", "two"), ("proj_dim", 1.5), ("output_dim", 3)],
)
def test_bad_values_are_named(key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"`{key}`.*{value}"):
        ClassifierFinetuningArguments(stage=STAGE, **{key: value})


def test_our_checks_leave_other_stages_alone() -> None:
    assert ClassifierFinetuningArguments(stage="sft", use_dft_loss=True).use_dft_loss


def test_silent_traps_are_normalised() -> None:
    args = {"quantization_method": "bitsandbytes", "classifier_lr": "1e-4"}
    notes = correct_host_arguments(args)
    assert args == {"quantization_method": "bnb", "classifier_lr": 1e-4}
    assert len(notes) == 2


def test_unknown_quantisation_method_is_refused() -> None:
    with pytest.raises(UserError, match="bitsandbyte"):
        correct_host_arguments({"quantization_method": "bitsandbyte"})
