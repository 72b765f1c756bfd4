"""The table of the host's arguments: complete against the installed classes, and what it refuses is refused."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from llamafactory.hparams import (
    DataArguments,
    FinetuningArguments,
    GeneratingArguments,
    ModelArguments,
    TrainingArguments,
)

from llamafactory_ext.arguments import OUR_FIELDS
from llamafactory_ext.host_arguments import HONOURED, REFUSED_ARGUMENTS, WITHOUT_EFFECT, refusals
from llamafactory_ext.sft_classifier.workflow import _check_environment
from ra_hmd.core.errors import UserError

CLASSES = (ModelArguments, DataArguments, TrainingArguments, FinetuningArguments, GeneratingArguments)
ROOT = Path(__file__).parents[2]


def host_arguments() -> set[str]:
    return {field.name for cls in CLASSES for field in dataclasses.fields(cls) if field.init}


def test_every_argument_of_host_and_transformers_is_in_one_table() -> None:
    tables = (set(HONOURED), set(REFUSED_ARGUMENTS), set(WITHOUT_EFFECT))
    assert set().union(*tables) == host_arguments()
    assert sum(map(len, tables)) == len(host_arguments())
    assert not host_arguments() & set(OUR_FIELDS)


def test_defaults_are_refused_nowhere(tmp_path: Path) -> None:
    made = [ModelArguments(model_name_or_path="x"), TrainingArguments(output_dir=str(tmp_path), use_cpu=True)]
    made += [cls() for cls in (DataArguments, FinetuningArguments, GeneratingArguments)]
    assert refusals(*made) == []


@pytest.mark.parametrize("name", REFUSED_ARGUMENTS)
def test_what_is_refused_names_argument_and_value(name: str) -> None:
    value: Any = False if name in ("ignore_pad_token_for_loss", "eval_do_concat_batches", "enable_thinking") else 0.25
    given = SimpleNamespace(**{name: value, "template": "qwen3_vl"})
    assert [text.partition(": ")[0] for text in refusals(given)] == [f"`{name}"]
    assert refusals(given)[0].startswith(f"`{name}: {str(value).lower()}`: ")


def test_an_argument_that_is_harmless_here_is_not_refused() -> None:
    assert refusals(SimpleNamespace(train_from_scratch=True, finetuning_type="full")) == []
    assert refusals(SimpleNamespace(enable_thinking=False, template="qwen3_vl_nothink")) == []
    assert refusals(SimpleNamespace(label_smoothing_factor=0.0, packing=False, fsdp=[], optim="adamw_torch")) == []


def test_optimizers_with_groups_of_their_own_are_refused() -> None:
    for optimizer in ("galore_adamw_8bit_layerwise", "apollo_adamw", "lomo", "adalomo"):
        assert refusals(SimpleNamespace(optim=optimizer)) != []


def test_no_configuration_of_ours_sets_what_is_refused() -> None:
    files = [path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "cluster"]
    read = {path: yaml.safe_load(path.read_text()) for path in files}
    stage1 = {path: keys for path, keys in read.items() if keys.get("stage") == "sft-classifier"}
    assert len(stage1) > 50
    for path, keys in stage1.items():
        assert refusals(SimpleNamespace(**keys)) == [], path
        assert not set(keys) - host_arguments() - set(OUR_FIELDS), path


def test_documentation_names_every_refused_argument() -> None:
    text = (ROOT / "docs" / "stage1.md").read_text()
    assert [name for name in REFUSED_ARGUMENTS if f"`{name}`" not in text] == []


def test_fsdp_is_refused_by_argument_and_by_the_configuration_of_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = refusals(SimpleNamespace(fsdp=["full_shard"]))
    assert "ZeRO-3" in problem
    _check_environment(SimpleNamespace())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=r"ACCELERATE_USE_FSDP=true.*ZeRO-3"):
        _check_environment(SimpleNamespace())
