"""k-means on joint vectors: right clusters, and the same bits for the same rows."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from ra_hmd.clusters.fit import fit_centroids
from ra_hmd.clusters.settings import ClusterSettings
from ra_hmd.core.errors import UserError
from ra_hmd.models.encoders import joint_vectors


def groups(sizes: tuple[int, ...], noise: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around centres of their own, in mixed order, and the centre of each."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(sizes), 12))
    label = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = centres[label] + noise * rng.normal(size=(len(label), 12))
    return joint_vectors(rows[:, :8], rows[:, 8:]), label


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return np.square(vectors[:, None] - centroids).sum(axis=2).argmin(axis=1)


def test_groups_are_found_and_numbered_from_the_largest() -> None:
    vectors, label = groups((20, 60, 40))
    found = fit_centroids(vectors, ClusterSettings(clusters=3))
    cluster = nearest(vectors, found.centroids)
    assert adjusted_rand_score(label, cluster) == 1
    assert np.bincount(cluster).tolist() == [60, 40, 20]
    assert (found.centroids.dtype, found.centroids.shape) == (np.float32, (3, 12))
    means = np.stack([vectors[cluster == number].mean(axis=0) for number in range(3)])
    assert np.allclose(found.centroids, means, atol=1e-5)
    assert found.fit.silhouette is not None
    assert found.fit.silhouette > 0.5
    assert found.fit.inertia == pytest.approx(np.square(vectors - found.centroids[cluster]).sum(), rel=1e-4)


def test_the_same_rows_give_the_same_bits_whatever_number_of_threads_may_run() -> None:
    vectors, _ = groups((3000, 500, 500), noise=1.0)
    settings = ClusterSettings(clusters=5, seed=3, stability_seeds=2)
    first = fit_centroids(vectors, settings)
    for threads in (1, 2):
        with threadpool_limits(threads):
            again = fit_centroids(vectors.copy(), settings)
        assert again.centroids.tobytes() == first.centroids.tobytes()
        assert (again.fit, again.stability) == (first.fit, first.stability)
    assert fit_centroids(vectors, settings.replace(seed=4)).centroids.tobytes() != first.centroids.tobytes()


def test_clear_groups_agree_over_seeds_and_noise_does_not() -> None:
    clear = fit_centroids(groups((30, 30, 30))[0], ClusterSettings(clusters=3, stability_seeds=4)).stability
    assert clear is not None
    assert (clear.seeds, len(clear.agreement), clear.mean, clear.low, clear.high) == ([0, 1, 2, 3], 6, 1, 1, 1)
    rng = np.random.default_rng(0)
    noise = joint_vectors(rng.normal(size=(400, 20)), rng.normal(size=(400, 20)))
    unclear = fit_centroids(noise, ClusterSettings(clusters=6, seed=2, stability_seeds=3)).stability
    assert unclear is not None
    assert unclear.seeds == [2, 3, 4]
    assert unclear.low <= unclear.mean <= unclear.high < 0.7


def test_one_fit_has_no_stability_and_one_cluster_no_silhouette() -> None:
    found = fit_centroids(groups((30,))[0], ClusterSettings(clusters=1, stability_seeds=1))
    assert (found.stability, found.fit.silhouette) == (None, None)


def test_more_clusters_than_different_memes_are_refused() -> None:
    vectors, _ = groups((3, 3))
    with pytest.raises(UserError, match=r"--clusters 7: the 12 memes have 6 different"):
        fit_centroids(np.concatenate([vectors, vectors]), ClusterSettings(clusters=7))
    with pytest.raises(UserError, match=r"--clusters 8: the 1 memes have 1 different"):
        fit_centroids(vectors[:1], ClusterSettings())


def test_as_many_clusters_as_different_memes_and_one_row_are_right() -> None:
    vectors, _ = groups((2, 2))
    found = fit_centroids(np.concatenate([vectors, vectors]), ClusterSettings(clusters=4, stability_seeds=2))
    assert sorted(nearest(vectors, found.centroids)) == [0, 1, 2, 3]
    assert found.fit.inertia == pytest.approx(0, abs=1e-5)
    one = fit_centroids(vectors[:1], ClusterSettings(clusters=1))
    assert np.allclose(one.centroids, vectors[:1], atol=1e-6)
    assert one.fit.silhouette is None


@pytest.mark.parametrize(
    ("key", "value"), [("clusters", 0), ("seed", -1), ("unknown_quantile", 0), ("unknown_quantile", 1.0),
                       ("stability_seeds", 0)]
)  # fmt: skip
def test_settings_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(UserError, match=key):
        ClusterSettings(**{key: value})
