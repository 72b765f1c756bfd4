"""Stage 1 on two nodes: two launchers of LLaMA-Factory on this machine, one process each, over gloo."""

import json
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from engines import BIN, ROOT, child_env, train
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]
CHANGES = {"lora_dropout": 0.0, "per_device_train_batch_size": 4, "max_samples": 16}
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


@pytest.mark.parametrize("engine", ENGINES)
def test_two_launchers_equal_one(stage1_config: Config, tmp_path: Path, engine: str) -> None:
    changes = CHANGES | ENGINES[engine] | {"do_predict": True, "save_strategy": "epoch"}
    train(stage1_config(tmp_path / "one", **changes), tmp_path, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    codes, printed = ended(launch([stage1_config(tmp_path / "two", **changes)] * 2, tmp_path), tmp_path)
    assert codes == [0, 0], printed[-6000:]
    assert len(losses(tmp_path / "two")) == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-4
    names = [
        sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (tmp_path / "one", tmp_path / "two")
    ]
    assert names[0] == names[1]
    rows = [json.loads(line) for line in (tmp_path / "two" / "predictions.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) == 16


@pytest.mark.parametrize(
    ("changes", "own", "words"),
    [
        ({"save_on_each_node": True}, False, "they would write the same files at once"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
            True,
            "only the first node would have the best checkpoint",
        ),
    ],
)
def test_what_nodes_would_write_where_is_refused(
    stage1_config: Config, tmp_path: Path, changes: dict[str, Any], own: bool, words: str
) -> None:
    configs = [stage1_config(tmp_path / f"out{rank * own}", **CHANGES | changes) for rank in range(2)]
    codes, printed = ended(launch(configs, tmp_path), tmp_path)
    assert 0 not in codes
    assert words in printed, printed[-6000:]
