"""`configs/cluster`: each file parses, and what it starts is what LLaMA-Factory and this project read."""

import inspect
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import llamafactory.launcher
import pytest
import yaml
from engines import ROOT, run
from llamafactory.hparams import get_ray_args, parser, read_args
from ray.autoscaler._private.util import prepare_config, validate_config
from transformers import HfArgumentParser

from llamafactory_ext.arguments import STAGE, ClassifierFinetuningArguments
from ra_hmd.core.config import unknown_keys

CLUSTER = ROOT / "configs" / "cluster"
HOST_VARIABLES = {*re.findall(r'os\.getenv\("(\w+)"', inspect.getsource(llamafactory.launcher)), "FORCE_TORCHRUN"}
MULTI_NODE = {"FORCE_TORCHRUN", "NNODES", "NPROC_PER_NODE", "MASTER_ADDR", "MASTER_PORT", "RDZV_ID", "MAX_RESTARTS"}


def check_training(words: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Read `llamafactory-cli train …` as the host does, and our keys as our stage does."""
    assert Path(words[0]).name == "llamafactory-cli"
    assert words[1] == "train"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", words[1:])
    args = read_args()
    classes = [*parser._TRAIN_ARGS, ClassifierFinetuningArguments]
    assert not unknown_keys(args, {name for cls in classes for name in cls.__dataclass_fields__})
    (ours,) = HfArgumentParser(ClassifierFinetuningArguments).parse_dict(args, allow_extra_keys=True)
    assert ours.stage == STAGE
    assert (ROOT / args.get("deepspeed", words[2])).is_file()
    assert args.get("save_strategy", "steps") != "no"  # a lost rank continues from a checkpoint
    return args


def command_in(text: str) -> list[str]:
    """The words of the `llamafactory-cli train` that a file's header gives."""
    lines = [line.removeprefix("#").strip().removesuffix("\\") for line in text.splitlines() if line.startswith("#")]
    header = " ".join(lines)
    found = re.search(r"""\S*llamafactory-cli train .*?'ray_init_kwargs=\{[^}]*\}'""", header)
    assert found is not None
    return shlex.split(found[0])


def test_slurm_starts_every_node_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    scripts = {
        "scontrol": 'test "$1 $2" = "show hostnames"; printf "gpu-07\\ngpu-08\\n"',
        "srun": 'test "$1" = --kill-on-bad-exit=1; shift; for _ in 1 2; do "$@"; done',
        "llamafactory-cli": 'env; printf "words %s\\n" "$*"',
    }
    for name, text in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\nset -e\n{text}\n")
        (tools / name).chmod(0o755)
    slurm = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "gpu-[07-08]", "SLURM_JOB_ID": "40123"}
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    env = slurm | {"SLURM_GPUS_ON_NODE": "4", "PATH": f"{tools}:/usr/bin:/bin"}
    done = run(["bash", str(CLUSTER / "slurm_train.sbatch")], tmp_path, **env)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    given = dict(line.split("=", 1) for line in lines if line.partition("=")[0] in HOST_VARIABLES)
    assert given.keys() == MULTI_NODE
    assert given["MASTER_ADDR"] == "gpu-07"
    assert (given["NNODES"], given["NPROC_PER_NODE"], given["RDZV_ID"]) == ("2", "4", "40123")
    assert 1024 < int(given["MASTER_PORT"]) < 65536
    words = [line.split()[1:] for line in lines if line.startswith("words ")]
    assert len(words) == 2
    assert words[0] == words[1]
    check_training(["llamafactory-cli", *words[0]], monkeypatch)
    other = run(["bash", str(CLUSTER / "slurm_train.sbatch"), "other.yaml", "seed=1"], tmp_path, **env)
    assert "words train other.yaml seed=1\n" in other.stdout


def test_options_of_sbatch() -> None:
    text = (CLUSTER / "slurm_train.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))
    assert options.keys() >= {"nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "requeue"}
    assert options["ntasks-per-node"] == "1"  # torchrun starts the others


def test_kubernetes_pods_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes_train.yaml").read_text())
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    given = {item["name"]: item["value"] for item in container["env"]}
    assert (service["kind"], job["kind"], spec["completionMode"]) == ("Service", "Job", "Indexed")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    assert given["MASTER_ADDR"] == f"{name}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert int(given["NNODES"]) == spec["completions"] == spec["parallelism"]
    assert given["NPROC_PER_NODE"] == container["resources"]["limits"]["nvidia.com/gpu"]
    assert given.keys() - {"HF_HOME"} == MULTI_NODE
    assert MULTI_NODE <= HOST_VARIABLES
    assert all(isinstance(value, str) for value in given.values())
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    check_training(container["command"], monkeypatch)


def test_kuberay_has_a_head_and_workers_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (CLUSTER / "kuberay_cluster.yaml").read_text()
    cluster = yaml.safe_load(text)
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    head, (workers,) = cluster["spec"]["headGroupSpec"], cluster["spec"]["workerGroupSpecs"]
    assert head["rayStartParams"] == {"num-cpus": "0", "include-dashboard": "false"}
    for group in (head, workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    args = check_training(command_in(text), monkeypatch)
    room = workers["replicas"] * int(limits["nvidia.com/gpu"])
    assert get_ray_args(args).ray_num_workers == args["ray_num_workers"] == room
    assert get_ray_args(args).ray_init_kwargs == {"address": "auto"}
    assert (1 + args["dataloader_num_workers"]) * int(limits["nvidia.com/gpu"]) <= int(limits["cpu"])


def test_ray_launches_machines_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (CLUSTER / "ray_up.yaml").read_text()
    validate_config(prepare_config(yaml.safe_load(text)))
    assert get_ray_args(check_training(command_in(text), monkeypatch)).ray_num_workers == 16
