"""Commands of this environment in child processes: stock LLaMA-Factory above all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def child_env(**extra: str) -> dict[str, str]:
    """The environment of a child process: this environment's commands first, one process unless a test says more."""
    env = {key: value for key, value in os.environ.items() if key not in ("FORCE_TORCHRUN", "NPROC_PER_NODE")}
    return env | {"PATH": f"{BIN}{os.pathsep}{env['PATH']}", "OMP_NUM_THREADS": "1"} | extra


def run(command: list[str], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command; stdout and stderr together in `stdout`."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=child_env(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )


def train(config: dict[str, Any], cwd: Path, **env: str) -> str:
    """`llamafactory-cli train` with a YAML file of `config`; returns what it printed."""
    path = cwd / f"{Path(config['output_dir']).name}.yaml"
    path.write_text(yaml.safe_dump(config))
    done = run([str(BIN / "llamafactory-cli"), "train", str(path)], cwd, **env)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def train_and_kill(config: dict[str, Any], cwd: Path, checkpoint: Path) -> None:
    """Start `llamafactory-cli train` and kill it (SIGKILL) as soon as a checkpoint is complete."""
    (cwd / "killed.yaml").write_text(yaml.safe_dump(config))
    command = [str(BIN / "llamafactory-cli"), "train", str(cwd / "killed.yaml")]
    process = subprocess.Popen(command, cwd=cwd, env=child_env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (checkpoint / "trainer_state.json").exists():
        assert process.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
