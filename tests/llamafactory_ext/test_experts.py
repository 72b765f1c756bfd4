"""A run with experts, clusters and guidance: what it saves, one score everywhere, and what is refused of it."""

import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from expert_runs import CLUSTERS, GuideFiles, cluster_ids, history
from json_files import read_json
from llamafactory.train import tuner
from safetensors.torch import load_file

from llamafactory_ext.host_arguments import refusals
from ra_hmd.core.artifacts import write_json
from ra_hmd.core.errors import UserError
from ra_hmd.data.guidance import Guidance
from ra_hmd.data.meme_files import read_memes
from ra_hmd.features.extract_lmm import extract_hidden_states
from ra_hmd.features.store import read_features
from ra_hmd.models.checkpoint import open_run
from ra_hmd.models.cluster_assignment import Clusters

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]
KEYS = {
    *(f"layers.{layer}.{name}.{part}" for layer in range(2) for name in ("gate", "up", "down") for part in "AB"),
    *(f"layers.{layer}.router.{name}" for layer in range(2) for name in ("weight", "bias", "prior")),
    "share",
}


def refused(config: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        tuner.run_exp(config, callbacks=[])
    return str(error.value)


def predictions(folder: Path) -> dict[str, tuple[float, float]]:
    rows = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
    return {row["id"]: (row["lmh_score"], row["lrc_score"]) for row in rows}


@pytest.fixture
def copied(expert_run: Path, tmp_path: Path) -> Path:
    """A copy of the run without its checkpoints, to be changed."""
    shutil.copytree(expert_run, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint-*"))
    return tmp_path / "copy"


@pytest.fixture
def asking(stage1_config: Config, expert_run: Path, tmp_path: Path) -> Config:
    """A configuration that asks the run, and leaves out its settings."""

    def make(run: Path = expert_run, **changes: Any) -> dict[str, Any]:
        left_out = {"do_train": None, "cutoff_len": None, "proj_dim": None, "loss_ratio": None, "lora_target": None}
        asks = {"do_predict": True, "adapter_name_or_path": str(run)}
        return stage1_config(tmp_path / "asked", **(left_out | asks | changes))

    return make


# --- what is saved ----------------------------------------------------------------------------------------------------


def test_run_and_checkpoints_hold_experts_clusters_and_guidance(expert_run: Path, guides: GuideFiles) -> None:
    for folder in (expert_run, expert_run / "checkpoint-2", expert_run / "checkpoint-4"):
        weights = load_file(folder / "experts.safetensors")
        assert set(weights) == KEYS
        assert all(tensor.dtype == torch.float32 for tensor in weights.values())
        assert weights["layers.0.gate.A"].shape == (4, 64)
        assert weights["layers.1.down.B"].shape == (64, 12)
        assert weights["layers.0.router.prior"].shape == (CLUSTERS, 3)
        assert float(weights["layers.0.gate.B"].abs().max()) > 0
        assert Clusters.open(folder / "clusters").digest == Clusters.open(guides.clusters).digest
        assert Guidance.open(folder / "guidance.json").digest == Guidance.open(guides.guidance).digest
    assert read_json(expert_run / "experts.json").num_clusters == CLUSTERS


def test_the_adapter_is_plain_lora_in_the_attention(expert_run: Path) -> None:
    names = load_file(expert_run / "adapter_model.safetensors")
    assert all(name.endswith(("lora_A.weight", "lora_B.weight")) for name in names)
    layers = {name.split(".")[-3] for name in names}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert not any("visual" in name for name in names)


def test_the_manifest_states_experts_and_digests(expert_run: Path, guides: GuideFiles, stage1_run: Path) -> None:
    manifest = read_json(expert_run / "ra_hmd.json")
    assert (manifest.experts.num_experts, manifest.experts.rank, manifest.experts.num_clusters) == (3, 4, CLUSTERS)
    assert manifest.inputs.clusters == Clusters.open(guides.clusters).digest
    assert manifest.inputs.guidance == Guidance.open(guides.guidance).digest
    assert "experts" not in read_json(stage1_run / "ra_hmd.json")


def test_three_learning_rates_each_with_and_without_decay(expert_run: Path) -> None:
    groups = torch.load(expert_run / "checkpoint-2" / "optimizer.pt", weights_only=True)["param_groups"]
    described = [(group["initial_lr"], len(group["params"])) for group in groups]
    attention, experts, routers = 2 * 4 * 2, 2 * 3 * 2, 2 * 2
    assert described == [(2e-3, attention + experts), (1e-3, 2), (1e-3, 2), (4e-3, routers), (4e-3, 2)]
    logged = history(expert_run, "router_lr")
    assert logged == pytest.approx([2 * rate for rate in history(expert_run, "learning_rate")])


def test_logged_parts_make_up_the_loss(expert_run: Path) -> None:
    names = ("loss", "lm_loss", "lrc_loss", "balance_loss", "routing_entropy")
    for loss, lm, lrc, balance, entropy in zip(*(history(expert_run, name) for name in names), strict=True):
        assert loss == pytest.approx(lm + lrc + 0.05 * balance, rel=1e-3)
        assert balance == pytest.approx(1, abs=0.5)
        assert 0 < entropy <= math.log(3) + 1e-6


def test_the_running_share_follows_the_optimizer_steps(expert_run: Path) -> None:
    shares = [load_file(expert_run / f"checkpoint-{step}" / "experts.safetensors")["share"] for step in (2, 4)]
    assert all(float(share.sum()) == pytest.approx(1) for share in shares)
    moved = [float((share - 1 / 3).abs().max()) for share in shares]
    assert 0 < moved[0] < moved[1]


def test_the_best_experts_are_restored(expert_run: Path) -> None:
    best = Path(json.loads((expert_run / "trainer_state.json").read_text())["best_model_checkpoint"])
    assert best.name == "checkpoint-2"
    kept, saved = (load_file(folder / "experts.safetensors") for folder in (expert_run, best))
    assert all(torch.equal(kept[name], saved[name]) for name in KEYS)
    first, last = (load_file(expert_run / f"checkpoint-{step}" / "experts.safetensors") for step in (2, 4))
    assert not torch.equal(first["layers.0.gate.B"], last["layers.0.gate.B"])


# --- one score --------------------------------------------------------------------------------------------------------


def test_prediction_of_the_trainer_and_extraction_agree(expert_run: Path, memes: Path, tmp_path: Path) -> None:
    records = read_memes(memes / "confounders_a_dev.json", media_dir=memes)[:32]
    extract_hidden_states(open_run(expert_run), records, tmp_path / "features", num_workers=0)
    found, said = read_features(tmp_path / "features"), predictions(expert_run)
    assert list(said) == list(found.ids)
    scores = torch.from_numpy(found.lrc_logit[:, 0]).double().sigmoid().tolist()
    assert [lrc for _, lrc in said.values()] == pytest.approx(scores, abs=1e-5)
    assert [lmh for lmh, _ in said.values()] == pytest.approx(found.lmh_score[:, 0].tolist(), abs=1e-5)


def test_clusters_and_guidance_act(expert_run: Path, guides: GuideFiles, memes: Path, tmp_path: Path) -> None:
    records = read_memes(memes / "confounders_a_dev.json", media_dir=memes)[:16]
    assert len(set(cluster_ids(guides, records))) > 1
    run = open_run(expert_run)
    extract_hidden_states(run, records, tmp_path / "as-trained", num_workers=0)
    hidden = read_features(tmp_path / "as-trained").hidden
    for name in ("clusters", "guidance"):
        changed = {name: getattr(run, name).shuffled(1)}
        other = run.__class__(**(vars(run) | changed))
        extract_hidden_states(other, records, tmp_path / name, num_workers=0)
        assert np.abs(read_features(tmp_path / name).hidden - hidden).max() > 1e-4


def test_a_run_is_read_without_unpickling(
    expert_run: Path, memes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a pickle is read")

    records = read_memes(memes / "confounders_a_dev.json", media_dir=memes)[:2]
    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr(pickle, "load", fail)
    monkeypatch.setattr(pickle, "Unpickler", fail)
    for folder in (expert_run, expert_run / "checkpoint-2"):
        extract_hidden_states(open_run(folder), records, tmp_path / folder.name, num_workers=0)


# --- the run is used again --------------------------------------------------------------------------------------------


def test_what_the_yaml_leaves_out_is_the_runs(asking: Config, expert_run: Path, tmp_path: Path) -> None:
    tuner.run_exp(asking(), callbacks=[])
    said, again = predictions(expert_run), predictions(tmp_path / "asked")
    assert list(said) == list(again)
    assert [score for pair in again.values() for score in pair] == pytest.approx(
        [score for pair in said.values() for score in pair], abs=1e-6
    )
    manifest = read_json(tmp_path / "asked" / "evaluation_manifest.json")
    assert manifest.inputs == read_json(expert_run / "ra_hmd.json").inputs


def test_other_keys_are_refused_with_both_values(asking: Config, guides: GuideFiles, tmp_path: Path) -> None:
    Clusters.open(guides.clusters).shuffled(1).copy_to(tmp_path / "clusters")
    Guidance(("a", "b", "c"), Clusters.open(guides.clusters).digest).copy_to(tmp_path / "other.json")
    changes = {"llm_moe": True, "llm_moe_num_experts": 4, "expert_rank": 8, "router_tau": 2.0, "universal_expert": True,
               "expert_top_k": 2, "clusters": str(tmp_path / "clusters")}  # fmt: skip
    message = refused(asking(**changes))
    for line in ("`llm_moe_num_experts`: 3 in ", "`expert_rank`: 4 in ", "`router_tau`: 1.0 in ", "`clusters`: ",
                 "`universal_expert`: False in ", "`expert_top_k`: 0 in "):  # fmt: skip
        assert line in message
    assert "8 here" in message
    message = refused(asking(clusters=str(guides.clusters), guidance=str(tmp_path / "other.json")))
    assert f"({tmp_path / 'other.json'}) here" in message
    assert "`clusters`" not in message
    tuner.run_exp(asking(clusters=str(guides.clusters), guidance=str(guides.guidance), max_samples=4), callbacks=[])


def test_a_run_that_lost_its_experts_is_not_evaluated(asking: Config, copied: Path) -> None:
    (copied / "experts.safetensors").unlink()
    assert f"{copied} has no trained experts" in refused(asking(copied))
    with pytest.raises(UserError, match=r"experts\.safetensors is missing"):
        open_run(copied)


@pytest.mark.parametrize("name", ["clusters", "guidance"])
def test_a_run_with_other_clusters_or_guidance_inside_is_not_evaluated(asking: Config, copied: Path, name: str) -> None:
    if name == "clusters":
        Clusters.open(copied / "clusters").shuffled(1).copy_to(copied / "clusters")
    else:
        Guidance(("a", "b", "c"), Clusters.open(copied / "clusters").digest).copy_to(copied / "guidance.json")
    assert "is not what the run was trained with" in refused(asking(copied))


def test_experts_of_another_shape_are_refused(asking: Config, copied: Path) -> None:
    config = read_json(copied / "experts.json")
    write_json(copied / "experts.json", config | {"rank": 5})
    assert "`rank` is 5" in refused(asking(copied))


def test_an_adapter_with_experts_is_continued(
    asking: Config, expert_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    still = {"learning_rate": 1e-20, "classifier_lr": 1e-20, "max_steps": 1, "max_samples": 8}
    going_on = {"do_train": True, "do_predict": None, "cutoff_len": 192, "proj_dim": 32}
    config = asking(**still, **going_on, llm_moe=True, router_lr=1e-20, llm_moe_num_experts=3)
    tuner.run_exp(config, callbacks=[])
    before, after = (load_file(folder / "experts.safetensors") for folder in (expert_run, tmp_path / "asked"))
    assert all(torch.allclose(before[name], after[name], atol=1e-12) for name in KEYS - {"share"})
    assert "`expert_rank: 4`" in caplog.text
    assert read_json(tmp_path / "asked" / "ra_hmd.json").inputs == read_json(expert_run / "ra_hmd.json").inputs
    assert "`expert_rank`: 4 in " in refused(config | {"expert_rank": 2})
    Guidance(("a", "b", "c"), Clusters.open(expert_run / "clusters").digest).copy_to(tmp_path / "other.json")
    tuner.run_exp(config | {"clusters": str(expert_run / "clusters"), "guidance": str(tmp_path / "other.json")}, [])
    assert "Training goes on with other settings than before: `guidance`: " in caplog.text
    Clusters.open(expert_run / "clusters").shuffled(1).copy_to(tmp_path / "clusters")
    assert "`clusters`: " in refused(config | {"clusters": str(tmp_path / "clusters")})
    assert "`llm_moe`: True in " in refused(asking(**going_on, llm_moe=False))


def test_a_run_with_experts_cannot_be_merged_below_an_adapter(asking: Config, copied: Path) -> None:
    config = asking(copied, do_train=True, do_predict=None, cutoff_len=192, create_new_adapter=True)
    assert "cannot be merged" in refused(config)


def test_experts_beside_an_adapter_that_tunes_the_mlp_are_refused(asking: Config, stage1_run: Path) -> None:
    config = asking(stage1_run, do_train=True, do_predict=None, cutoff_len=192, llm_moe=True)
    assert f"The adapter {stage1_run} tunes gate_proj, up_proj, down_proj" in refused(config)


@pytest.mark.parametrize("by_cluster", [False, True])
def test_export_is_refused_with_the_reason(
    asking: Config, expert_run: Path, copied: Path, tmp_path: Path, by_cluster: bool
) -> None:
    run = copied if by_cluster else expert_run
    if by_cluster:
        write_json(run / "experts.json", read_json(run / "experts.json") | {"router_input": "none"})
    config = asking(run)
    names = ("model_name_or_path", "adapter_name_or_path", "finetuning_type", "template")
    with pytest.raises(UserError, match="weights depend on the meme") as error:
        tuner.export_model({name: config[name] for name in names} | {"export_dir": str(tmp_path / "merged")})
    assert (f"`ra-hmd export-clusters {run} --output FOLDER`" in str(error.value)) == by_cluster
    assert not (tmp_path / "merged").exists()


# --- refused before anything is loaded --------------------------------------------------------------------------------


@pytest.fixture
def early(expert_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a configuration is refused with; neither tokenizer nor weights may be loaded."""
    from llamafactory_ext.sft_classifier import workflow

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something is loaded")

    for name in ("load_tokenizer", "load_model", "load_records"):
        monkeypatch.setattr(workflow, name, fail)

    def run(**changes: Any) -> str:
        return refused(expert_config(tmp_path / "out", **changes))

    return run


def test_clusters_and_guidance_must_be_there_and_belong_together(
    early: Callable[..., str], guides: GuideFiles, tmp_path: Path
) -> None:
    assert f"{tmp_path / 'none'} holds no clusters" in early(clusters=str(tmp_path / "none"))
    assert f"{tmp_path / 'none.json'} does not exist" in early(guidance=str(tmp_path / "none.json"))
    assert "`guidance` is set without `clusters`" in early(clusters=None)
    Guidance(("a", "b", "c"), "of other clusters").copy_to(tmp_path / "other.json")
    assert "was written for other clusters" in early(guidance=str(tmp_path / "other.json"))
    Guidance(("a", "b"), Clusters.open(guides.clusters).digest).copy_to(tmp_path / "few.json")
    assert "has texts for 2 clusters, and there are 3" in early(guidance=str(tmp_path / "few.json"))


def test_clusters_and_guidance_of_a_test_split_are_refused(
    early: Callable[..., str], guides: GuideFiles, tmp_path: Path
) -> None:
    clusters = Clusters.open(guides.clusters)
    on_test = clusters.manifest.model_copy(update={"split": "test_seen"})
    Clusters(tmp_path, clusters.centroids, on_test).copy_to(tmp_path / "clusters")
    assert "fitted on split 'test_seen'" in early(clusters=str(tmp_path / "clusters"))
    written = read_json(guides.guidance) | {"data": {"place": "somewhere", "split": "test"}}
    write_json(tmp_path / "guidance.json", written)
    assert "written from split 'test'" in early(guidance=str(tmp_path / "guidance.json"))


def test_packing_and_unsloth_are_refused(early: Callable[..., str]) -> None:
    assert "`packing: true`" in early(packing=True)
    [problem] = refusals(SimpleNamespace(use_unsloth=True))  # which the host asks for first, where it is not installed
    assert "`use_unsloth: true`" in problem


def test_a_mixture_of_experts_below_is_refused(early: Callable[..., str], tiny: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny("qwen3_vl"), tmp_path / "mixture")
    config = read_json(tmp_path / "mixture" / "config.json")
    config.model_type = "qwen3_vl_moe"
    config.text_config |= {"model_type": "qwen3_vl_moe_text", "num_experts": 4, "num_experts_per_tok": 2}
    write_json(tmp_path / "mixture" / "config.json", config)
    message = early(family="qwen3_vl", model_name_or_path=str(tmp_path / "mixture"))
    assert "is a mixture of experts itself (`num_experts_per_tok: 2`)" in message
