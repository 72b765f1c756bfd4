"""Stage 1 on two nodes: two launchers of LLaMA-Factory on this machine, one process each, over gloo."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from engines import BIN, ROOT, child_env, train
from safetensors.torch import load_file
from transformers.trainer_utils import SaveStrategy

from llamafactory_ext.sft_classifier import nodes, resuming, tokenized
from ra_hmd.core.errors import UserError

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]
CHANGES = {
    "per_device_train_batch_size": 4,
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "do_predict": True,
}
STEPS = 8
ENGINES = {
    "ddp": {},
    "zero2": {"deepspeed": str(ROOT / "configs/deepspeed/zero2.json")},
    "zero3": {"deepspeed": str(ROOT / "configs/deepspeed/zero3.json")},
}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def launch(configs: list[dict[str, Any]], cwd: Path, **env: str) -> list[subprocess.Popen[str]]:
    """Start `llamafactory-cli train` on each node of a run, each with a configuration of its own."""
    port, processes = str(free_port()), []
    for rank, config in enumerate(configs):
        path = cwd / f"node-{rank}.yaml"
        path.write_text(yaml.safe_dump(config))
        place = {"NNODES": str(len(configs)), "NODE_RANK": str(rank), "NPROC_PER_NODE": "1"}
        rendezvous = {"FORCE_TORCHRUN": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        with (cwd / f"node-{rank}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [str(BIN / "llamafactory-cli"), "train", str(path)],
                    cwd=cwd,
                    env=child_env(**place, **rendezvous, **env),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
    return processes


def ended(processes: list[subprocess.Popen[str]], cwd: Path) -> tuple[list[int], str]:
    """Exit codes of the nodes, and what they printed."""
    try:
        codes = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return codes, "".join((cwd / f"node-{rank}.log").read_text() for rank in range(len(processes)))


def losses(run: Path) -> list[float]:
    rows = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in rows if "loss" in row]


def largest_difference(one: Path, other: Path) -> float:
    largest = 0.0
    for name in ("adapter_model.safetensors", "head.safetensors"):
        left, right = load_file(one / name), load_file(other / name)
        assert left.keys() == right.keys()
        largest = max(largest, *(float((left[key] - right[key]).abs().max()) for key in left))
    return largest


def files_of(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*"))


@pytest.fixture(scope="module")
def one_launcher(stage1_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one launcher with two processes."""
    folder = tmp_path_factory.mktemp("one")
    train(stage1_config(folder / "run", **CHANGES), folder, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    return folder / "run"


@pytest.mark.parametrize("engine", ENGINES)
def test_two_launchers_equal_one(stage1_config: Config, one_launcher: Path, tmp_path: Path, engine: str) -> None:
    run = tmp_path / "run"
    codes, printed = ended(launch([stage1_config(run, **CHANGES, **ENGINES[engine])] * 2, tmp_path), tmp_path)
    assert codes == [0, 0], printed[-6000:]
    assert len(losses(run)) == STEPS
    assert losses(run) == pytest.approx(losses(one_launcher), abs=1e-4)
    assert largest_difference(run, one_launcher) < 1e-4
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) == 16
    if engine == "ddp":
        assert files_of(run) == files_of(one_launcher)


def test_training_goes_on_after_a_rank_was_killed(stage1_config: Config, one_launcher: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = stage1_config(run, **CHANGES | {"overwrite_output_dir": False})
    launched = launch([config] * 2, tmp_path, RDZV_ID="a-run", MAX_RESTARTS="1", LLAMAFACTORY_VERBOSITY="INFO")
    deadline = time.monotonic() + 300
    while not (run / "checkpoint-2" / "trainer_state.json").exists():
        assert time.monotonic() < deadline
        assert launched[0].poll() is launched[1].poll() is None, ended(launched, tmp_path)[1][-6000:]
        time.sleep(0.02)
    os.kill(rank_of(launched[1]), signal.SIGKILL)
    codes, printed = ended(launched, tmp_path)
    assert codes == [0, 0], printed[-6000:]
    assert "exitcode: -9" in printed
    assert re.search(r"Resuming from .*checkpoint-[2-6]\.", printed)
    assert losses(run) == pytest.approx(losses(one_launcher), abs=1e-4)
    assert largest_difference(run, one_launcher) < 1e-4


def rank_of(launcher: subprocess.Popen[str]) -> int:
    """The process that trains, below a launcher and its torchrun."""
    below = psutil.Process(launcher.pid).children(recursive=True)
    (worker,) = (process.pid for process in below if process.cmdline()[1:2] == ["-u"])
    return worker


def test_the_best_checkpoint_must_be_on_every_node(stage1_config: Config, tmp_path: Path) -> None:
    changes = CHANGES | {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    configs = [stage1_config(tmp_path / f"disk-of-{rank}", **changes) for rank in range(2)]
    codes, printed = ended(launch(configs, tmp_path), tmp_path)
    assert 0 not in codes
    assert "only the first node would have the best checkpoint" in printed, printed[-6000:]


def arguments_of(output: Path) -> Any:
    """What is read of the training arguments before training."""
    return SimpleNamespace(
        output_dir=str(output),
        do_train=True,
        save_on_each_node=False,
        load_best_model_at_end=False,
        save_strategy=SaveStrategy.STEPS,
        resume_from_checkpoint=None,
    )


def test_nodes_that_share_a_disk_do_not_write_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_is_shared", lambda folder: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    arguments = arguments_of(tmp_path)
    nodes.check_nodes(arguments)
    arguments.save_on_each_node = True
    with pytest.raises(UserError, match="they would write the same files at once"):
        nodes.check_nodes(arguments)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    nodes.check_nodes(arguments)


def test_every_rank_resumes_from_the_same_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = arguments_of(tmp_path)
    arguments.resume_from_checkpoint = str(tmp_path / "checkpoint-2")
    assert resuming.checkpoint_to_resume(arguments, asked=False) is None  # it was killed in its first checkpoint
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        resuming.checkpoint_to_resume(arguments, asked=True)
    monkeypatch.setattr(resuming, "of_every_rank", lambda compute: [tmp_path / "checkpoint-2", None])
    with pytest.raises(UserError, match=r"rank 0 found .*checkpoint-2; rank 1 found none\. Put `output_dir`"):
        resuming.checkpoint_to_resume(arguments, asked=False)


def test_tokenised_data_must_be_on_every_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not tokenized.every_rank_has(str(tmp_path))
    monkeypatch.setattr(tokenized, "of_every_rank", lambda compute: [True, False])
    with pytest.raises(UserError, match="is there on rank 0, and not on rank 1"):
        tokenized.every_rank_has(str(tmp_path))
