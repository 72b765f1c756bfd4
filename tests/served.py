"""Trained heads with example banks for tests of services: on a tiny CLIP, a tiny Qwen2-VL, and one with experts."""

import shutil
from pathlib import Path

import pytest
import torch
from once import SharedFolders
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ra_hmd.cli.app import app


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
def served_experts(expert_run: Path, memes: Path, once: SharedFolders) -> Path:
    """Folder like `served_lmm`, of a run with clusters, guidance and experts whose effect is large."""

    def make(folder: Path) -> None:
        run = Path(shutil.copytree(expert_run, folder / "run", ignore=shutil.ignore_patterns("checkpoint-*")))
        strengthen(run)
        for split in ("train", "dev", "test"):
            ra_hmd("extract", "--checkpoint", run, "--data", memes / "a", "--split", split, "--workers", "2",
                   "--output", folder / "features" / split)  # fmt: skip
        ra_hmd("bank", "create", folder / "bank", "--checkpoint", run, "--features", folder / "features" / "train",
               "--reason", "start", "--author", "tests")  # fmt: skip

    return once("served-experts", make)


def strengthen(run: Path) -> None:
    """Replace what the experts of a run learnt by large random numbers, and route by the cluster above all."""
    generator = torch.Generator().manual_seed(0)
    state = load_file(run / "experts.safetensors")
    for name, value in state.items():
        if name.endswith(".B"):
            state[name] = 0.3 * torch.randn(value.shape, generator=generator)
        elif name.endswith(".prior"):
            state[name] = 4 * value
    save_file(state, run / "experts.safetensors")


@pytest.fixture
def clip_bank(served_clip: Path, tmp_path: Path) -> Path:
    """A bank that a test may change."""
    return Path(shutil.copytree(served_clip / "bank", tmp_path / "bank"))
