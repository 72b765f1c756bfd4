"""The report page of clusters: report.html, its montages and the map.

Shapes: N memes, K clusters, D joint vector.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from ra_hmd.clusters.fit import SILHOUETTE_ROWS
from ra_hmd.clusters.members import DRAWN, NEAREST, Members, by_id, montage, write_montage
from ra_hmd.core.artifacts import write_text
from ra_hmd.core.manifests import ClustersManifest
from ra_hmd.core.plotting import save_figure
from ra_hmd.core.templates import template_environment
from ra_hmd.data.meme import Meme
from ra_hmd.data.readers import READERS
from ra_hmd.data.text import well_formed
from ra_hmd.evaluation.report.embedding_plots import projection_figure
from ra_hmd.features.store import Features
from ra_hmd.models.cluster_assignment import Assignment, Clusters

REPORT, MAP, MONTAGES = "report.html", "map.png", "montages"


def write_cluster_report(
    clusters: Clusters,
    features: Features,
    vectors: np.ndarray,
    assigned: Assignment,
    members: Sequence[Members],
    memes: Sequence[Meme],
    output: Path,
) -> Path:
    """Write report.html, map.png and a montage per cluster into `output`, and return the path of the page.

    Args:
        clusters: The clusters.
        features: Content of the store.
        vectors: Joint vectors [N, D].
        assigned: Assignment of the N rows.
        members: Shown members of each cluster.
        memes: Memes with their images, as far as they were found.
        output: Folder of the clusters.
    """
    known = by_id(memes)
    pictures = [
        write_montage(output / MONTAGES / f"cluster-{number}.png", montage(features, shown, known))
        for number, shown in enumerate(members)
    ]
    save_figure(projection_figure({"Joint vectors": vectors}, assigned.cluster, 0, word="cluster {}"), output / MAP)
    manifest = clusters.manifest
    page = (
        _templates()
        .get_template("report.html")
        .render(
            manifest=manifest,
            settings=_settings(manifest),
            clusters=[
                _cluster(number, features, assigned, shown, picture)
                for number, (shown, picture) in enumerate(zip(members, pictures, strict=True))
            ],
            classes=_class_table(manifest),
            class_names=_class_names(manifest),
            silhouette_rows=SILHOUETTE_ROWS,
            nearest=NEAREST,
            drawn=DRAWN,
            with_pictures=any(pictures),
            map=MAP,
            montages=MONTAGES,
        )
    )
    write_text(output / REPORT, page)
    return output / REPORT


@cache
def _templates() -> Environment:
    environment = template_environment("ra_hmd.clusters", keep_trailing_newline=True)
    environment.filters["percent"] = lambda value: f"{value:.1%}"
    environment.filters["decimal"] = lambda value: "–" if value is None else f"{value:.3f}"
    return environment


def _settings(manifest: ClustersManifest) -> dict[str, str]:
    encoder, fit = manifest.encoder, manifest.fit
    assert encoder is not None
    assert fit is not None
    source = manifest.source.dataset if manifest.source else None
    quantile = manifest.unknown_quantile
    parts = ("of the image", "of the caption") if len(manifest.modalities) > 1 else ("of image and caption together",)
    widths = " and ".join(f"{width} {part}" for width, part in zip(manifest.modalities, parts, strict=True))
    return {
        "memes": f"{manifest.rows} of split {manifest.split}" + (f", data set {source}" if source else ""),
        "feature store": manifest.store or "",
        "encoder": f"{encoder.path}{f' at {encoder.revision}' if encoder.revision else ''}, "
        f"{encoder.features or 'pooled'} features, {widths}",
        "clusters": f"{manifest.count}, numbered from the largest",
        "k-means": f"k-means++, {fit.n_init} starts, at most {fit.max_iter} iterations, tolerance {fit.tol:g}, seed "
        f"{fit.seed}; the best start took {fit.iterations} iterations to an inertia of {fit.inertia:.6g}",
        "no cluster": "no meme: each belongs to the nearest centroid"
        if quantile is None
        else f"beyond distance {manifest.unknown_beyond:.4f}, quantile {quantile:g} of these memes",
    }


def _cluster(number: int, features: Features, assigned: Assignment, shown: Members, picture: bool) -> dict[str, Any]:
    """Values of one cluster for the template."""
    rows = assigned.cluster == number
    size = int(rows.sum())
    margins = assigned.margin[rows]
    texts = features.texts or [""] * len(features)
    return {
        "number": number,
        "size": size,
        "share": size / len(features),
        "distance": float(assigned.distance[rows].mean()) if size else None,
        "margin": float(margins.mean()) if size and np.isfinite(margins).all() else None,
        "picture": picture,
        "members": [
            {"id": well_formed(features.ids[row]), "text": well_formed(texts[row]), "drawn": place >= shown.nearest}
            for place, row in enumerate(shown.rows)
        ],
    }


def _class_names(manifest: ClustersManifest) -> list[str]:
    """Names of the classes in `labels`, those of the data set's task where it is known."""
    source = manifest.source
    reader = READERS.get(source.dataset or "") if source else None
    tasks = {task.name: task for task in reader.tasks} if reader else {}
    task = tasks.get((source.task if source else None) or "")
    return [
        task.classes[int(name)]
        if task is not None and name.isdecimal() and int(name) < len(task.classes)
        else f"class {name}" if name.isdecimal() else name
        for name in manifest.labels
    ]  # fmt: skip


def _class_table(manifest: ClustersManifest) -> list[dict[str, Any]]:
    """Rows of the cluster × class table: memes and their share of the cluster, for each class."""
    sizes = manifest.sizes
    return [
        {
            "number": number,
            "cells": [(counts[number], counts[number] / sizes[number] if sizes[number] else None)
                      for counts in manifest.labels.values()],
        }
        for number in range(manifest.count)
    ]  # fmt: skip
