"""Trained heads with example banks for tests of services: on a tiny CLIP, a tiny Qwen2-VL, and one with experts."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from once import SharedFolders
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.data.guidance import Guidance
from ra_hmd.models.checkpoint import open_run
from ra_hmd.models.cluster_assignment import Clusters
from ra_hmd.models.experts.attach import attach_experts
from ra_hmd.models.experts.files import save_experts
from ra_hmd.models.experts.settings import ExpertSettings
from ra_hmd.models.meme_model import MemeModel


def ra_hmd(*words: str | Path) -> None:
    """Run a command of this package in this process."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, f"{words}\n{done.output}\n{done.exception!r}"


def encode_synthetic(memes: Path, folder: Path) -> None:
    """Make a tiny CLIP in `clip` and the feature stores of domain A in `features` of a folder."""
    ra_hmd("tiny-encoder", "--family", "clip", "--output", folder / "clip")
    for split in ("train", "dev", "test"):
        ra_hmd("encode", "--encoder", folder / "clip", "--data", memes / "a", "--split", split, "--workers", "0",
               "--output", folder / "features" / split)  # fmt: skip


@pytest.fixture(scope="session")
def served_clip(memes: Path, once: SharedFolders) -> Path:
    """Folder with `head` (fused, on a tiny CLIP), features/{train,dev,test} and `bank`; copy the bank to change it."""

    def make(folder: Path) -> None:
        encode_synthetic(memes, folder)
        (folder / "head.yaml").write_text(
            "fusion: align\nmap_dim: 16\nproj_dim: 16\nnum_layers: 2\nepochs: 2\nlr: 1.0e-2\n"
        )
        stores = [f"{split}={folder}/features/{split}" for split in ("train", "dev")]
        ra_hmd("train-head", folder / "head.yaml", *stores, f"output_dir={folder / 'head'}")
        ra_hmd("bank", "create", folder / "bank", "--checkpoint", folder / "head", "--features",
               folder / "features" / "train", "--reason", "start", "--author", "tests")  # fmt: skip

    return once("served-clip", make)


@pytest.fixture(scope="session")
def served_lmm(stage1_run: Path, memes: Path, once: SharedFolders) -> Path:
    """Folder with `run` (a Stage 1 run on a tiny Qwen2-VL), features/{train,dev,test} and `bank`."""

    def make(folder: Path) -> None:
        shutil.copytree(stage1_run, folder / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
        for split in ("train", "dev", "test"):
            ra_hmd("extract", "--checkpoint", folder / "run", "--data", memes / "a", "--split", split,
                   "--workers", "0", "--output", folder / "features" / split)  # fmt: skip
        ra_hmd("bank", "create", folder / "bank", "--checkpoint", folder / "run", "--features",
               folder / "features" / "train", "--reason", "start", "--author", "tests")  # fmt: skip

    return once("served-lmm", make)


@pytest.fixture(scope="session")
def served_experts(served_lmm: Path, served_clip: Path, memes: Path, once: SharedFolders) -> Path:
    """Folder like `served_lmm`, whose run has random experts, the clusters of a tiny CLIP and guidance for each."""

    def make(folder: Path) -> None:
        run = Path(shutil.copytree(served_lmm / "run", folder / "run"))
        ra_hmd("cluster", served_clip / "features" / "train", "--clusters", "3", "--output", run / "clusters")
        equip_with_experts(run, [f"Guidance number {number} looks at colours." for number in range(3)])
        for split in ("train", "dev", "test"):
            ra_hmd("extract", "--checkpoint", run, "--data", memes / "a", "--split", split, "--workers", "2",
                   "--output", folder / "features" / split)  # fmt: skip
        ra_hmd("bank", "create", folder / "bank", "--checkpoint", run, "--features", folder / "features" / "train",
               "--reason", "start", "--author", "tests")  # fmt: skip

    return once("served-experts", make)


def equip_with_experts(run: Path, guidance: list[str]) -> None:
    """Give a Stage 1 run with `clusters` random experts whose effect is large, and guidance."""
    clusters = Clusters.open(run / "clusters")
    Guidance(tuple(guidance), clusters.digest).write(run / "guidance.json")
    settings = ExpertSettings(rank=4, alpha=4, num_clusters=clusters.count, prior_scale=8.0)
    model = MemeModel(open_run(run), torch.device("cpu")).model
    experts = attach_experts(model, settings, seed=0, trainable=False)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(value.shape, generator=generator) * 0.1 if name.endswith(".B") else value.detach()
             for name, value in experts.state().items()}  # fmt: skip
    save_experts(run, settings, state)
    manifest = json.loads((run / "ra_hmd.json").read_text())
    manifest["inputs"] |= {"clusters": clusters.digest, "guidance": Guidance.open(run / "guidance.json").digest}
    manifest["arguments"]["finetuning"]["llm_moe"] = True
    (run / "ra_hmd.json").write_text(json.dumps(manifest))


@pytest.fixture
def clip_bank(served_clip: Path, tmp_path: Path) -> Path:
    """A bank that a test may change."""
    return Path(shutil.copytree(served_clip / "bank", tmp_path / "bank"))
