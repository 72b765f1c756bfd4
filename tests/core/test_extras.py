"""The sentence of a command whose extra is not installed."""

import importlib.util
import sys
from pathlib import Path

import pytest
from rich.console import Console

from llamafactory_ext.installed import check_asked_packages
from ra_hmd.core.errors import UserError
from ra_hmd.core.extras import EXTRAS, check_extra, is_importable
from ra_hmd.experiments.pipeline import Step, run_steps
from ra_hmd.models.meme_model import check_lmm


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)


def test_the_sentence_names_use_packages_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    check_extra("train", "Training")
    hide(monkeypatch, "deepspeed", "qwen_vl_utils")
    with pytest.raises(UserError) as raised:
        check_extra("train", "Training")
    assert str(raised.value) == (
        "Training needs the extra `train` (qwen-vl-utils, deepspeed missing): pip install 'ra-hmd[train]'."
    )


def test_only_what_the_work_needs_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "bitsandbytes")
    check_lmm("org/model")
    with pytest.raises(UserError, match="The language model org/model needs the extra `lmm` \\(bitsandbytes missing"):
        check_lmm("org/model", quantized=True)


def test_what_is_for_linux_alone_is_asked_for_there(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "deepspeed", "liger_kernel")
    assert EXTRAS["train"].missing() == (["deepspeed", "liger-kernel"] if sys.platform == "linux" else [])
    monkeypatch.setattr(sys, "platform", "darwin")
    assert EXTRAS["train"].missing() == []
    check_extra("train", "Training")


@pytest.mark.parametrize("error", [ModuleNotFoundError("blocked"), ValueError("no spec")])
def test_a_finder_that_refuses_counts_as_missing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def find_spec(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert not is_importable("no_such_module")
    assert is_importable("sys")


def test_no_step_starts_where_a_later_one_would_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "llamafactory")
    first = Step("Touch a file", ["touch", str(tmp_path / "touched")])
    steps = [first, Step("Train", ["llamafactory-cli", "train", "x.yaml"])]
    with pytest.raises(UserError, match="Training a language model needs the extra `train` \\(llamafactory missing"):
        run_steps("demo", steps, tmp_path, console=Console(quiet=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("deepspeed", {"deepspeed": "configs/deepspeed/zero3.json"}),
        ("liger_kernel", ["--stage", "sft-classifier", "--enable_liger_kernel", "true"]),
        ("bitsandbytes", {"quantization_bit": 4, "quantization_method": "bnb"}),
    ],
)
def test_a_training_that_asks_for_a_missing_package_ends_with_a_sentence(
    module: str, arguments: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_asked_packages(arguments)
    hide(monkeypatch, module)
    with pytest.raises(SystemExit, match=r"ra-hmd: `\w+: .*` needs the extra `train` \(.* missing\): pip install"):
        check_asked_packages(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        [],
        {"deepspeed": None, "enable_liger_kernel": False},
        {"quantization_bit": 8, "quantization_method": "hqq"},
    ],
)
def test_a_training_that_asks_for_nothing_needs_nothing(arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "deepspeed", "liger_kernel", "bitsandbytes")
    check_asked_packages(arguments)
