"""The feature store: atomic, resumable, never mixed, never doubled."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from json_files import read_json

from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import BINARY, UNLABELLED
from ra_hmd.features.store import (
    STORE_MANIFEST,
    Features,
    FeatureWriter,
    read_features,
    write_features,
)

FINGERPRINT = {"model": "m", "adapter": None, "inputs.cutoff_len": 64}


def make_features(rows=10, prefix="m"):
    rng = np.random.default_rng(rows)
    labels = np.arange(rows) % 3 - 1  # -1 is unlabelled
    return Features(
        [f"{prefix}{row}" for row in range(rows)],
        labels,
        rng.normal(size=(rows, 6)).astype(np.float32),
        embedding=rng.normal(size=(rows, 4)).astype(np.float32),
        lrc_logit=rng.normal(size=(rows, 1)).astype(np.float32),
        lmh_score=rng.uniform(size=(rows, 1)).astype(np.float32),
    )


def assert_same(found, expected):
    assert found.ids == expected.ids
    assert found.labels.tolist() == expected.labels.tolist()
    for name in ("hidden", "embedding", "lrc_logit", "lmh_score"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


def write_shards(folder, features, shards=None, shard_size=4, fingerprint=FINGERPRINT):
    writer = FeatureWriter(folder, fingerprint, len(features), shard_size)
    writer.begin()
    for shard in writer.missing() if shards is None else shards:
        writer.write(shard, features.select(np.arange(*writer.bounds(shard))))
    return writer


def test_round_trip_over_several_shards(tmp_path):
    features = make_features()
    write_shards(tmp_path / "s", features).finish()
    found = read_features(tmp_path / "s")
    assert_same(found, features)
    assert len(list((tmp_path / "s").glob("part-*.parquet"))) == 3
    assert found.manifest.fingerprint == FINGERPRINT
    assert found.manifest.kind == "features"


def test_round_trip_without_a_head(tmp_path):
    features = Features(["a", "b"], np.array([0, UNLABELLED]), np.ones((2, 3), np.float32))
    write_features(tmp_path / "s", features, FINGERPRINT, split="dev")
    found = read_features(tmp_path / "s")
    assert (found.embedding, found.lrc_logit, found.lmh_score) == (None, None, None)
    assert found.labels.tolist() == [0, UNLABELLED]
    assert found.manifest.split == "dev"


def test_an_unfinished_store_is_refused_then_continued(tmp_path):
    features = make_features()
    write_shards(tmp_path, features, shards=[0, 2])
    with pytest.raises(UserError, match="incomplete"):
        read_features(tmp_path)
    writer = FeatureWriter(tmp_path, FINGERPRINT, len(features), 4)
    assert writer.missing() == [1]
    with pytest.raises(UserError, match=r"shards \[1\] are missing"):
        writer.finish()
    before = (tmp_path / "part-00000.parquet").stat().st_mtime_ns
    write_shards(tmp_path, features).finish()
    assert (tmp_path / "part-00000.parquet").stat().st_mtime_ns == before, "a finished shard is not written again"
    assert_same(read_features(tmp_path), features)


def test_a_failed_write_leaves_no_shard(tmp_path, monkeypatch):
    features = make_features()
    writer = write_shards(tmp_path, features, shards=[0])

    def torn(table, path, **_):
        path.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", torn)
    with pytest.raises(OSError, match="disk full"):
        writer.write(1, features.select(np.arange(4, 8)))
    assert writer.missing() == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == [STORE_MANIFEST, "part-00000.parquet"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": FINGERPRINT | {"adapter": "other"}}, "adapter: the store has None, this run has 'other'"),
        ({"fingerprint": {"model": "m", "adapter": None}}, "inputs.cutoff_len"),
        ({"rows": 11}, "rows: the store has 10, this run has 11"),
        ({"shard_size": 5}, "shard_size"),
    ],
)
def test_another_origin_is_refused_not_mixed(tmp_path, change, message):
    write_shards(tmp_path, make_features(), shards=[0])
    settings = {"fingerprint": FINGERPRINT, "rows": 10, "shard_size": 4} | change
    with pytest.raises(UserError, match=message):
        FeatureWriter(tmp_path, **settings)


def test_a_folder_with_stray_parquet_is_refused(tmp_path):
    write_shards(tmp_path, make_features(), shards=[0])
    (tmp_path / STORE_MANIFEST).unlink()
    with pytest.raises(UserError, match="without a manifest"):
        FeatureWriter(tmp_path, FINGERPRINT, 10, 4)


def test_begin_does_not_undo_a_finished_store(tmp_path):
    write_shards(tmp_path, make_features()).finish()
    writer = FeatureWriter(tmp_path, FINGERPRINT, 10, 4)
    writer.begin()
    assert writer.missing() == []
    assert read_json(tmp_path / STORE_MANIFEST).complete


def test_doubled_ids_are_refused(tmp_path):
    features = make_features(4)
    features.ids[3] = "m0"
    write_features(tmp_path, features, FINGERPRINT)
    with pytest.raises(UserError, match="id 'm0' occurs 2 times"):
        read_features(tmp_path)


def test_a_replaced_shard_is_noticed(tmp_path):
    features = make_features()
    writer = write_shards(tmp_path, features)
    writer.finish()
    writer.shard_path(2).write_bytes(writer.shard_path(1).read_bytes())
    with pytest.raises(UserError, match="12 rows, its manifest says 10"):
        read_features(tmp_path)


def test_no_store_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_features(tmp_path / "nothing")


def test_wrong_lengths_are_errors(tmp_path):
    features = make_features()
    writer = FeatureWriter(tmp_path, FINGERPRINT, 10, 4)
    with pytest.raises(ValueError, match="needs 4 rows, got 10"):
        writer.write(0, features)
    with pytest.raises(ValueError, match="different lengths"):
        Features(["a"], np.zeros(2, int), np.zeros((1, 3)))


def test_select_keeps_rows_together():
    features = make_features()
    chosen = features.select(np.array([7, 2]))
    assert chosen.ids == ["m7", "m2"]
    assert np.array_equal(chosen.hidden, features.hidden[[7, 2]])
    assert np.array_equal(chosen.lmh_score, features.lmh_score[[7, 2]])


def test_labels_can_be_required():
    with pytest.raises(UserError, match="4 of 10 rows have no label"):
        BINARY.check(make_features().labels, "store")


def with_views(features, untuned=5):
    rng = np.random.default_rng(untuned)
    views = {name: rng.normal(size=(len(features), width)).astype(np.float32)
             for name, width in (("untuned", untuned), ("clip", 3))}  # fmt: skip
    return replace(features, views=views)


def test_views_are_columns_of_their_names(tmp_path):
    features = with_views(make_features())
    writer = FeatureWriter(tmp_path, FINGERPRINT, 10, 4, views={"untuned": {"fingerprint": {"adapter": None}}})
    writer.begin()
    for shard in range(3):
        writer.write(shard, features.select(np.arange(*writer.bounds(shard))))
    writer.finish()
    found = read_features(tmp_path)
    assert {*pq.read_schema(tmp_path / "part-00002.parquet").names} >= {"view_untuned", "view_clip"}
    for name in ("untuned", "clip"):
        assert np.array_equal(found.views[name], features.views[name]), name
    stated = found.manifest.views
    assert {name: view.width for name, view in stated.items()} == {"untuned": 5, "clip": 3}
    assert stated["untuned"].fingerprint == {"adapter": None}
    assert np.array_equal(found.select(np.array([7, 2])).views["clip"], features.views["clip"][[7, 2]])


def test_the_content_covers_views_and_is_the_old_one_without():
    plain, more = make_features(), with_views(make_features())
    assert plain.content == replace(more, views={}).content
    assert len({plain.content, more.content, with_views(make_features(), untuned=4).content}) == 3


def test_a_store_without_views_has_the_files_that_it_had(tmp_path):
    write_features(tmp_path, make_features(), FINGERPRINT)
    assert pq.read_schema(tmp_path / "part-00000.parquet").names == [
        "id", "label", "hidden", "embedding", "lrc_logit", "lmh_score"
    ]  # fmt: skip
    assert "views" not in read_json(tmp_path / STORE_MANIFEST)
    assert read_features(tmp_path).views == {}


@pytest.mark.parametrize("views", [{}, {"untuned": {"fingerprint": {"model": "n"}}}, {"clip": {}}])
def test_a_store_with_other_views_is_refused_not_mixed(tmp_path, views):
    def writer(views):
        return FeatureWriter(tmp_path, FINGERPRINT, 10, 4, **({"views": views} if views else {}))

    stated = {"untuned": {"fingerprint": {"model": "m"}}}
    writer(stated).begin()
    writer(stated).begin()
    with pytest.raises(UserError, match=r"views\.untuned: the store has \{'model': 'm'\}"):
        writer(views)


def test_views_of_another_length_are_an_error():
    with pytest.raises(ValueError, match="view_clip"):
        replace(make_features(), views={"clip": np.zeros((9, 3), np.float32)})


def test_pdq_hashes_are_kept_and_do_not_change_what_a_store_is(tmp_path):
    plain = Features(["a", "b"], np.array([0, 1]), np.ones((2, 3), np.float32))
    hashed = replace(plain, pdqs=["0f" * 32, ""])
    write_features(tmp_path / "store", hashed, {"lmm": "x"})
    assert read_features(tmp_path / "store").pdqs == hashed.pdqs
    assert hashed.select(np.array([1, 0])).pdqs == ["", "0f" * 32]
    assert hashed.content == plain.content
