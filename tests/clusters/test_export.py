"""`ra-hmd export-clusters`: plain LoRA adapters that equal the routed model, cluster by cluster."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from expert_runs import CLUSTERS, Config
from json_files import read_json
from llamafactory.train import tuner
from once import SharedFolders
from peft import PeftModel
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.clusters.export import export_clusters
from ra_hmd.core.artifacts import write_json
from ra_hmd.core.errors import UserError
from ra_hmd.data.guidance import Guidance
from ra_hmd.data.meme_files import read_memes
from ra_hmd.models.checkpoint import open_run
from ra_hmd.models.cluster_assignment import Clusters
from ra_hmd.models.meme_model import MemeModel

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
NAMES = ["cluster-0", "cluster-1", "cluster-2", "unknown"]


@pytest.fixture(scope="module")
def run(expert_config: Config, once: SharedFolders) -> Path:
    """A short run that is routed by the cluster alone, with a universal expert, and with weights that tell."""

    def make(folder: Path) -> None:
        changes = {
            "router_input": "none",
            "universal_expert": True,
            "expert_top_k": 2,
            "lora_rank": 3,
            "max_samples": 8,
        }
        tuner.run_exp(expert_config(folder / "run", eval_dataset=None, **changes), callbacks=[])
        path = folder / "run" / "experts.safetensors"
        generator = torch.Generator().manual_seed(0)
        drawn = {name: value + 0.2 * torch.randn(value.shape, generator=generator) * (name != "share")
                 for name, value in load_file(path).items()}  # fmt: skip
        save_file(drawn, path)

    return once("routed-by-cluster", make) / "run"


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "adapters"
    done = CliRunner().invoke(app, ["export-clusters", str(run), "--output", str(folder)])
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    assert "4 adapters of rank 4" in done.output
    return folder


@pytest.fixture(scope="module")
def routed(run: Path) -> MemeModel:
    return MemeModel(open_run(run), CPU)


def batch_of(model: MemeModel, memes: Path, cluster: int) -> dict[str, torch.Tensor]:
    """Four memes, sent to one cluster whatever they show."""
    rows = [model.encode(meme.caption, meme.load_image()) for meme in read_memes(memes / "a" / "dev.jsonl")[:4]]
    return model.collate([row | {"cluster": cluster} for row in rows])


def outputs(model: MemeModel, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: column.numpy() for name, column in model.columns(batch).items()}


@pytest.fixture(params=range(CLUSTERS + 1), ids=NAMES)
def cluster(request: pytest.FixtureRequest) -> int:
    return request.param if request.param < CLUSTERS else -1


@pytest.mark.parametrize("merged", [False, True], ids=["attached", "merged"])
def test_an_adapter_equals_the_routed_model(
    routed: MemeModel, run: Path, exported: Path, memes: Path, cluster: int, merged: bool
) -> None:
    folder = exported / NAMES[cluster]
    plain = MemeModel(replace(open_run(run), adapter=folder, experts=None), CPU)
    assert isinstance(plain.model, PeftModel)
    if merged:
        plain.model = plain.model.merge_and_unload()
        assert not any("lora_" in name for name, _ in plain.model.named_modules())
    expected = outputs(routed, batch_of(routed, memes, cluster))
    found = outputs(plain, batch_of(plain, memes, cluster))
    for name, column in expected.items():
        assert np.abs(column - found[name]).max() < 1e-5, name
    others = outputs(routed, batch_of(routed, memes, (cluster + 2) % CLUSTERS))
    assert np.abs(expected["hidden"] - others["hidden"]).max() > 1e-3


def test_the_folder_holds_what_a_server_needs(run: Path, exported: Path) -> None:
    manifest = read_json(exported / "adapters.json")
    assert dict(manifest.adapters) == {"0": "cluster-0", "1": "cluster-1", "2": "cluster-2", "-1": "unknown"}
    assert manifest.rank == 4
    assert Clusters.open(exported / "clusters").digest == manifest.clusters == open_run(run).settings.clusters
    assert Guidance.open(exported / "guidance.json").digest == manifest.guidance
    for name in NAMES:
        config = json.loads((exported / name / "adapter_config.json").read_text())
        assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 4)
        weights = load_file(exported / name / "adapter_model.safetensors")
        assert {tensor.shape[0] for key, tensor in weights.items() if "lora_A" in key} == {4}
        assert {key.split(".")[-3] for key in weights} == {
            *("q_proj", "k_proj", "v_proj", "o_proj"), *("gate_proj", "up_proj", "down_proj")
        }  # fmt: skip


def test_what_cannot_be_exported_is_refused(run: Path, stage1_run: Path, expert_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no experts"):
        export_clusters(stage1_run, tmp_path / "out")
    with pytest.raises(UserError, match="reads each token"):
        export_clusters(expert_run, tmp_path / "out")
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "adapter_config.json"
    write_json(path, json.loads(path.read_text()) | {"use_dora": True})
    with pytest.raises(UserError, match="`use_dora: True`"):
        export_clusters(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
