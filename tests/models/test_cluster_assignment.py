"""The cluster of a meme: the nearest centroid, everywhere the same, whatever other memes there are."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from once import SharedFolders
from PIL import Image
from small_clusters import clusters_of, drawn_clusters

from ra_hmd.core.artifacts import read_json, write_json
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.data.prompt import clean_caption
from ra_hmd.models.clip_encoder import Encoder, EncoderSettings
from ra_hmd.models.cluster_assignment import (
    CENTROIDS,
    CLUSTERS_MANIFEST,
    UNKNOWN_CLUSTER,
    ClusterAssigner,
    Clusters,
)
from ra_hmd.models.encoders import joint_vectors
from ra_hmd.models.tiny_clip import make_tiny_encoder

CPU = torch.device("cpu")


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return joint_vectors(rng.normal(size=(rows, 5)), 100 * rng.normal(size=(rows, 3)))


def small(count: int = 4, **changes: Any) -> Clusters:
    return clusters_of(vectors(count, seed=9), (5, 3), **changes)


@pytest.fixture(scope="module")
def made(once: SharedFolders) -> Path:
    """A tiny encoder in `clip`, and clusters of it in `clusters`."""

    def make(folder: Path) -> None:
        make_tiny_encoder("clip", folder / "clip")
        drawn_clusters(folder / "clip", folder / "clusters")

    return once("drawn-clusters", make)


def memes(count: int, seed: int = 1) -> list[Meme]:
    rng = np.random.default_rng(seed)
    return [
        Meme(f"m{row}", Image.fromarray(rng.integers(0, 255, (24, 30 + row, 3), dtype=np.uint8)), "word " * (row % 5))
        for row in range(count)
    ]


def ids(assigner: ClusterAssigner, some: list[Meme]) -> list[int]:
    return [assigner(meme.caption, meme.load_image()) for meme in some]


# --- vectors and centroids --------------------------------------------------------------------------------------------


def test_each_modality_has_half_of_the_weight() -> None:
    found = joint_vectors(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[0.0, 200.0], [5.0, 0.0]]))
    half = np.sqrt(0.5)
    assert found.dtype == np.float32
    assert np.allclose(found, [[0.6 * half, 0.8 * half, 0, half], [0, 0, half, 0]])


def test_the_nearest_centroid_is_that_of_plain_loops() -> None:
    clusters, rows = small(), vectors(50)
    found = clusters.assign(rows)
    for row, cluster, distance, margin in zip(rows, found.cluster, found.distance, found.margin, strict=True):
        far = [
            sum((float(a) - float(b)) ** 2 for a, b in zip(row, one, strict=True)) ** 0.5 for one in clusters.centroids
        ]
        assert cluster == far.index(min(far))
        assert distance == pytest.approx(min(far))
        assert margin == pytest.approx(sorted(far)[1] - min(far))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 700), st.integers(0, 2**31))
def test_the_cluster_of_a_meme_is_the_same_bits_whatever_other_memes_there_are(rows: int, seed: int) -> None:
    clusters, some = small(), vectors(rows, seed)
    order = np.random.default_rng(seed).permutation(rows)
    whole, mixed = clusters.assign(some), clusters.assign(some[order])
    row = seed % rows
    alone = clusters.assign(some[row : row + 1])
    for name in ("cluster", "distance", "margin"):
        assert np.array_equal(getattr(mixed, name), getattr(whole, name)[order])
        assert getattr(alone, name)[0] == getattr(whole, name)[row]


def test_of_equally_near_centroids_the_first_counts_and_no_rows_are_no_error() -> None:
    twice = clusters_of(np.repeat(vectors(1), 3, axis=0), (5, 3))
    assert twice.assign(vectors(4)).cluster.tolist() == [0] * 4
    assert twice.assign(vectors(4)).margin.tolist() == [0.0] * 4
    assert small().assign(vectors(0)).cluster.shape == (0,)


def test_one_cluster_takes_everything() -> None:
    found = small(1).assign(vectors(3))
    assert found.cluster.tolist() == [0, 0, 0]
    assert np.isinf(found.margin).all()


def test_beyond_the_largest_distance_a_meme_belongs_to_no_cluster() -> None:
    far = small().assign(vectors(40)).distance
    limit = float(np.median(far))
    found = small(unknown_beyond=limit).assign(vectors(40))
    assert np.array_equal(found.cluster == UNKNOWN_CLUSTER, far > limit)
    assert 0 < (found.cluster == UNKNOWN_CLUSTER).sum() < 40


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_have_no_cluster(value: float) -> None:
    bad = vectors(3)
    bad[1, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        small().assign(bad)


def test_vectors_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 7\].*\[4, 8\]"):
        small().assign(vectors(2)[:, 1:])


# --- shuffled ids, a control ------------------------------------------------------------------------------------------


def test_shuffled_ids_depend_on_seed_and_content_alone_and_are_as_frequent_as_in_training() -> None:
    clusters = small(3, sizes=[60, 30, 0], unknown=10).shuffled(7)
    contents = [f"content {row}" for row in range(4000)]
    found = clusters.drawn(contents)
    assert np.array_equal(clusters.drawn(contents[::-1]), found[::-1])
    shares = [(found == cluster).mean() for cluster in (0, 1, 2, UNKNOWN_CLUSTER)]
    assert shares == pytest.approx([0.6, 0.3, 0.0, 0.1], abs=0.03)
    other = small(3, sizes=[60, 30, 0], unknown=10).shuffled(8).drawn(contents)
    assert (other == found).mean() == pytest.approx(0.6**2 + 0.3**2 + 0.1**2, abs=0.04), "independent of the other seed"


def test_a_copy_of_shuffled_clusters_stays_shuffled(made: Path, tmp_path: Path) -> None:
    clusters = Clusters.open(made / "clusters")
    shuffled = clusters.shuffled(3)
    copy = Clusters.open(shuffled.copy_to(tmp_path / "copy").folder)
    assert copy.manifest.shuffled == 3
    assert clusters.digest != shuffled.digest == copy.digest != clusters.shuffled(4).digest
    some = memes(12)
    assert ids(copy.load(CPU), some) == shuffled.load(CPU).prepare(some) != ids(clusters.load(CPU), some)
    with pytest.raises(ValueError, match="shuffled"):
        copy.assign(clusters.centroids)


def test_shuffled_ids_need_no_encoder(made: Path, tmp_path: Path) -> None:
    changed = Clusters.open(made / "clusters").shuffled(1).copy_to(tmp_path).manifest
    write_json(tmp_path / CLUSTERS_MANIFEST, changed.to_json() | {"encoder": {"path": "/gone"}})
    assert len(set(Clusters.open(tmp_path).load(CPU).prepare(memes(30)))) > 1


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_copy_is_equal_wherever_it_lies(made: Path, tmp_path: Path) -> None:
    clusters = Clusters.open(made / "clusters")
    copy = Clusters.open(clusters.copy_to(tmp_path / "run" / "clusters").folder)
    assert copy.digest == clusters.digest
    assert np.array_equal(copy.centroids, clusters.centroids)
    for name in (CENTROIDS, CLUSTERS_MANIFEST):
        assert (copy.folder / name).read_bytes() == (clusters.folder / name).read_bytes()


def test_the_digest_says_what_decides_an_id(made: Path) -> None:
    clusters = Clusters.open(made / "clusters")

    def digest(**changes: Any) -> str:
        return Clusters(clusters.folder, clusters.centroids, clusters.manifest.model_copy(update=changes)).digest

    assert digest(store="elsewhere", notes=["one"], labels={"0": [1]}) == clusters.digest
    assert digest(unknown_beyond=0.5) != clusters.digest
    assert digest(fingerprint={**clusters.manifest.fingerprint, "model": "other"}) != clusters.digest
    assert Clusters(clusters.folder, clusters.centroids[::-1], clusters.manifest).digest != clusters.digest


def test_a_folder_without_clusters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)holds no clusters.*ra-hmd cluster"):
        Clusters.open(tmp_path)


def _state(folder: Path, **changes: Any) -> None:
    write_json(folder / CLUSTERS_MANIFEST, read_json(folder / CLUSTERS_MANIFEST) | changes)


def _other_centroids(folder: Path) -> None:
    stated = (folder / CLUSTERS_MANIFEST).read_text()
    clusters = Clusters.open(folder)
    Clusters(folder, clusters.centroids[::-1], clusters.manifest).copy_to(folder)
    (folder / CLUSTERS_MANIFEST).write_text(stated)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / CENTROIDS).unlink(), "does not exist"),
        (lambda folder: (folder / CENTROIDS).write_bytes(b"\0" * 40), "cannot be read"),
        (_other_centroids, "not of the same clusters"),
        (lambda folder: _state(folder, kind="features"), "kind 'features'"),
        (lambda folder: _state(folder, count=9), r"\[4, .*\[9, "),
        (lambda folder: _state(folder, count="many"), "damaged"),
        (lambda folder: (folder / CLUSTERS_MANIFEST).write_text("{"), "JSON"),
    ],
)
def test_damaged_clusters_are_refused(made: Path, tmp_path: Path, harm: Any, said: str) -> None:
    shutil.copytree(made / "clusters", tmp_path / "clusters")
    harm(tmp_path / "clusters")
    with pytest.raises(UserError, match=said):
        Clusters.open(tmp_path / "clusters")


# --- memes ------------------------------------------------------------------------------------------------------------


def test_memes_get_the_cluster_of_their_features(made: Path) -> None:
    clusters, some = Clusters.open(made / "clusters"), memes(20)
    encoder = Encoder(EncoderSettings(path=str(made / "clip"))).load(CPU)
    columns = [encoder.columns(encoder.collate([encoder.encode(meme.caption, meme.load_image())])) for meme in some]
    parts = (np.concatenate([one[name].numpy() for one in columns]) for name in ("image_features", "text_features"))
    expected = clusters.assign(joint_vectors(*parts)).cluster.tolist()
    assert len(set(expected)) > 1
    assert ids(clusters.load(CPU), some) == expected


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_prepared_together_or_asked_one_by_one_a_meme_has_one_cluster(made: Path, batch_size: int) -> None:
    clusters, some = Clusters.open(made / "clusters"), memes(25)
    expected = ids(clusters.load(CPU), some)
    assigner = clusters.load(CPU)
    assert assigner.prepare([*some, *some[:3]], batch_size) == [*expected, *expected[:3]]
    assert ids(assigner, some[::-1]) == expected[::-1]


def test_where_rounding_could_decide_the_meme_alone_decides(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch's vectors are turned over: memes that are near a boundary must not follow them."""
    clusters, some = Clusters.open(made / "clusters"), memes(6)
    expected = ids(clusters.load(CPU), some)
    monkeypatch.setattr("ra_hmd.models.cluster_assignment._CLOSE", {torch.float32: 10.0})
    assigner = clusters.load(CPU)
    single = assigner._vectors
    monkeypatch.setattr(assigner, "_vectors", lambda texts, *rest: (-1 if len(texts) > 1 else 1) * single(texts, *rest))
    assert assigner.prepare(some) == expected


def test_a_prepared_meme_is_not_encoded_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assigner, some = Clusters.open(made / "clusters").load(CPU), memes(5)
    expected = assigner.prepare(some)
    monkeypatch.setattr(Encoder, "columns", lambda *_: pytest.fail("encoded again"))
    assert ids(assigner, some) == assigner.prepare(some) == expected


def test_a_caption_counts_as_it_stands_in_a_training_file(made: Path) -> None:
    # Ids that are drawn by the content are others for nearly every other caption.
    assigner = Clusters.open(made / "clusters").shuffled(1).load(CPU)
    raw = [replace(meme, text=f" <image> <|im_end|>{number} ") for number, meme in enumerate(memes(12))]
    cleaned = [replace(meme, text=clean_caption(meme.caption)) for meme in raw]
    assert ids(assigner, raw) == assigner.prepare(raw) == ids(assigner, cleaned)


def test_what_is_remembered_does_not_grow_for_ever(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ra_hmd.models.cluster_assignment._MOST_REMEMBERED", 3)
    clusters, some = Clusters.open(made / "clusters"), memes(9)
    expected, assigner = ids(clusters.load(CPU), some), clusters.load(CPU)
    assert assigner.prepare(some, batch_size=4) == ids(assigner, some) == expected
    assert len(assigner._known) == 3


def test_threads_get_the_same_clusters(made: Path) -> None:
    clusters, some = Clusters.open(made / "clusters"), memes(24)
    expected, assigner = ids(clusters.load(CPU), some), clusters.load(CPU)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda meme: assigner(meme.caption, meme.load_image()), some * 2)) == expected * 2


def test_an_image_that_is_no_image_is_named(made: Path, tmp_path: Path) -> None:
    assigner = Clusters.open(made / "clusters").load(CPU)
    with pytest.raises(UserError, match=r"'bad'.*gone\.png"):
        assigner.prepare([*memes(2), Meme("bad", tmp_path / "gone.png", "words")])
    with pytest.raises(UserError, match=r"'line'.*pixels"):
        assigner.prepare([*memes(2), Meme("line", Image.new("RGB", (1, 500)), "words")])


def test_another_or_no_encoder_is_refused_and_a_moved_one_can_be_named(made: Path, tmp_path: Path) -> None:
    clusters = drawn_clusters(made / "clip", tmp_path / "clusters", encoder={"path": str(tmp_path / "gone")})
    with pytest.raises(UserError, match=r"(?s)clusters in .*gone.*cannot be opened"):
        clusters.load(CPU)
    shutil.copytree(made / "clip", tmp_path / "moved")
    written = shutil.copytree(clusters.folder, tmp_path / "written")
    stated = read_json(written / CLUSTERS_MANIFEST)
    write_json(written / CLUSTERS_MANIFEST, stated | {"encoder": {"path": str(tmp_path / "moved")}})
    assert Clusters.open(written).digest == clusters.digest
    Clusters.open(written).load(CPU)
    some = memes(8)
    assert clusters.load(CPU, tmp_path / "moved").prepare(some) == Clusters.open(made / "clusters").load(CPU).prepare(
        some
    )
    make_tiny_encoder("clip", tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=r"(?s)another encoder.*- model: .*other"):
        clusters.load(CPU, tmp_path / "other")


def test_the_manifest_is_plain_json_with_kind_and_format(made: Path) -> None:
    stated = json.loads((made / "clusters" / CLUSTERS_MANIFEST).read_text())
    assert (stated["kind"], stated["count"], stated["split"]) == ("clusters", 4, "train")
