"""Stage 1 by LLaMA-Factory's Ray path, on a Ray cluster of two nodes of one CPU each."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import train
from llamafactory.hparams import RayArguments
from llamafactory.train import tuner
from safetensors.torch import load_file

from llamafactory_ext.ray_training import bundle_of, by_rank, check_room, sent_environment
from ra_hmd.core.errors import UserError

Config = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of a cluster of two nodes, and the folder of its logs."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
        yield nodes.address, Path(nodes.head_node.get_session_dir_path())
    finally:
        nodes.shutdown()


@pytest.mark.slow
def test_two_workers_train_as_torchrun_does(stage1_config: Config, cluster: tuple[str, Path], tmp_path: Path) -> None:
    changes = {"lora_dropout": 0.0, "per_device_train_batch_size": 4, "max_samples": 16, "do_predict": True}
    ranks = tmp_path / "ranks"
    train(stage1_config(ranks, **changes), tmp_path, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    address, logs = cluster
    config = stage1_config(Path("on_ray"), **changes, ray_num_workers=2, ray_init_kwargs={"address": address})
    printed = train(config, tmp_path, USE_RAY="1", SOME_TOKEN="not-for-workers", GLOO_SOMETHING="for-workers")
    on_ray = tmp_path / "on_ray"  # relative in the YAML: to the folder of the command
    assert losses(on_ray) == pytest.approx(losses(ranks), abs=1e-4)
    for name in ("adapter_model.safetensors", "head.safetensors"):
        left, right = load_file(on_ray / name), load_file(ranks / name)
        assert left.keys() == right.keys()
        assert max(float((left[key] - right[key]).abs().max()) for key in left) < 1e-4
    assert {path.name for path in on_ray.iterdir()} == {path.name for path in ranks.iterdir()}
    assert json.loads((on_ray / "ra_hmd.json").read_text())["world_size"] == 2
    sent = "".join(path.read_text(errors="replace") for path in (logs / "logs").glob("runtime_env*.log"))
    assert "for-workers" in sent
    assert "not-for-workers" not in sent + printed


@pytest.mark.slow
def test_what_a_worker_refuses_ends_the_command_as_it_is(
    stage1_config: Config, cluster: tuple[str, Path], tmp_path: Path
) -> None:
    config = stage1_config(tmp_path / "out", loss_ration=[1.0, 1.0])
    arguments = RayArguments(ray_num_workers=1, ray_init_kwargs={"address": cluster[0]})
    with pytest.raises(UserError, match="loss_ration") as caught:
        tuner._ray_training_function(arguments, {"args": config, "callbacks": []})
    assert "ray::" not in str(caught.value)


def test_a_worker_asks_for_what_it_needs() -> None:
    cpus, gpus = {"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}
    assert bundle_of({}, cpus) == {"CPU": 1}
    assert bundle_of({"dataloader_num_workers": 4}, gpus) == {"CPU": 5, "GPU": 1}
    assert bundle_of({"ray_cpus_per_worker": 2, "dataloader_num_workers": 4}, gpus) == {"CPU": 2, "GPU": 1}
    assert bundle_of(["--ray_cpus_per_worker", "0.5", "--use_cpu=true"], gpus) == {"CPU": 0.5}


def test_a_cluster_without_room_is_said_at_once() -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 8.0}, {"CPU": 64.0}]
    check_room(2, {"CPU": 2, "GPU": 1}, nodes)
    with pytest.raises(UserError, match=r"`ray_num_workers: 3`, each with 2 CPU and 1 GPU, .* room for 2\."):
        check_room(3, {"CPU": 2, "GPU": 1}, nodes)


def test_secrets_stay_with_the_driver_unless_they_are_named() -> None:
    here = {
        "NCCL_SOCKET_IFNAME": "eth0",
        "HF_HOME": "/cache",
        "HF_TOKEN": "secret",
        "HF_HUB_TOKEN": "secret",
        "WANDB_API_KEY": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "DATABASE_URL": "secret",
    }
    assert set(sent_environment(here, {})) == {"NCCL_SOCKET_IFNAME", "HF_HOME"}
    named = {"ray_environment": ["WANDB_API_KEY"]}
    assert set(sent_environment(here, named)) == {"NCCL_SOCKET_IFNAME", "HF_HOME", "WANDB_API_KEY"}
    with pytest.raises(UserError, match="ABSENT"):
        sent_environment(here, {"ray_environment": "HF_TOKEN, ABSENT"})


def test_ranks_of_a_node_follow_each_other() -> None:
    places = [("10.0.0.2", 1), ("10.0.0.1", 2), ("10.0.0.2", 3), ("10.0.0.1", 4)]
    assert by_rank(places, None) == [1, 3, 0, 2]
    assert by_rank(places, "10.0.0.2") == [0, 2, 1, 3]
    with pytest.raises(UserError, match=r"10\.0\.0\.9.*10\.0\.0\.2"):
        by_rank(places, "10.0.0.9")


def losses(run: Path) -> list[float]:
    rows = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in rows if "loss" in row]
