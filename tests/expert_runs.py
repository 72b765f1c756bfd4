"""Clusters and guidance of the synthetic memes, configurations with experts, and a run that was trained with them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import train
from once import SharedFolders
from small_clusters import clusters_of

from ra_hmd.core.artifacts import plain
from ra_hmd.data.guidance import Guidance
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.models.clip_encoder import Encoder, EncoderSettings
from ra_hmd.models.cluster_assignment import Clusters
from ra_hmd.models.encoders import joint_vectors
from ra_hmd.models.tiny_clip import make_tiny_encoder

Config = Callable[..., dict[str, Any]]
CLUSTERS = 3
TEXTS = ("Look at the colours of the shapes.", "", "Read the words before you answer.")


@dataclass(frozen=True)
class GuideFiles:
    """Clusters of the training memes of domain A, and guidance for them."""

    folder: Path

    @property
    def clusters(self) -> Path:
        return self.folder / "clusters"

    @property
    def guidance(self) -> Path:
        return self.folder / "guidance.json"


def make_guides(folder: Path, memes: list[Meme]) -> None:
    """Fit clusters on memes by k-means over a tiny encoder's features, and write a text for each but the second."""
    from sklearn.cluster import KMeans

    make_tiny_encoder("clip", folder / "encoder")
    encoder = Encoder(EncoderSettings(path=str(folder / "encoder"))).load(torch.device("cpu"))
    columns = encoder.columns(encoder.collate([encoder.encode(meme.caption, meme.load_image()) for meme in memes]))
    image, text = columns["image_features"].numpy(), columns["text_features"].numpy()
    fitted = KMeans(CLUSTERS, n_init=4, random_state=0).fit(joint_vectors(image, text))
    stated = {"encoder": encoder.settings.to_dict(), "fingerprint": plain(encoder.fingerprint()), "split": "train"}
    sizes = np.bincount(fitted.labels_, minlength=CLUSTERS).tolist()
    centroids = fitted.cluster_centers_.astype(np.float32)
    clusters = clusters_of(centroids, (image.shape[1], text.shape[1]), sizes, **stated).copy_to(folder / "clusters")
    Guidance(TEXTS, clusters.digest).copy_to(folder / "guidance.json")


@pytest.fixture(scope="session")
def guides(once: SharedFolders, memes: Path) -> GuideFiles:
    """Clusters and guidance."""
    training = read_memes(memes / "confounders_a.json", media_dir=memes)[:32]
    return GuideFiles(once("guides", lambda folder: make_guides(folder, training)))


@pytest.fixture(scope="session")
def expert_config(stage1_config: Config, guides: GuideFiles) -> Config:
    """A small configuration with experts, clusters and guidance; keyword arguments override, None removes."""

    def make(output: Path, family: str = "qwen2_vl", **changes: Any) -> dict[str, Any]:
        experts = {
            "llm_moe": True,
            "llm_moe_num_experts": 3,
            "expert_rank": 4,
            "expert_alpha": 8,
            "clusters": str(guides.clusters),
            "guidance": str(guides.guidance),
            "router_lr": 4e-3,
            "lora_target": None,
            "lora_dropout": 0.0,
        }
        return stage1_config(output, family, **(experts | changes))

    return make


@pytest.fixture(scope="session")
def expert_run(expert_config: Config, once: SharedFolders) -> Path:
    """A run of stock `llamafactory-cli` with experts, evaluated and saved after two and four steps.

    The worst evaluation is asked for, so that the kept checkpoint is not the last one anyway.
    """

    def make(folder: Path) -> None:
        config = expert_config(
            folder / "run",
            save_strategy="steps",
            save_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            do_predict=True,
            metric_for_best_model="eval_loss",
            greater_is_better=True,
            load_best_model_at_end=True,
        )
        (folder / "run.log").write_text(train(config, folder))

    return once("experts", make) / "run"


def cluster_ids(guides: GuideFiles, memes: list[Meme]) -> list[int]:
    """The cluster of each meme."""
    assigner = Clusters.open(guides.clusters).load(torch.device("cpu"))
    return [assigner(meme.caption, meme.load_image()) for meme in memes]


def history(output: Path, key: str) -> list[float]:
    """The values of a key in the log of a run."""
    state = json.loads((output / "trainer_state.json").read_text())
    return [row[key] for row in state["log_history"] if key in row]
