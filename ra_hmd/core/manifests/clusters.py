"""Manifest of semantic clusters of memes."""

from typing import ClassVar

from pydantic import Field

from ra_hmd.core.manifests.base import Manifest, Section
from ra_hmd.core.manifests.stores import FeatureOrigin


class ClusterFit(Section):
    """How the centroids were found.

    Attributes:
        seed: Seed of the fit.
        n_init: Starts, of which the one with the smallest inertia is kept.
        max_iter: Most iterations of a start.
        tol: Relative tolerance of convergence.
        inertia: Sum of the squared distances of the training rows to their centroids.
        iterations: Iterations of the start that was kept.
        silhouette: Mean silhouette coefficient of a sample of training rows; None where it is not defined.
        silhouette_rows: Rows of the sample.
    """

    seed: int = 0
    n_init: int = 0
    max_iter: int = 0
    tol: float = 0.0
    inertia: float = 0.0
    iterations: int = 0
    silhouette: float | None = None
    silhouette_rows: int = 0


class ClusterStability(Section):
    """Agreement of the clusters with those of other seeds, as adjusted Rand indices.

    Attributes:
        seeds: Seeds of the fits, that of the clusters first.
        agreement: Adjusted Rand index of each pair of fits.
        mean: Their mean.
        low: The smallest.
        high: The largest.
    """

    seeds: list[int] = Field(default_factory=list)
    agreement: list[float] = Field(default_factory=list)
    mean: float = 0.0
    low: float = 0.0
    high: float = 0.0


class ClustersManifest(FeatureOrigin, Manifest):
    """Manifest of clusters (`clusters.json`); they were fitted on the rows of one feature store.

    `fingerprint` is that of the encoder: what a vector depends on, apart from the memes. There is no time of writing:
    the same inputs give the same bytes.

    Attributes:
        count: K, the number of clusters.
        modalities: Number of image features and of text features; of an LMM embedder, of its one vector's values.
        centroids_sha256: Digest of the centroids' values.
        unknown_beyond: Distance beyond which a meme belongs to no cluster; None: each meme belongs to one.
        unknown_quantile: Quantile of the training rows' distances that `unknown_beyond` was taken at.
        shuffled: Seed by which ids are drawn instead of found, for a control; None: the nearest centroid decides.
        store: Folder of the feature store.
        rows: N, the number of training rows.
        content_sha256: Digest of the ids and features of the training rows.
        sizes: Training rows of each cluster.
        unknown: Training rows that belong to no cluster.
        labels: Class to its training rows in each cluster, for information; the fit does not see labels.
        fit: How the centroids were found.
        stability: Agreement with the clusters of other seeds; None where it was not measured.
        notes: Remarks.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("clusters",)
    REMEDY: ClassVar[str] = "give a folder of `ra-hmd cluster`"

    count: int = Field(ge=1)
    modalities: tuple[int, ...] = Field(min_length=1, max_length=2)
    centroids_sha256: str
    unknown_beyond: float | None = None
    unknown_quantile: float | None = None
    shuffled: int | None = None
    store: str | None = None
    rows: int = 0
    content_sha256: str | None = None
    sizes: list[int] = Field(default_factory=list)
    unknown: int = 0
    labels: dict[str, list[int]] = Field(default_factory=dict)
    fit: ClusterFit | None = None
    stability: ClusterStability | None = None
    notes: list[str] = Field(default_factory=list)


class ClusterAdaptersManifest(Manifest):
    """Manifest of a run with experts that was exported as one LoRA adapter per cluster (`adapters.json`).

    Attributes:
        command: The command line.
        run: Folder of the run.
        base_model: Folder or hub name of the LMM that the adapters belong to.
        clusters: Digest of the clusters.
        guidance: Digest of the guidance that the prompts have; None without.
        rank: Rank of every adapter.
        adapters: Cluster, -1 for memes of no cluster, to the name of its adapter's folder.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("cluster_adapters",)
    REMEDY: ClassVar[str] = "give a file of `ra-hmd export-clusters`"

    command: str = ""
    run: str = ""
    base_model: str = ""
    clusters: str | None = None
    guidance: str | None = None
    rank: int = Field(ge=1)
    adapters: dict[str, str]
