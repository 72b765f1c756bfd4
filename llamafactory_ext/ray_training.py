"""Stage `sft-classifier` on a Ray cluster (`USE_RAY=1`), in place of the host's placement of its workers.

The host asks ten CPUs for each device of the whole cluster, sends the driver's whole environment to every worker, asks
Ray's dashboard for the head node, and takes that node's address also where rank 0 runs elsewhere. Here each worker gets
the CPUs that it needs, the variables that training reads, and the address of rank 0.
"""

import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import ray
from llamafactory.extras import logging
from llamafactory.train import tuner
from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from llamafactory_ext.launchers import option
from ra_hmd.core.errors import UserError
from ra_hmd.core.workers.ray_cluster import private_ray

logger = logging.get_logger(f"llamafactory.{__name__}")  # below the host's root, whose handler prints it

SENT = re.compile(
    "ACCELERATE_.*|ALLOW_EXTRA_ARGS|CUBLAS_.*|CUDA_LAUNCH_BLOCKING|DEEPSPEED_.*|DISABLE_VERSION_CHECK|DO_NOT_TRACK|"
    "DS_.*|FORCE_CHECK_IMPORTS|GLOO_.*|HF_(DATASETS_.*|ENDPOINT|HOME|HUB_.*|UPDATE_DOWNLOAD_COUNTS)|"
    "LLAMAFACTORY_VERBOSITY|MKL_NUM_THREADS|NCCL_.*|OMP_NUM_THREADS|PYTORCH_.*|RECORD_VRAM|"
    "TOKENIZERS_PARALLELISM|TORCH_.*|TRANSFORMERS_.*|USE_(MODELSCOPE|OPENMIND)_HUB|WANDB_(ERROR_REPORTING|MODE|PROJECT)"
)
"""Variables of the driver that workers get. Others they have from the node that they run on."""

_SECRET = re.compile("TOKEN$|_KEY|KEY$|SECRET|PASSWORD|CREDENTIAL")

Installer: TypeAlias = Callable[[ModuleType], None]
"""Teaches a tuner of the host our stage."""


class ClassifierWorker(tuner.Worker):
    """The host's worker, of a process that knows our stage also without the plugin's start-up file."""

    def place(self) -> tuple[str, int]:
        """Address of the node that this runs on, and a port that is free there."""
        with socket.socket() as listener:
            listener.bind(("", 0))
            return ray.util.get_node_ip_address().strip("[]"), listener.getsockname()[1]

    def train(self, config: dict[str, Any], folder: str, install: Installer, ranks: dict[str, str]) -> None:
        """Train as the process of one rank, in the driver's working directory.

        Raises:
            UserError: what the stage raises, or that this node has no such directory.
        """
        if not Path(folder).is_dir():
            raise UserError(
                f"The node {socket.gethostname()} has no folder {folder}, in which the training was started: code, "
                "data and output must be at the same paths on every node."
            )
        os.chdir(folder)
        os.environ.update(ranks)
        install(tuner)
        tuner._training_function(config)


def train_on_ray(ray_args: Any, config: dict[str, Any], install: Installer) -> None:
    """Counterpart of the host's `_ray_training_function`: train on `ray_num_workers` workers.

    Args:
        ray_args: The host's arguments of Ray.
        config: As for the host's function.
        install: Teaches the host's tuner our stage, in each worker.

    Raises:
        UserError: the cluster has no room for the workers, or what a worker raised.
    """
    if not ray.is_initialized():
        _start(dict(ray_args.ray_init_kwargs or {}))
    try:
        workers, bundle = ray_args.ray_num_workers, bundle_of(config["args"], ray.cluster_resources())
        check_room(workers, bundle, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        group = placement_group([bundle] * workers, strategy="PACK")
        logger.info_rank0(f"Waiting for {workers} workers with {bundle} each.")
        ray.get(group.ready())
        try:
            _train_in(group, ray_args, bundle, (config, str(Path.cwd()), install))
        finally:
            remove_placement_group(group)
    finally:
        ray.shutdown()


def _train_in(group: PlacementGroup, ray_args: Any, bundle: dict[str, float], job: tuple[Any, ...]) -> None:
    environment = sent_environment(os.environ, job[0]["args"])
    actor: Any = ray.remote(ClassifierWorker)
    workers: list[Any] = [
        actor.options(**_options(group, index, bundle, environment)).remote() for index in range(group.bundle_count)
    ]
    try:
        places = ray.get([worker.place.remote() for worker in workers])
        order = by_rank(places, ray_args.master_addr)
        address, port = places[order[0]]
        shared = {"WORLD_SIZE": str(len(workers)), "MASTER_ADDR": address, "TORCHELASTIC_USE_AGENT_STORE": "False"}
        shared["MASTER_PORT"] = str(ray_args.master_port or port)
        ranks = [workers[index].train.remote(*job, shared | {"RANK": str(rank)}) for rank, index in enumerate(order)]
        ray.get(ranks)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    finally:
        for worker in workers:
            ray.kill(worker)


def _start(given: dict[str, Any]) -> None:
    """Join the cluster of `address` or RAY_ADDRESS, or start a Ray of this machine that nobody else reaches."""
    if "address" in given or os.environ.get("RAY_ADDRESS"):
        ray.init(**given)
        return
    with private_ray():
        ray.init(**{"address": "local", "include_dashboard": False, **given})


def bundle_of(args: Any, resources: Mapping[str, float]) -> dict[str, float]:
    """What one worker asks of the cluster: a device, where the cluster has any, and CPUs.

    Without `ray_cpus_per_worker` these are one, and one more for each process of the data loader.
    """
    given = option(args, "ray_cpus_per_worker")
    cpus = 1 + int(option(args, "dataloader_num_workers") or 0) if given is None else float(given)
    wanted = () if option(args, "use_cpu") in (True, "true", "True") else ("GPU", "NPU")
    device = next((name for name in wanted if resources.get(name, 0) >= 1), None)
    return {"CPU": cpus} | ({device: 1} if device else {})


def check_room(workers: int, bundle: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> None:
    """Raise `UserError` where the cluster could never hold the workers: Ray would wait for ever."""
    room = sum(int(min(node.get(name, 0) / amount for name, amount in bundle.items() if amount)) for node in nodes)
    if room < workers:
        asked = " and ".join(f"{amount:g} {name}" for name, amount in bundle.items())
        raise UserError(
            f"`ray_num_workers: {workers}`, each with {asked}, but the nodes of the Ray cluster have room for {room}. "
            "Add nodes, ask for fewer workers, or set `ray_cpus_per_worker`."
        )


def sent_environment(environment: Mapping[str, str], args: Any) -> dict[str, str]:
    """The driver's variables that workers get: those that training reads, no secrets, and those of `ray_environment`.

    Raises:
        UserError: `ray_environment` names a variable that is not set.
    """
    named = option(args, "ray_environment") or []
    named = [name.strip() for name in named.split(",")] if isinstance(named, str) else list(named)
    missing = [name for name in named if name not in environment]
    if missing:
        raise UserError(f"`ray_environment` names {', '.join(missing)}, which is not set where training was started.")
    sent = [name for name in environment if SENT.fullmatch(name) and not _SECRET.search(name)]
    return {name: environment[name] for name in [*sent, *named]}


def _options(
    group: PlacementGroup, index: int, bundle: dict[str, float], environment: dict[str, str]
) -> dict[str, Any]:
    others = {name: amount for name, amount in bundle.items() if name not in ("CPU", "GPU")}
    strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=index)
    return {
        "scheduling_strategy": strategy,
        "num_cpus": bundle["CPU"],
        "num_gpus": bundle.get("GPU", 0),
        "resources": others,
        "runtime_env": {"env_vars": environment},
    }


def by_rank(places: list[tuple[str, int]], first: str | None) -> list[int]:
    """Workers by rank: those of one node after each other, the node of `master_addr` first.

    Raises:
        UserError: no worker runs on that node.
    """
    addresses = [address for address, _ in places]
    if first is not None and first not in addresses:
        raise UserError(
            f"`master_addr: {first}` is the address of no node that a worker was placed on ({', '.join(addresses)}). "
            "Leave it out: it is that of rank 0."
        )
    return sorted(range(len(places)), key=lambda index: (addresses[index] != first, addresses[index], index))
