"""Semantic clusters of memes: centroids in the space of a frozen encoder, and the cluster of each meme.

A meme belongs to the cluster with the nearest centroid. This holds for memes of training, of dev and of a service
alike, and the cluster of a meme depends on no other meme.

Shapes: N memes, K clusters, I image features, T text features, D = I + T.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ra_hmd.core.artifacts import atomic_path, plain, sha256_bytes
from ra_hmd.core.config import load_settings
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import ClustersManifest, read_manifest, write_manifest
from ra_hmd.core.progress import track
from ra_hmd.data.images import content_hash, to_rgb
from ra_hmd.data.meme import Meme
from ra_hmd.data.prompt import clean_caption
from ra_hmd.models.encoder_files import EncoderSettings
from ra_hmd.models.encoders import AnyEncoder, open_encoder, unit_vectors

CENTROIDS = "centroids.safetensors"
CLUSTERS_MANIFEST = "clusters.json"
UNKNOWN_CLUSTER = -1
"""Cluster id of a meme that belongs to no cluster."""

_ROWS = 256  # of float64 vectors at a time: they stay in the cache
_CLOSE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Distances that differ by less than this may change places with the rounding of a batch."""
_DECODERS = 4
_MOST_REMEMBERED = 1 << 18
"""Memes whose clusters an assigner remembers, some 50 MB of them: a service asks for new ones for ever."""


@dataclass(frozen=True)
class Assignment:
    """Clusters of N memes.

    Attributes:
        cluster: int64 [N], cluster ids; `UNKNOWN_CLUSTER` beyond the largest distance of a member.
        distance: float64 [N], Euclidean distance to the nearest centroid.
        margin: float64 [N], by how much the second nearest centroid is farther; infinite with one cluster.
    """

    cluster: np.ndarray
    distance: np.ndarray
    margin: np.ndarray


@dataclass(frozen=True)
class Clusters:
    """Centroids of clusters with their manifest.

    Attributes:
        folder: Folder that they were read from or written to.
        centroids: float32 [K, D].
        manifest: Their manifest.
    """

    folder: Path
    centroids: np.ndarray
    manifest: ClustersManifest

    @classmethod
    def open(cls, folder: str | Path) -> "Clusters":
        """Open the clusters in a folder.

        Raises:
            UserError: no clusters there, or files that are damaged or do not belong together.
        """
        folder = Path(folder)
        if not (folder / CLUSTERS_MANIFEST).is_file():
            raise UserError(
                f"{folder} holds no clusters, {CLUSTERS_MANIFEST} does not exist there; make them with "
                "`ra-hmd cluster`."
            )
        manifest = read_manifest(folder / CLUSTERS_MANIFEST, ClustersManifest)
        return cls(folder, _read_centroids(folder / CENTROIDS, manifest), manifest)

    @property
    def count(self) -> int:
        """K, the number of clusters."""
        return len(self.centroids)

    @property
    def encoder(self) -> EncoderSettings:
        """Settings of the encoder whose vectors are clustered."""
        stated = self.manifest.encoder
        return load_settings(EncoderSettings, stated.to_json() if stated else {}, self.folder / CLUSTERS_MANIFEST)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what decides the cluster of a meme: centroids, encoder and rule; not of places."""
        rule: dict[str, Any] = {"unknown_beyond": self.manifest.unknown_beyond}
        if self.manifest.shuffled is not None:
            counts = [*self.manifest.sizes, self.manifest.unknown]
            rule = {"shuffled": self.manifest.shuffled, "counts": counts}
        stated = json.dumps(plain([self.manifest.modalities, self.manifest.fingerprint, rule]), sort_keys=True)
        return sha256_bytes(digest_of_centroids(self.centroids).encode(), stated.encode())

    def assign(self, vectors: np.ndarray) -> Assignment:
        """Assign memes to the nearest centroid; of equally near ones to the first.

        Each row is computed by itself, so that its result is the same bits whatever rows lie beside it.

        Args:
            vectors: Joint vectors [N, D].

        Raises:
            ValueError: the vectors have another width, values that are not finite, or the clusters are shuffled.
        """
        if self.manifest.shuffled is not None:
            raise ValueError("ids of shuffled clusters are drawn by the content of a meme; call `drawn`")
        if vectors.ndim != 2 or vectors.shape[1] != self.centroids.shape[1]:
            raise ValueError(f"vectors {list(vectors.shape)} and centroids {list(self.centroids.shape)} do not fit")
        if not np.isfinite(vectors).all():
            raise ValueError("vectors have values that are not finite")
        distances = np.concatenate([*self._distances(vectors), np.empty((0, self.count))])
        cluster = distances.argmin(axis=1)
        ordered = np.sort(distances, axis=1)
        margin = ordered[:, 1] - ordered[:, 0] if self.count > 1 else np.full(len(vectors), np.inf)
        beyond = self.manifest.unknown_beyond
        if beyond is not None:
            cluster = np.where(ordered[:, 0] > beyond, UNKNOWN_CLUSTER, cluster)
        return Assignment(cluster.astype(np.int64), ordered[:, 0], margin)

    def _distances(self, vectors: np.ndarray) -> Iterator[np.ndarray]:
        """Euclidean distances [n, K] of consecutive rows. No matrix product: its rounding depends on its size."""
        centroids = self.centroids.astype(np.float64)
        for start in range(0, len(vectors), _ROWS):
            rows = vectors[start : start + _ROWS].astype(np.float64)
            yield np.sqrt(np.stack([np.square(rows - one).sum(axis=1) for one in centroids], axis=1))

    def drawn(self, contents: Sequence[str]) -> np.ndarray:
        """Ids int64 [N] of shuffled clusters, drawn by the contents of memes (`content_hash`).

        A cluster is as likely as it is large in training, whatever the meme shows.
        """
        counts = np.array([*self.manifest.sizes, self.manifest.unknown], dtype=np.int64)
        marks = [hashlib.sha256(f"{self.manifest.shuffled} {content}".encode()).digest()[:8] for content in contents]
        places = np.array([int.from_bytes(mark, "big") % int(counts.sum()) for mark in marks], dtype=np.int64)
        drawn = np.searchsorted(np.cumsum(counts), places, side="right")
        return np.where(drawn == self.count, UNKNOWN_CLUSTER, drawn).astype(np.int64)

    def shuffled(self, seed: int) -> "Clusters":
        """Return a control: the same clusters, but the id of each meme is drawn by a hash of `seed` and its content.

        Copies of these clusters stay shuffled.
        """
        return Clusters(self.folder, self.centroids, self.manifest.model_copy(update={"shuffled": seed}))

    def copy_to(self, folder: str | Path) -> "Clusters":
        """Write centroids and manifest into a folder, each atomically, and return the copy."""
        folder = Path(folder)
        with atomic_path(folder / CENTROIDS) as temporary:
            save_file({"centroids": np.ascontiguousarray(self.centroids, dtype=np.float32)}, temporary)
        write_manifest(folder / CLUSTERS_MANIFEST, self.manifest)
        return Clusters(folder, self.centroids, self.manifest)

    def load(self, device: torch.device, encoder: str | Path | None = None) -> "ClusterAssigner":
        """Open the encoder of these clusters, to assign memes.

        Args:
            device: Device that the encoder's weights are loaded onto.
            encoder: Present place of the encoder, if it is no longer where the manifest says.

        Raises:
            UserError: the encoder is gone, or another one lies at its place.
        """
        return ClusterAssigner(self, device, encoder)


class ClusterAssigner:
    """Finds the cluster of memes; may be called from several threads.

    Args:
        clusters: The clusters.
        device: Device of the encoder.
        encoder: Present place of the encoder, if it is no longer where the manifest says.

    Raises:
        UserError: the encoder is gone, or another one lies at its place.
    """

    def __init__(self, clusters: Clusters, device: torch.device, encoder: str | Path | None = None) -> None:
        self.clusters = clusters
        self._known: dict[tuple[str, bytes], int] = {}
        self._memory, self._lock = threading.Lock(), threading.Lock()
        # Shuffled ids are drawn by the content alone.
        self._encoder = (
            None if clusters.manifest.shuffled is not None else _open_encoder(clusters, encoder).load(device)
        )

    def __call__(self, text: str, image: Image) -> int:
        """Return the cluster of a meme, remembered or found now; `UNKNOWN_CLUSTER` for none.

        The caption is cleaned as for a prompt: training files hold no other.
        """
        image, text = to_rgb(image), clean_caption(text)
        key = _key(image, text)
        known = self._known.get(key)
        if known is None:
            known = self._remembered(key, self._alone(text, image, key[0]))
        return known

    def prepare(self, memes: Sequence[Meme], batch_size: int = 32, *, show: bool = False) -> list[int]:
        """Find the clusters of many memes, and remember them.

        Args:
            memes: Memes with captions.
            batch_size: Memes per call of the encoder.
            show: Whether to show a progress bar.

        Returns:
            The cluster of each meme.

        Raises:
            UserError: an image cannot be decoded, or the encoder does not take it.
        """
        found: list[int] = []
        parts = [memes[start : start + batch_size] for start in range(0, len(memes), batch_size)]
        with ThreadPoolExecutor(_DECODERS) as pool:
            for part in track(((len(part), part) for part in parts), "Clusters", len(memes), "memes", show=show):
                images = list(pool.map(_decoded, part))
                texts = [clean_caption(meme.caption) for meme in part]
                found += self._together(texts, images, [meme.id for meme in part])
        return found

    def _together(self, texts: list[str], images: list[Image], ids: list[str]) -> list[int]:
        """Clusters of a batch of memes."""
        keys = [_key(image, text) for image, text in zip(images, texts, strict=True)]
        found = {key: known for key in keys if (known := self._known.get(key)) is not None}
        new = [row for row, key in enumerate(keys) if key not in found and keys.index(key) == row]
        if self._encoder is None:
            found |= {keys[row]: self._alone(texts[row], images[row], keys[row][0]) for row in new}
        elif new:
            vectors = self._vectors(
                [texts[row] for row in new], [images[row] for row in new], [ids[row] for row in new]
            )
            assigned = self.clusters.assign(vectors)
            for row, cluster, close in zip(new, assigned.cluster, self._close(assigned), strict=True):
                # A batch rounds otherwise than a meme by itself, which decides.
                key = keys[row]
                found[key] = self._alone(texts[row], images[row], key[0]) if close else int(cluster)
        return [self._remembered(key, found[key]) for key in keys]

    def _remembered(self, key: tuple[str, bytes], cluster: int) -> int:
        """The cluster, which is remembered from now on; the oldest ones are forgotten."""
        with self._memory:
            self._known[key] = cluster
            while len(self._known) > _MOST_REMEMBERED:
                del self._known[next(iter(self._known))]
        return cluster

    def _close(self, assigned: Assignment) -> np.ndarray:
        """Which of N assignments [N] the rounding of a batch may have decided."""
        assert self._encoder is not None
        assert self._encoder.model is not None
        nearness = assigned.margin
        beyond = self.clusters.manifest.unknown_beyond
        if beyond is not None:
            nearness = np.minimum(nearness, np.abs(assigned.distance - beyond))
        return nearness < _CLOSE.get(self._encoder.model.dtype, max(_CLOSE.values()))

    def _alone(self, text: str, image: Image, content: str) -> int:
        if self._encoder is None:
            return int(self.clusters.drawn([content])[0])
        return int(self.clusters.assign(self._vectors([text], [image])).cluster[0])

    def _vectors(self, texts: list[str], images: list[Image], ids: Sequence[str] = ()) -> np.ndarray:
        """Joint vectors [B, D] of decoded memes."""
        assert self._encoder is not None
        rows = []
        for row, (text, image) in enumerate(zip(texts, images, strict=True)):
            try:
                rows.append(self._encoder.encode(text, image))
            except ValueError as error:
                raise UserError(f"{f'meme {ids[row]!r}' if ids else 'the meme'}: {error}") from error
        with self._lock:
            columns = self._encoder.columns(self._encoder.collate(rows))
        return unit_vectors(columns)


def _key(image: Image, text: str) -> tuple[str, bytes]:
    """Hash of a meme, and of its caption as it stands: captions that count as equal may have other tokens."""
    return content_hash(image, text), hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def digest_of_centroids(centroids: np.ndarray) -> str:
    """SHA-256 of centroids [K, D], as float32."""
    shape = json.dumps(list(centroids.shape)).encode()
    return sha256_bytes(shape, np.ascontiguousarray(centroids, dtype="<f4").tobytes())


def _read_centroids(path: Path, manifest: ClustersManifest) -> np.ndarray:
    """The centroids at `path`. Raises `UserError` unless they are those of the manifest."""
    if not path.is_file():
        raise UserError(f"{path} does not exist, {CLUSTERS_MANIFEST} beside it says that it should; copy both files.")
    try:
        centroids = load_file(path).get("centroids")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}; copy it again, or run `ra-hmd cluster` again.") from error
    if centroids is None or digest_of_centroids(centroids) != manifest.centroids_sha256:
        raise UserError(
            f"{path} and {CLUSTERS_MANIFEST} beside it are not of the same clusters; copy both files of one folder."
        )
    expected = (manifest.count, sum(manifest.modalities))
    if centroids.shape != expected:
        raise UserError(f"{path} has centroids {list(centroids.shape)}, its manifest says {list(expected)}.")
    return centroids


def _open_encoder(clusters: Clusters, place: str | Path | None) -> AnyEncoder:
    settings = clusters.encoder
    if place is not None:
        settings = settings.replace(path=str(place), revision=None)
    try:
        encoder = open_encoder(settings)
    except UserError as error:
        raise UserError(
            f"The clusters in {clusters.folder} are of encoder {settings.path}, which cannot be opened; write its "
            f"present place into {CLUSTERS_MANIFEST} there, as `path` of `encoder`: {error}"
        ) from error
    stated, found = clusters.manifest.fingerprint, plain(encoder.fingerprint())
    differing = [f"{key}: {found.get(key)!r} at {settings.path}, {stated[key]!r} in the clusters"
                 for key in sorted(stated) if stated[key] != found.get(key)]  # fmt: skip
    raise_all(differing, f"The clusters in {clusters.folder} were made with another encoder; make it available again")
    return encoder


def _decoded(meme: Meme) -> Image:
    try:
        return meme.load_image()
    except UserError as error:
        raise UserError(f"meme {meme.id!r}: {error}") from error
