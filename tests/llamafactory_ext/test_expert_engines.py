"""Experts under every engine of stock LLaMA-Factory, killed and resumed, with each kind of gradient checkpointing."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import ROOT, train, train_and_kill
from expert_runs import GuideFiles, history
from json_files import read_json
from llamafactory.train import tuner
from safetensors.torch import load_file

from ra_hmd.core.errors import UserError
from ra_hmd.data.meme_files import read_memes
from ra_hmd.features.extract_lmm import extract_hidden_states
from ra_hmd.features.store import read_features
from ra_hmd.models.checkpoint import Run, open_run

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]
FILES = ("adapter_model.safetensors", "head.safetensors", "experts.safetensors")
SAME_BATCH = {"expert_dropout": 0.0, "save_strategy": "no", "eval_dataset": None}

# Three layers: ZeRO-2 lays their master weights out in another order than that of the layers.
HEAD = {"num_layers": 3}


def difference(one: Path, other: Path) -> dict[str, float]:
    """The largest difference of weights for each file, and for routers and the running share by themselves."""
    found = {}
    for file in FILES:
        left, right = load_file(one / file), load_file(other / file)
        assert left.keys() == right.keys()
        for name in left:
            part = "share" if name == "share" else "router" if ".router." in name else file
            away = float((left[name].float() - right[name].float()).abs().max())
            found[part] = max(found.get(part, 0.0), away)
    return found


@pytest.fixture(scope="module")
def one_rank(expert_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of eight memes in one process, with the host's default of reentrant checkpointing."""
    folder = tmp_path_factory.mktemp("one") / "out"
    tuner.run_exp(expert_config(folder, **SAME_BATCH, **HEAD), callbacks=[])
    return folder


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_two_ranks_equal_one(expert_config: Config, one_rank: Path, memes: Path, tmp_path: Path, engine: str) -> None:
    changes = {} if engine == "ddp" else {"deepspeed": str(ROOT / f"configs/deepspeed/{engine}.json")}
    config = expert_config(
        tmp_path / engine, per_device_train_batch_size=4, **(SAME_BATCH | HEAD | {"save_strategy": "epoch"}), **changes
    )
    train(config, tmp_path, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    for key in ("loss", "lm_loss", "lrc_loss", "balance_loss", "routing_entropy"):
        assert history(tmp_path / engine, key) == pytest.approx(history(one_rank, key), rel=0.02)
    found = difference(tmp_path / engine, one_rank)
    assert max(found.values()) < 5e-3
    assert found["share"] < 1e-6
    assert max(difference(tmp_path / engine, tmp_path / engine / "checkpoint-4").values()) < 1e-6
    extract_hidden_states(
        open_run(tmp_path / engine), read_memes(memes / "a" / "dev.jsonl")[:4], tmp_path / "f", num_workers=0
    )
    assert read_features(tmp_path / "f").embedding.shape == (4, 32)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_reentrant_gc": False},
        {"disable_gradient_checkpointing": True},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_memory_options_change_no_weight(
    expert_config: Config, one_rank: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    # A balance loss of much weight: a router without its gradient would be another one.
    weight = {"moe_balance_w": 1.0} if "gradient_accumulation_steps" not in changes else {}
    reference = one_rank
    if weight:
        reference = tmp_path / "reference"
        tuner.run_exp(expert_config(reference, **SAME_BATCH, **HEAD, **weight), callbacks=[])
        assert difference(reference, one_rank)["router"] > 1e-4
    tuner.run_exp(expert_config(tmp_path / "out", **SAME_BATCH, **HEAD, **weight, **changes), callbacks=[])
    found = difference(tmp_path / "out", reference)
    assert max(found.values()) < 5e-3 if not weight else max(found.values()) < 1e-5


def test_four_bits(expert_config: Config, one_rank: Path, memes: Path, tmp_path: Path) -> None:
    config = expert_config(tmp_path / "q", quantization_bit=4, quantization_method="bnb", do_predict=True,
                           **(SAME_BATCH | HEAD | {"eval_dataset": "confounders_a_dev"}))  # fmt: skip
    tuner.run_exp(config, callbacks=[])
    assert history(tmp_path / "q", "loss") == pytest.approx(history(one_rank, "loss"), rel=0.1)
    difference(tmp_path / "q", one_rank)  # the same keys
    assert read_json(tmp_path / "q" / "ra_hmd.json").base_model.loading.quantization_bit == 4
    extract_hidden_states(
        open_run(tmp_path / "q"), read_memes(memes / "a" / "dev.jsonl")[:4], tmp_path / "f", num_workers=0
    )
    assert read_features(tmp_path / "f").embedding.shape == (4, 32)


def test_killed_and_resumed_training_gives_the_same_weights(expert_config: Config, tmp_path: Path) -> None:
    changes = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2, "eval_dataset": None}
    tuner.run_exp(expert_config(tmp_path / "whole", **changes), callbacks=[])

    train_and_kill(expert_config(tmp_path / "killed", **changes), tmp_path, tmp_path / "killed" / "checkpoint-4")
    assert not (tmp_path / "killed" / "experts.safetensors").exists()

    resume = {"resume_from_checkpoint": str(tmp_path / "killed" / "checkpoint-4")}
    train(expert_config(tmp_path / "killed", **changes, **resume), tmp_path)
    found = difference(tmp_path / "whole", tmp_path / "killed")
    assert set(found) == {*FILES, "router", "share"}
    assert max(found.values()) <= 1e-6

    others = (("expert_rank", 8, 4), ("router_tau", 2.0, 1.0), ("router_lr", 1e-3, 4e-3),
              ("moe_balance_scope", "sample", "batch"))  # fmt: skip
    for name, value, there in others:
        message = refused(expert_config(tmp_path / "again", **(changes | resume | {name: value})))
        assert f"finetuning.{name}: {there!r} there, {value!r} here" in message
    message = refused(expert_config(tmp_path / "again", **(changes | resume | {"guidance": None})))
    assert "inputs.guidance: " in message
    (tmp_path / "killed" / "checkpoint-4" / "experts.safetensors").unlink()
    message = refused(expert_config(tmp_path / "again", **changes, **resume))
    assert "has no trained experts" in message


def refused(config: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        tuner.run_exp(config, callbacks=[])
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lmh_alone", {"loss_ratio": [1.0, 0.0], "moe_balance_scope": "sample", "expert_top_k": 1}),
        ("hydra_lora", {"clusters": None, "guidance": None, "universal_expert": True, "expert_top_k": 2}),
        ("by_cluster", {"router_input": "none", "cluster_prior_init": "zero", "guidance": None}),
        ("bf16", {"embed_mode": "pool", "bf16": True, "use_cpu": True}),
        ("joint", {"rgcl": True, "rgcl_hard_negatives": 2}),
    ],
)
def test_variants_train_and_reopen(
    expert_config: Config, memes: Path, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    config = expert_config(tmp_path / name, max_samples=16, eval_dataset=None, **changes)
    tuner.run_exp(config, callbacks=[])
    assert all(math.isfinite(value) for value in history(tmp_path / name, "balance_loss"))
    weights = load_file(tmp_path / name / "experts.safetensors")
    prior, weight = ("layers.0.router.prior" in weights, "layers.0.router.weight" in weights)
    assert (prior, weight) == (name != "hydra_lora", name != "by_cluster")
    assert float(weights["layers.1.down.B"].abs().max()) > 0
    assert (tmp_path / name / "clusters").exists() == (name != "hydra_lora")
    assert (tmp_path / name / "guidance.json").exists() == (name not in ("hydra_lora", "by_cluster"))
    if name == "joint":
        assert len(history(tmp_path / name, "rgcl_loss")) == 2
    found = open_run(tmp_path / name)
    extract_hidden_states(found, read_memes(memes / "a" / "dev.jsonl")[:4], tmp_path / "features", num_workers=0)
    assert read_features(tmp_path / "features").embedding.shape == (4, 32)


def scores(run: Path | Run, memes: Path, output: Path) -> list[float]:
    """LRC scores of 16 dev memes by extraction; of a folder the scores that the trainer predicted."""
    if isinstance(run, Path):
        return [json.loads(line)["lrc_score"] for line in (run / "predictions.jsonl").read_text().splitlines()]
    records = read_memes(memes / "confounders_a_dev.json", media_dir=memes)[:16]
    extract_hidden_states(run, records, output, num_workers=0)
    return torch.from_numpy(read_features(output).lrc_logit[:, 0]).double().sigmoid().tolist()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_guidance_without_experts(
    stage1_config: Config, guides: GuideFiles, memes: Path, tmp_path: Path, kind: str
) -> None:
    given = {"clusters": str(guides.clusters), "guidance": str(guides.guidance), "max_samples": 16, "do_predict": True}
    config = stage1_config(tmp_path / "run", finetuning_type=kind, **given)
    tuner.run_exp(config, callbacks=[])
    run = open_run(tmp_path / "run")
    assert run.experts is None
    assert run.guidance is not None
    found = scores(run, memes, tmp_path / "features")
    assert scores(tmp_path / "run", memes, tmp_path) == pytest.approx(found, abs=1e-5)
    place = "adapter_name_or_path" if kind == "lora" else "model_name_or_path"
    left_out = {"do_train": None, "clusters": None, "guidance": None, place: str(tmp_path / "run")}
    tuner.run_exp(stage1_config(tmp_path / "asked", finetuning_type=kind, **(given | left_out)), callbacks=[])
    assert scores(tmp_path / "asked", memes, tmp_path) == pytest.approx(found, abs=1e-5)
    if kind == "full":
        return
    names = ("model_name_or_path", "finetuning_type", "template")
    export = {name: config[name] for name in names} | {"adapter_name_or_path": str(tmp_path / "run")}
    tuner.export_model(export | {"export_dir": str(tmp_path / "merged")})
    merged = open_run(tmp_path / "merged")
    assert merged.guidance == run.guidance
    assert scores(merged, memes, tmp_path / "of-merged") == pytest.approx(found, abs=1e-4)


def test_the_bank_of_joint_training_is_routed_as_extraction_is(
    expert_config: Config, memes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory_ext.sft_classifier.rgcl import RetrievalGuidance

    banks: dict[int, torch.Tensor] = {}
    refresh = RetrievalGuidance.refresh

    def noting(self: Any) -> None:
        refresh(self)
        banks[self._trainer.state.global_step] = self.bank.clone()

    monkeypatch.setattr(RetrievalGuidance, "refresh", noting)
    saving = {"save_strategy": "steps", "save_steps": 1, "max_samples": 16, "eval_dataset": None}
    tuner.run_exp(expert_config(tmp_path / "out", rgcl=True, rgcl_reindex_every=1, **saving), callbacks=[])
    records = read_memes(memes / "confounders_a.json", media_dir=memes)[:16]
    extract_hidden_states(open_run(tmp_path / "out" / "checkpoint-1"), records, tmp_path / "f", num_workers=0)
    away = torch.from_numpy(read_features(tmp_path / "f").embedding) - banks[1]
    assert float(away.abs().max()) < 1e-4
