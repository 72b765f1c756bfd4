"""k-means on the joint vectors of memes, and how far its result can be trusted.

Shapes: N memes, K clusters, D joint vector.
"""

import hashlib
import warnings
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, silhouette_score
from threadpoolctl import threadpool_limits

from ra_hmd.clusters.settings import ClusterSettings
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import ClusterFit, ClusterStability
from ra_hmd.core.progress import track

STARTS, MOST_ITERATIONS, TOLERANCE = 8, 100, 1e-4
"""`n_init`, `max_iter` and `tol` of scikit-learn's `KMeans`."""
SILHOUETTE_ROWS = 2000


@dataclass(frozen=True)
class FittedCentroids:
    """Result of a fit.

    Attributes:
        centroids: float32 [K, D], that of the largest cluster first.
        fit: How they were found.
        stability: Agreement with the fits of other seeds; None where there was one fit.
    """

    centroids: np.ndarray
    fit: ClusterFit
    stability: ClusterStability | None


def fit_centroids(vectors: np.ndarray, settings: ClusterSettings, *, show: bool = False) -> FittedCentroids:
    """Fit K centroids to joint vectors.

    The result is the same bits for the same rows, on any number of cores: each fit has one thread, since the order in
    which several add up their parts is not fixed.

    Args:
        vectors: Joint vectors, float32 [N, D], all finite.
        settings: Settings of the fit.
        show: Whether to show a progress bar.

    Raises:
        UserError: there are fewer different rows than clusters.
    """
    _check_distinct(vectors, settings.clusters)
    seeds = list(range(settings.seed, settings.seed + settings.stability_seeds))
    fits: list[KMeans] = []
    with threadpool_limits(1):
        for seed in track(((1, seed) for seed in seeds), "Clustering", len(seeds), "fits", show=show):
            fits.append(_k_means(vectors, settings.clusters, seed))
        silhouette, rows = _silhouette(vectors, fits[0].labels_, settings.seed)
    first = fits[0]
    sizes = np.bincount(first.labels_, minlength=settings.clusters)
    order = np.argsort(-sizes, kind="stable")
    return FittedCentroids(
        first.cluster_centers_[order].astype(np.float32),
        ClusterFit(
            seed=settings.seed,
            n_init=STARTS,
            max_iter=MOST_ITERATIONS,
            tol=TOLERANCE,
            inertia=float(first.inertia_),
            iterations=int(first.n_iter_),
            silhouette=silhouette,
            silhouette_rows=rows,
        ),
        _stability(seeds, [one.labels_ for one in fits]),
    )


def _check_distinct(vectors: np.ndarray, clusters: int) -> None:
    different: set[bytes] = set()
    for row in vectors:
        different.add(hashlib.blake2b(row.tobytes(), digest_size=16).digest())
        if len(different) >= clusters:
            return
    raise UserError(
        f"--clusters {clusters}: the {len(vectors)} memes have {len(different)} different vectors, and each cluster "
        f"needs one; give --clusters {len(different)} or fewer, or more memes."
    )


def _k_means(vectors: np.ndarray, clusters: int, seed: int) -> KMeans:
    model = KMeans(
        clusters, init="k-means++", n_init=STARTS, max_iter=MOST_ITERATIONS, tol=TOLERANCE, random_state=seed
    )
    with warnings.catch_warnings():
        # Vectors that differ by rounding alone may leave a cluster empty, which the report says.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(vectors)


def _silhouette(vectors: np.ndarray, labels: np.ndarray, seed: int) -> tuple[float | None, int]:
    """Mean silhouette coefficient of a sample, None where it is not defined, and the size of the sample."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:SILHOUETTE_ROWS])
    if not 2 <= len(np.unique(labels[rows])) < len(rows):
        return None, len(rows)
    return float(silhouette_score(vectors[rows], labels[rows])), len(rows)


def _stability(seeds: list[int], labels: list[np.ndarray]) -> ClusterStability | None:
    agreement = [float(adjusted_rand_score(one, other)) for one, other in combinations(labels, 2)]
    if not agreement:
        return None
    return ClusterStability(
        seeds=seeds, agreement=agreement, mean=float(np.mean(agreement)), low=min(agreement), high=max(agreement)
    )
