"""`cluster_store`: files, refusals, and what has no part in the result."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ra_hmd.clusters import run
from ra_hmd.clusters.assignments import ASSIGNMENTS
from ra_hmd.clusters.run import cluster_store
from ra_hmd.clusters.settings import ClusterSettings
from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import UNLABELLED
from ra_hmd.features.store import Features, write_features
from ra_hmd.models.cluster_assignment import (
    CENTROIDS,
    CLUSTERS_MANIFEST,
    UNKNOWN_CLUSTER,
    Clusters,
    digest_of_centroids,
)
from ra_hmd.models.encoders import joint_vectors

FINGERPRINT = {"model": "m" * 64, "adapter": None, "encoder.features": "pooled", "dtype": "auto"}
THREE = ClusterSettings(clusters=3, stability_seeds=2)


def rows(count: int = 60, seed: int = 0, prefix: str = "m", **changes: Any) -> Features:
    """Three groups of memes with 6 image and 4 text features."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(3, 10))
    group = np.arange(count) % 3
    columns = {
        "ids": [f"{prefix}{row:03}" for row in range(count)],
        "labels": (np.arange(count) // 3 % 2).astype(np.int64),
        "hidden": (centres[group] + 0.1 * rng.normal(size=(count, 10))).astype(np.float32),
        "texts": [f"words {row}" for row in range(count)],
        "contents": [f"{row:032x}" for row in range(count)],
        "modalities": (6, 4),
    }
    return Features(**columns | changes)


def store(place: Path, features: Features | None = None, split: str | None = "train", **content: Any) -> Path:
    stated = {"encoder": {"path": "clip", "features": "pooled", "long_text": "truncate"}, "split": split} | content
    write_features(place, features or rows(), FINGERPRINT | {"data": place.name}, **stated)
    return place


def table(folder: Path) -> dict[str, list[Any]]:
    return pq.read_table(folder / ASSIGNMENTS).to_pydict()


def test_files_say_what_was_found(tmp_path: Path) -> None:
    manifest = cluster_store(store(tmp_path / "train"), tmp_path / "out", THREE)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ASSIGNMENTS, CENTROIDS, CLUSTERS_MANIFEST, "map.png", "report.html"
    ]  # fmt: skip
    clusters, found = Clusters.open(tmp_path / "out"), table(tmp_path / "out")
    assert clusters.manifest == manifest
    assert (manifest.count, manifest.modalities, manifest.split, manifest.rows) == (3, (6, 4), "train", 60)
    assert manifest.sizes == [20, 20, 20]
    assert manifest.fingerprint == FINGERPRINT, "of the encoder, without the data"
    assert list(found) == ["id", "content", "cluster", "distance", "margin"]
    assert (found["id"], found["content"]) == (rows().ids, rows().contents)
    group = np.arange(60) % 3
    assert all(len(set(np.array(found["cluster"])[group == one])) == 1 for one in range(3))
    assert manifest.labels == {"0": [10, 10, 10], "1": [10, 10, 10]}
    assert manifest.notes == []


def test_the_same_inputs_give_the_same_bytes_in_the_same_folder_and_in_another(tmp_path: Path) -> None:
    place = store(tmp_path / "train")
    for name in ("one", "two", "one"):
        cluster_store(place, tmp_path / name, THREE)
    names = [CENTROIDS, CLUSTERS_MANIFEST, ASSIGNMENTS, "report.html"]
    assert [(tmp_path / "one" / name).read_bytes() for name in names] == [
        (tmp_path / "two" / name).read_bytes() for name in names
    ]


def test_labels_order_and_captions_have_no_part_in_the_result(tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(60)
    digests = set()
    for name, features in {
        "as-is": rows(),
        "other-labels": rows(labels=np.random.default_rng(2).integers(0, 2, 60)),
        "unlabelled": rows(labels=np.full(60, UNLABELLED)),
        "label-sets": rows(labels=np.random.default_rng(3).integers(0, 2, (60, 4))),
        "mixed": rows().select(order),
        "without-captions": rows(texts=None, contents=None),
    }.items():
        cluster_store(store(tmp_path / name, features), tmp_path / "out" / name, THREE)
        digests.add(Clusters.open(tmp_path / "out" / name).digest)
    assert len(digests) == 1
    mixed, straight = table(tmp_path / "out" / "mixed"), table(tmp_path / "out" / "as-is")
    assert mixed["id"] == [straight["id"][row] for row in order]
    assert mixed["cluster"] == [straight["cluster"][row] for row in order]


def test_labels_are_counted_for_information(tmp_path: Path) -> None:
    labels = np.where(np.arange(60) % 3 == 0, 1, UNLABELLED)
    labels[0] = 0
    found = cluster_store(store(tmp_path / "some", rows(labels=labels)), tmp_path / "a", THREE).labels
    assert {name: sorted(counts) for name, counts in found.items()} == {
        "0": [0, 0, 1], "1": [0, 0, 19], "unlabelled": [0, 20, 20]
    }  # fmt: skip
    sets = np.zeros((60, 2), dtype=np.int64)
    sets[::3, 1] = 1
    found = cluster_store(store(tmp_path / "sets", rows(labels=sets)), tmp_path / "b", THREE).labels
    assert {name: sorted(counts) for name, counts in found.items()} == {"0": [0, 0, 0], "1": [0, 0, 20]}


def test_assignments_of_test_memes_do_not_change_when_other_test_memes_are_added(tmp_path: Path) -> None:
    cluster_store(store(tmp_path / "train"), tmp_path / "out", THREE)
    clusters = Clusters.open(tmp_path / "out")
    test = rows(301, seed=5, prefix="t").hidden
    vectors = joint_vectors(test[:, :6], test[:, 6:])
    alone = clusters.assign(vectors[:7])
    among = clusters.assign(vectors)
    for name in ("cluster", "distance", "margin"):
        assert np.array_equal(getattr(alone, name), getattr(among, name)[:7])
    assert len(set(among.cluster)) == 3


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["test", "test_seen", "train_test", "dev", "val", "pool"])
@pytest.mark.parametrize("labels", [np.zeros(60, np.int64), np.full(60, UNLABELLED)], ids=["labelled", "unlabelled"])
def test_fitting_on_another_split_than_training_is_refused(tmp_path: Path, split: str, labels: np.ndarray) -> None:
    place = store(tmp_path / "store", rows(labels=labels), split)
    with pytest.raises(UserError, match=rf"(?s)training split alone.*store \(split '{split}'\)"):
        cluster_store(place, tmp_path / "out", THREE)
    assert not (tmp_path / "out").exists()


def test_a_store_that_states_no_split_is_known_by_its_folder(tmp_path: Path) -> None:
    cluster_store(store(tmp_path / "train", split=None), tmp_path / "out", THREE)
    with pytest.raises(UserError, match="split 'test'"):
        cluster_store(store(tmp_path / "test", split=None), tmp_path / "out2", THREE)


def test_memes_of_a_file_named_as_test_data_are_refused_whatever_split_they_were_read_as(
    tmp_path: Path,
) -> None:
    place = store(tmp_path / "store", source={"dataset": "d", "split": "train", "place": "data/test.jsonl"})
    with pytest.raises(UserError, match=r"data/test\.jsonl"):
        cluster_store(place, tmp_path / "out", THREE)
    place = store(tmp_path / "other", source={"dataset": "d", "split": "train", "place": "/home/test/d"})
    cluster_store(place, tmp_path / "out", THREE)


def test_the_named_split_must_be_that_of_the_store(tmp_path: Path) -> None:
    place = store(tmp_path / "store", split="a_train")
    with pytest.raises(UserError, match=r"--split train: .* is of split 'a_train'"):
        cluster_store(place, tmp_path / "out", THREE, split="train")
    assert cluster_store(place, tmp_path / "out", THREE, split="a_train").split == "a_train"


# --- what cannot be clustered -----------------------------------------------------------------------------------------


def with_value(value: float) -> np.ndarray:
    hidden = rows().hidden.copy()
    hidden[7, 2] = value
    return hidden


@pytest.mark.parametrize(
    ("features", "content", "said"),
    [
        (rows(modalities=None), {"encoder": None}, "not image and text features, and not of an encoder"),
        (rows(), {"encoder": None}, "does not state its encoder"),
        (rows(hidden=with_value(np.nan)), {}, r"not finite.*'m007'"),
        (rows(hidden=with_value(np.inf)), {}, r"not finite.*'m007'"),
        (rows(2), {}, "--clusters 3: the 2 memes have 2"),
        (rows(hidden=np.ones((60, 10), np.float32)), {}, "the 60 memes have 1 different"),
    ],
)
def test_what_cannot_be_clustered_is_refused(
    tmp_path: Path, features: Features, content: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        cluster_store(store(tmp_path / "train", features, **content), tmp_path / "out", THREE)
    assert not (tmp_path / "out" / CLUSTERS_MANIFEST).exists()


def test_one_meme_is_one_cluster(tmp_path: Path) -> None:
    manifest = cluster_store(store(tmp_path / "train", rows(1)), tmp_path / "out", THREE.replace(clusters=1))
    assert (manifest.sizes, manifest.stability.mean, manifest.fit.silhouette) == ([1], 1.0, None)
    assert table(tmp_path / "out")["margin"] == [None], "there is no second cluster"


def test_features_of_length_zero_are_no_error(tmp_path: Path) -> None:
    hidden = rows().hidden.copy()
    hidden[3, 6:] = 0
    cluster_store(store(tmp_path / "train", rows(hidden=hidden)), tmp_path / "out", THREE)
    assert np.isfinite(table(tmp_path / "out")["distance"]).all()


def test_small_and_empty_clusters_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = rows(120).hidden
    hidden[0] = -hidden[0]
    found = cluster_store(
        store(tmp_path / "train", rows(120, hidden=hidden)), tmp_path / "out", THREE.replace(clusters=4)
    )
    assert (found.sizes[3], found.notes) == (1, [found.notes[0]])
    assert found.notes[0].startswith("Clusters 3 have less than 2%")

    fitted = run.fit_centroids
    far = np.full((1, 10), 50, np.float32)

    def with_one_far_away(*arguments: Any, **options: Any) -> Any:
        result = fitted(*arguments, **options)
        return type(result)(np.concatenate([result.centroids[:2], far]), result.fit, result.stability)

    monkeypatch.setattr(run, "fit_centroids", with_one_far_away)
    empty = cluster_store(store(tmp_path / "train2"), tmp_path / "out2", THREE)
    assert empty.notes == ["Clusters 2 are empty: fewer clusters describe these memes."]
    assert "No member." in (tmp_path / "out2" / "report.html").read_text()


def test_beyond_a_quantile_of_the_distances_training_memes_belong_to_no_cluster(tmp_path: Path) -> None:
    found = cluster_store(store(tmp_path / "train"), tmp_path / "out", THREE.replace(unknown_quantile=0.9))
    cluster, distance = (np.array(table(tmp_path / "out")[name]) for name in ("cluster", "distance"))
    assert found.unknown == (cluster == UNKNOWN_CLUSTER).sum() == 6
    assert found.unknown_beyond == pytest.approx(np.quantile(distance, 0.9))
    assert distance[cluster == UNKNOWN_CLUSTER].min() > found.unknown_beyond >= distance[cluster >= 0].max()
    assert sum(found.sizes) == 54
    assert sum(map(sum, found.labels.values())) == 54
    whole = cluster_store(tmp_path / "train", tmp_path / "whole", THREE)
    assert whole.centroids_sha256 == found.centroids_sha256


# --- the output folder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "features", "said"),
    [
        ({"clusters": 4}, rows(), "--clusters: 3 there, 4 now"),
        ({"seed": 1}, rows(), "--seed: 0 there, 1 now"),
        ({"unknown_quantile": 0.5}, rows(), "--unknown-quantile: None there, 0.5 now"),
        ({"stability_seeds": 3}, rows(), "--stability-seeds: 2 there, 3 now"),
        ({}, rows(seed=1), "memes and features"),
        ({}, rows(prefix="n"), "memes and features"),
    ],
)
def test_clusters_of_something_else_are_not_replaced(
    tmp_path: Path, changes: dict[str, Any], features: Features, said: str
) -> None:
    cluster_store(store(tmp_path / "train"), tmp_path / "out", THREE)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match=rf"(?s)made from something else.*{said}"):
        cluster_store(store(tmp_path / "other", features), tmp_path / "out", THREE.replace(**changes))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_another_result_of_the_same_inputs_does_not_replace_clusters_that_runs_may_have(tmp_path: Path) -> None:
    place = store(tmp_path / "train")
    cluster_store(place, tmp_path / "out", THREE)
    clusters = Clusters.open(tmp_path / "out")
    moved = clusters.centroids + np.float32(1e-3)
    changes = {"centroids_sha256": digest_of_centroids(moved)}
    Clusters(clusters.folder, moved, clusters.manifest.model_copy(update=changes)).copy_to(tmp_path / "out")
    with pytest.raises(UserError, match="come out otherwise"):
        cluster_store(place, tmp_path / "out", THREE)
    assert np.array_equal(Clusters.open(tmp_path / "out").centroids, moved)


def test_an_interrupted_run_is_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = store(tmp_path / "train")
    cluster_store(place, tmp_path / "whole", THREE)
    with monkeypatch.context() as patch:
        patch.setattr("ra_hmd.clusters.run.write_cluster_report", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cluster_store(place, tmp_path / "out", THREE)
    with pytest.raises(UserError, match="holds no clusters"):
        Clusters.open(tmp_path / "out")
    cluster_store(place, tmp_path / "out", THREE)
    for name in (CENTROIDS, CLUSTERS_MANIFEST, ASSIGNMENTS, "report.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    place = store(tmp_path / "train")
    with pytest.raises(UserError, match="holds a feature store"):
        cluster_store(place, place, THREE)
