"""The Ray cluster that a command works on: joined or started, and what its nodes have room for."""

import logging
import os
import secrets
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ra_hmd.core.errors import UserError, first_line
from ra_hmd.core.extras import check_extra
from ra_hmd.core.workers.settings import WorkerSettings

_LOCAL = "local"
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0": no cluster of several machines, so 127.0.0.1, on any system
_OBJECTS = 256 << 20  # bytes for objects of a Ray of this command: units and results are small


@contextmanager
def joined_cluster(settings: WorkerSettings, *, logs: bool = False, hook: str | None = None) -> Iterator[None]:
    """Be the driver of a job on the cluster of `settings`; a Ray that was started for this command ends with it.

    Args:
        settings: The cluster.
        logs: Whether to print what workers print.
        hook: Name of a function that each process of the job calls first, as `package.module.function`.

    Raises:
        UserError: Ray is not installed, no cluster answers, or the command runs under torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--engine ray under torchrun: both share out the work; start the command by itself.")
    address = settings.ray_address or os.environ.get("RAY_ADDRESS") or _LOCAL
    with _environment(_private_ray() if address == _LOCAL else {}):
        check_extra("ray", "--engine ray")
        import ray

        if ray.is_initialized():
            yield
            return
        _connect(address, logs, hook)
        try:
            yield
        finally:
            ray.shutdown()


def _connect(address: str, logs: bool, hook: str | None) -> None:
    import ray
    from ray._private import ray_constants

    options: dict[str, Any] = {"log_to_driver": logs, "logging_level": logging.ERROR}
    if hook is not None:
        options["runtime_env"] = {"worker_process_setup_hook": hook}
    clusters = ray_constants.ENABLE_RAY_CLUSTER
    if address == _LOCAL:
        options |= {"include_dashboard": False, "object_store_memory": _OBJECTS}
        ray_constants.ENABLE_RAY_CLUSTER = False  # of `_LOOPBACK`, where Ray was imported before
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about GPUs of workers that ask for none
            ray.init(address, **options)
    except (OSError, RuntimeError, ValueError, TimeoutError) as error:
        raise UserError(
            f"--ray-address {address}: {first_line(error)} Start a cluster with `ray start --head` (docs/cluster.md), "
            "or leave the option out for a Ray of this machine."
        ) from error
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


def _private_ray() -> dict[str, str]:
    """Environment of a Ray that only this command uses: nothing listens beyond this machine or answers without token.

    Ray reads and keeps the token's variables when it is imported.
    """
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {"RAY_USAGE_STATS_ENABLED": "0", _LOOPBACK: "0"} | ({} if "ray" in sys.modules else token)


@contextmanager
def private_ray() -> Iterator[None]:
    """Within it `ray.init` starts a Ray of this process, on which nothing listens beyond this machine."""
    from ray._private import ray_constants

    clusters = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with _environment(_private_ray()):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def worker_resources(settings: WorkerSettings) -> dict[str, float]:
    """What each worker asks for."""
    gpus = settings.ray_gpus
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in node_resources()) else 0.0
    return {"CPU": settings.ray_cpus, "GPU": gpus}


def node_resources() -> list[dict[str, float]]:
    """What each living node has in all."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def room(asked: Mapping[str, float]) -> int:
    """Workers that the cluster's nodes have room for in all, whatever runs on them now."""
    needed = {name: amount for name, amount in asked.items() if amount > 0}
    return sum(min(int(node.get(name, 0) // amount) for name, amount in needed.items()) for node in node_resources())


def describe_room(asked: Mapping[str, float]) -> str:
    """What a worker asks for and what the cluster has, as a clause."""
    import ray

    free, nodes = ray.available_resources(), node_resources()
    has = [f"{name} {sum(node.get(name, 0) for node in nodes):g} ({free.get(name, 0):g} free)" for name in asked]
    wants = [f"{name} {amount:g}" for name, amount in asked.items() if amount]
    count = "one node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    return f"each asks for {' and '.join(wants)}; the cluster has {count} with {' and '.join(has)}"
