"""Clusters with drawn centroids, for tests that need ids and no meaning."""

from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.core.manifests import ClustersManifest
from ra_hmd.models.cluster_assignment import Clusters, digest_of_centroids
from ra_hmd.models.encoders import joint_vectors


def clusters_of(
    centroids: np.ndarray, modalities: tuple[int, int], sizes: list[int] | None = None, **changes: Any
) -> Clusters:
    """Clusters of given centroids [K, D], which lie in no folder."""
    sizes = sizes or [1] * len(centroids)
    manifest = ClustersManifest(
        kind="clusters",
        format=ClustersManifest.FORMAT,
        count=len(centroids),
        modalities=modalities,
        centroids_sha256=digest_of_centroids(centroids),
        sizes=sizes,
        rows=sum(sizes),
        **changes,
    )
    return Clusters(Path("nowhere"), centroids, manifest)


def drawn_clusters(encoder: Path, folder: Path, /, count: int = 4, seed: int = 0, **changes: Any) -> Clusters:
    """Write clusters of an encoder into a folder; their centroids are those of single drawn memes."""
    import torch
    from PIL import Image

    from ra_hmd.core.artifacts import plain
    from ra_hmd.models.clip_encoder import Encoder, EncoderSettings

    opened = Encoder(EncoderSettings(path=str(encoder))).load(torch.device("cpu"))
    rng = np.random.default_rng(seed)
    memes = [(f"words {rng.integers(1000)}", rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)) for _ in range(count)]
    rows = [opened.encode(text, Image.fromarray(pixels)) for text, pixels in memes]
    columns = opened.columns(opened.collate(rows))
    image, text = columns["image_features"].numpy(), columns["text_features"].numpy()
    stated = {"encoder": opened.settings.to_dict(), "fingerprint": plain(opened.fingerprint()), "split": "train"}
    made = clusters_of(joint_vectors(image, text), (image.shape[1], text.shape[1]), **stated | changes)
    return made.copy_to(folder)
