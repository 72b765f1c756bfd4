"""The Ray cluster that a command works on: joined or started, and what its nodes have room for."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ra_hmd.core.errors import UserError, first_line
from ra_hmd.core.workers.settings import WorkerSettings

_OBJECTS = 256 << 20  # bytes for objects of a Ray of this command: units and results are small


@contextmanager
def joined_cluster(settings: WorkerSettings) -> Iterator[None]:
    """Be the driver of a job on the cluster of `settings`; a Ray that was started for this command ends with it.

    Raises:
        UserError: Ray is not installed, no cluster answers, or the command runs under torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--engine ray under torchrun: both share out the work; start the command by itself.")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray needs the extra: pip install 'ra-hmd[ray]'.") from error
    if ray.is_initialized():
        yield
        return
    address = settings.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "object_store_memory": _OBJECTS}
    try:
        ray.init(address, **options)
    except (OSError, RuntimeError, ValueError, TimeoutError) as error:
        raise UserError(
            f"--ray-address {address}: {first_line(error)} Start a cluster with `ray start --head` (docs/cluster.md), "
            "or leave the option out for a Ray of this machine."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


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
    return f"each asks for {' and '.join(wants)}; the cluster has {len(nodes)} nodes with {' and '.join(has)}"
