"""Variables that send LLaMA-Factory where our stage does not exist are told before anything runs."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from engines import BIN, run

from llamafactory_ext.launchers import asked_stage, diverted, prepare_restarts

pytestmark = pytest.mark.slow

COMMAND = str(BIN / "llamafactory-cli")
VARIABLES = ("USE_V1", "USE_MCA", "USE_MEGATRON_BRIDGE")


@pytest.mark.parametrize("value", ["1", "true", "Y", "0", "no", ""])
def test_what_the_host_takes_for_yes(value: str) -> None:
    from llamafactory.extras.misc import is_env_enabled

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USE_V1", value)
        assert bool(diverted()) == is_env_enabled("USE_V1")


def test_the_second_launcher_is_taken_by_the_command_alone() -> None:
    assert [name for name in VARIABLES if diverted(environment={name: "1"})] == list(VARIABLES)
    assert [name for name in VARIABLES if diverted(launched=False, environment={name: "1"})] == list(VARIABLES[1:])


@pytest.mark.parametrize(
    ("words", "stage"),
    [
        (["train", "ours.yaml"], "sft-classifier"),
        (["train", "ours.json", "seed=3"], "sft-classifier"),
        (["train", "ours.yaml", "stage=sft"], "sft"),
        (["train", "stock.yaml"], "sft"),
        (["train", "stock.yaml", "stage=sft-classifier"], "sft-classifier"),
        (["train", "--stage", "sft-classifier"], "sft-classifier"),
        (["train", "--stage=sft-classifier"], "sft-classifier"),
        (["train", "broken.yaml"], None),
        (["train", "absent.yaml"], None),
        (["version"], None),
    ],
)
def test_which_stage_a_command_line_asks_for(
    words: list[str], stage: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ours.yaml").write_text("stage: sft-classifier\n", encoding="utf-8-sig")
    (tmp_path / "ours.json").write_text('{"stage": "sft-classifier"}')
    (tmp_path / "stock.yaml").write_text("stage: sft\n")
    (tmp_path / "broken.yaml").write_text("stage: [\n")
    monkeypatch.chdir(tmp_path)
    assert asked_stage(words) == stage


@pytest.mark.parametrize("variable", VARIABLES)
def test_the_command_ends_before_it_starts(
    variable: str, stage1_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(stage1_config(tmp_path / "out")))
    done = run([COMMAND, "train", "x.yaml"], tmp_path, **{variable: "1"})
    assert done.returncode == 1
    assert f"{variable}=1" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "out").exists()


def test_other_commands_of_the_second_launcher_are_left_alone(tmp_path: Path) -> None:
    done = run([COMMAND, "help"], tmp_path, USE_V1="1")
    assert done.returncode == 0, done.stdout
    assert "ra-hmd:" not in done.stdout


def test_a_program_that_calls_the_host_is_told_too(tmp_path: Path) -> None:
    script = """
from llamafactory.train import tuner
tuner._training_function({"args": {"stage": "sft-classifier"}, "callbacks": []})
"""
    done = run([sys.executable, "-c", script], tmp_path, USE_MEGATRON_BRIDGE="1")
    assert done.returncode == 1
    assert "UserError" in done.stdout
    assert "USE_MEGATRON_BRIDGE=1" in done.stdout


@pytest.mark.parametrize(
    ("rendezvous", "stage", "own"), [("a", "sft-classifier", "1"), ("a", "sft", None), ("", "sft-classifier", None)]
)
def test_each_restart_of_our_stage_has_a_store_of_its_own(
    rendezvous: str, stage: str, own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {"RDZV_ID": rendezvous})
    prepare_restarts(["train", f"stage={stage}"])
    assert os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") == own
