"""`ra-hmd cluster`: clusters of the memes of one training split, with a report.

Shapes: N memes, K clusters, D joint vector.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ra_hmd.clusters.assignments import ASSIGNMENTS, write_assignments
from ra_hmd.clusters.fit import FittedCentroids, fit_centroids
from ra_hmd.clusters.members import choose_members
from ra_hmd.clusters.report import write_cluster_report
from ra_hmd.clusters.settings import ClusterSettings
from ra_hmd.core.artifacts import alone_in, plain, sha256_bytes, versions
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import ClustersManifest, read_manifest
from ra_hmd.core.problem import UNLABELLED
from ra_hmd.data.meme import Meme
from ra_hmd.features.compatibility import check_output, check_store
from ra_hmd.features.extract_clip import describe_captions, encode
from ra_hmd.features.store import Features, read_features
from ra_hmd.features.test_lock import check_training, says_test, split_name
from ra_hmd.models.cluster_assignment import (
    CLUSTERS_MANIFEST,
    UNKNOWN_CLUSTER,
    Assignment,
    Clusters,
    digest_of_centroids,
)
from ra_hmd.models.encoders import AnyEncoder, joint_vectors

STORE = "features"
"""Feature store in the output folder, of clusters that are made straight from memes."""
SMALL_SHARE = 0.02
"""Clusters with a smaller share of the training memes are told."""
_PURPOSE = "Clusters are fitted"


def cluster_memes(
    memes: list[Meme],
    output: str | Path,
    encoder: AnyEncoder,
    settings: ClusterSettings,
    *,
    split: str,
    source: Mapping[str, str | None] | None = None,
    label_classes: int | None = None,
    batch_size: int = 32,
    num_workers: int = 2,
    show: bool = False,
) -> ClustersManifest:
    """Make a feature store of memes in `output`, as `ra-hmd encode` does, and cluster it (see `cluster_store`).

    An interrupted call that is repeated continues.

    Args:
        memes: Memes of one training split.
        output: Folder of the clusters.
        encoder: Frozen encoder.
        settings: Settings of the fit.
        split: Split of the memes.
        source: Origin of the memes (`describe_source`).
        label_classes: C, where a meme may have several labels.
        batch_size: Memes per call of the encoder.
        num_workers: Processes that decode images.
        show: Whether to show progress bars.
    """
    place = (source or {}).get("place")
    check_training({place or "the memes": split, **_test_file(place)}, _PURPOSE)
    if not memes:
        raise UserError(f"{place or 'The memes'}: split {split!r} has no memes to cluster.")
    check_output(output, "clusters")
    store = Path(output) / STORE
    encode(
        encoder,
        memes,
        store,
        split=split,
        source=source,
        label_classes=label_classes,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    return cluster_store(store, output, settings, lookup=lambda _: memes, show=show)


def cluster_store(
    store: str | Path,
    output: str | Path,
    settings: ClusterSettings,
    *,
    split: str | None = None,
    lookup: Callable[[Features], Sequence[Meme]] | None = None,
    show: bool = False,
) -> ClustersManifest:
    """Cluster the memes of a feature store and write centroids, assignments and report.

    The same rows, in any order, and the same settings give the same bytes. Labels are counted for the report and have
    no part in the fit.

    Args:
        store: Feature store of an encoder (`ra-hmd encode`), of a training split.
        output: Folder of the clusters.
        settings: Settings of the fit.
        split: Split that the store must be of; None: any training split.
        lookup: Function that finds the memes of the store, whose images the report shows.
        show: Whether to show a progress bar.

    Returns:
        The manifest.

    Raises:
        UserError: a store of another split or not of an encoder, values that are not finite, fewer
            different memes than clusters, or `output` holds clusters that were made from something else.
    """
    store, output = Path(store), Path(output)
    check_output(output, "clusters")
    features = read_features(store)
    _check(features, store, split)
    memes = lookup(features) if lookup is not None else ()
    with alone_in(output):
        stated = _inputs(features, _place(store, output), split_name(features, store), settings)
        _check_same(output, stated)
        vectors = _vectors(features)
        order = np.argsort(np.array(features.ids, dtype=object), kind="stable")  # the order of rows has no part
        clusters = _clusters(output, stated, fit_centroids(vectors[order], settings, show=show), settings)
        clusters, assigned = _measured(clusters, vectors, features)
        _check_same_result(output, clusters)
        write_assignments(output / ASSIGNMENTS, features, assigned)
        members = choose_members(assigned, clusters.count, settings.seed)
        write_cluster_report(clusters, features, vectors, assigned, members, memes, output)
        return clusters.copy_to(output).manifest


def _test_file(place: str | None) -> dict[str, str]:
    """A file that is named as a test split, whatever split it was read as."""
    path = Path(place or "")
    return {f"file {path}": path.stem} if path.suffix and says_test(path.stem) else {}


def _check(features: Features, store: Path, split: str | None) -> None:
    """Raise `UserError` unless a store can be clustered."""
    name = split_name(features, store)
    source = features.manifest.source
    check_training({str(store): name, **_test_file(source.place if source else None)}, _PURPOSE)
    if split is not None and split != name:
        raise UserError(
            f"--split {split}: {store} is of split {name!r}; leave --split out, or give a store of {split!r}."
        )
    if features.modalities is None and features.manifest.encoder is None:
        raise UserError(
            f"{store} has one vector per meme, not image and text features, and not of an encoder; clusters are made "
            "of stores of `ra-hmd encode`."
        )
    if features.manifest.encoder is None:
        raise UserError(
            f"{store} does not state its encoder, which finds the cluster of other memes; make it with `ra-hmd encode`."
        )
    check_store(features, store, labelled=False)


def _vectors(features: Features) -> np.ndarray:
    """Vectors of length 1 [N, D]: joint ones of image and text features, an LMM embedder's own."""
    if features.modalities is None:
        return features.hidden
    return joint_vectors(*np.split(features.hidden, [features.modalities[0]], axis=1))


def _place(store: Path, output: Path) -> str:
    """The store's folder, relative to the clusters' where it lies inside."""
    inside = store.resolve().is_relative_to(output.resolve())
    return os.path.relpath(store.resolve(), output.resolve()) if inside else str(store)


def _inputs(features: Features, place: str, split: str, settings: ClusterSettings) -> ClustersManifest:
    """The manifest of clusters before they are found: all that they are made from."""
    manifest = features.manifest
    return ClustersManifest.model_validate(
        {
            "kind": "clusters",
            "versions": versions(),
            "format": ClustersManifest.FORMAT,
            "fingerprint": {key: value for key, value in manifest.fingerprint.items() if key != "data"},
            "split": split,
            "source": None if manifest.source is None else manifest.source.to_json(),
            "encoder": None if manifest.encoder is None else manifest.encoder.to_json(),
            "count": settings.clusters,
            "modalities": features.modalities or (features.hidden.shape[1],),
            "centroids_sha256": "",
            "unknown_quantile": settings.unknown_quantile,
            "store": place,
            "rows": len(features),
            "content_sha256": _digest(features),
            "fit": {"seed": settings.seed},
            "stability": {"seeds": list(range(settings.seed, settings.seed + settings.stability_seeds))},
        }
    )


def _digest(features: Features) -> str:
    """SHA-256 of ids and features, in the order of the ids."""
    order = sorted(range(len(features)), key=features.ids.__getitem__)
    hidden = np.ascontiguousarray(features.hidden[order], dtype="<f4")
    return sha256_bytes(*(features.ids[row].encode("utf-8", "surrogatepass") for row in order), hidden.data)


def _known(manifest: ClustersManifest) -> dict[str, object]:
    """What decides the result of `ra-hmd cluster`."""
    fit, stability = manifest.fit, manifest.stability
    seed = None if fit is None else fit.seed
    return {
        "encoder": plain(manifest.fingerprint),
        "memes and features (content_sha256)": manifest.content_sha256,
        "split": manifest.split,
        "--clusters": manifest.count,
        "--seed": seed,
        "--unknown-quantile": manifest.unknown_quantile,
        "--stability-seeds": 1 if stability is None else len(stability.seeds),
    }


def _check_same(output: Path, stated: ClustersManifest) -> None:
    """Raise `UserError` where `output` holds clusters that were made from something else."""
    if not (output / CLUSTERS_MANIFEST).is_file():
        return
    old, new = _known(read_manifest(output / CLUSTERS_MANIFEST, ClustersManifest)), _known(stated)
    raise_all(
        [f"{key}: {_short(old[key])} there, {_short(new[key])} now" for key in new if old[key] != new[key]],
        f"{output} holds clusters that were made from something else; give another --output, or remove it",
    )


def _check_same_result(output: Path, clusters: Clusters) -> None:
    """Raise `UserError` where the same inputs gave other clusters before: runs may have been trained with them."""
    if (output / CLUSTERS_MANIFEST).is_file() and Clusters.open(output).digest != clusters.digest:
        raise UserError(
            f"{output} holds clusters of the same memes and settings, and they come out otherwise now: other versions "
            "of packages, or another kind of processor. What was made with them stays valid; for new ones give another "
            "--output."
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}…{text[-12:]}"


def _clusters(output: Path, stated: ClustersManifest, found: FittedCentroids, settings: ClusterSettings) -> Clusters:
    """The clusters of centroids; each meme belongs to one."""
    changes = {
        "centroids_sha256": digest_of_centroids(found.centroids),
        "fit": found.fit,
        "stability": found.stability,
        "unknown_quantile": settings.unknown_quantile,
    }
    return Clusters(output, found.centroids, stated.model_copy(update=changes))


def _measured(clusters: Clusters, vectors: np.ndarray, features: Features) -> tuple[Clusters, Assignment]:
    """The clusters with the bound of their members, sizes and counts of labels, and the assignment of all rows."""
    assigned = clusters.assign(vectors)
    changes: dict[str, object] = {}
    if clusters.manifest.unknown_quantile is not None:
        changes["unknown_beyond"] = float(np.quantile(assigned.distance, clusters.manifest.unknown_quantile))
        clusters = Clusters(clusters.folder, clusters.centroids, clusters.manifest.model_copy(update=changes))
        assigned = clusters.assign(vectors)
    sizes = np.bincount(assigned.cluster[assigned.cluster != UNKNOWN_CLUSTER], minlength=clusters.count).tolist()
    unknown = int((assigned.cluster == UNKNOWN_CLUSTER).sum())
    changes |= {
        "sizes": sizes,
        "unknown": unknown,
        "labels": _label_counts(features.labels, assigned.cluster, clusters.count),
        "notes": _notes(features, sizes, unknown),
    }
    return Clusters(clusters.folder, clusters.centroids, clusters.manifest.model_copy(update=changes)), assigned


def _label_counts(labels: np.ndarray, cluster: np.ndarray, count: int) -> dict[str, list[int]]:
    """Class to its rows in each cluster; a row with several classes counts in each of them."""
    columns: dict[str, np.ndarray] = {}
    if labels.ndim == 1:
        columns = {str(label): labels == label for label in np.unique(labels[labels != UNLABELLED])}
        unlabelled = labels == UNLABELLED
    else:
        columns = {str(number): labels[:, number] == 1 for number in range(labels.shape[1])}
        unlabelled = (labels == UNLABELLED).all(axis=1)
    if unlabelled.any():
        columns["unlabelled"] = unlabelled
    return {
        name: np.bincount(cluster[rows & (cluster != UNKNOWN_CLUSTER)], minlength=count).tolist()
        for name, rows in columns.items()
    }


def _notes(features: Features, sizes: list[int], unknown: int) -> list[str]:
    empty = [number for number, size in enumerate(sizes) if not size]
    small = [number for number, size in enumerate(sizes) if 0 < size < SMALL_SHARE * len(features)]
    notes = []
    if empty:
        notes.append(f"Clusters {_listed(empty)} are empty: fewer clusters describe these memes.")
    if small:
        notes.append(f"Clusters {_listed(small)} have less than {SMALL_SHARE:.0%} of the memes: too few to learn from.")
    if unknown:
        notes.append(f"{unknown} of {len(features)} memes are beyond the distance quantile and belong to no cluster.")
    captions, encoder = features.manifest.captions, features.manifest.encoder
    note = "" if captions is None or encoder is None else describe_captions(captions, encoder)
    return [*notes, note] if note else notes


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
