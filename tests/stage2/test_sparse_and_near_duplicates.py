"""Mining by words, and without near-duplicate images."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from json_files import read_json

from ra_hmd.core.errors import UserError
from ra_hmd.features.store import Features
from stage2.mining import mine, near_duplicates
from stage2.sparse import SparseIndex, documents
from stage2.trainer import run_stage2

TEXTS = ["a red cat", "a blue dog", "the cat and the dog", "", "a red car", "the boat"]


def test_words_find_what_shares_them_best_first():
    index = SparseIndex(TEXTS)
    everyone, ids = np.ones(6, bool), np.arange(6)
    found = index.nearest(np.arange(6), everyone, 3, ids)
    assert found[0].tolist()[0] == 4, "two shared words"
    assert set(found[1].tolist()) == {0, 2, 4}
    assert found[3].tolist() == [-1, -1, -1], "a caption without words finds nothing"
    assert found[5].tolist() == [2, -1, -1]
    only = np.array([False, False, True, True, True, False])
    assert index.nearest(np.array([0]), only, 2, ids).tolist() == [[4, 2]]


def test_a_row_with_the_own_id_is_never_found():
    index = SparseIndex(["cat dog"] * 5 + ["cat"])
    ids = np.array([0, 0, 0, 1, 2, 3])
    assert set(index.nearest(np.array([0]), np.ones(6, bool), 3, ids)[0].tolist()) == {3, 4, 5}


def test_mined_rows_are_ranked_by_words_and_measured_in_the_embedding(features):
    train = features(60, 0, "m")
    words = np.random.default_rng(0).integers(0, 8, (60, 3))
    texts = [" ".join(f"word{number}" for number in line) for line in words]
    mined = mine(train.hidden, train.labels, train.ids, positives=2, hard_negatives=2, sparse=SparseIndex(texts))
    for near, same in ((mined.positives, True), (mined.hard_negatives, False)):
        for anchor in range(60):
            shared = [len(set(words[anchor]) & set(words[row])) for row in near.rows[anchor][near.present[anchor]]]
            assert all(count > 0 for count in shared)
            rows = near.rows[anchor][near.present[anchor]]
            assert ((train.labels[rows] == train.labels[anchor]) == same).all()
            expected = train.hidden[rows] @ train.hidden[anchor] / train.hidden.shape[1]
            assert near.similarity[anchor][near.present[anchor]] == pytest.approx(expected, abs=1e-5)


def test_object_words_join_the_caption_and_what_is_missing_is_said():
    store = Features(["a", "b"], np.array([0, 1]), np.ones((2, 2), np.float32), texts=["x", "y"],
                     extras=[{"objects": ["tree", "lake"]}, {"objects": None}])  # fmt: skip
    assert documents(store, "objects", "store") == ["x tree lake", "y "]
    assert documents(store, None, "store") == ["x", "y"]
    with pytest.raises(UserError, match="no meme of store has such a field; it has objects"):
        documents(store, "things", "store")
    with pytest.raises(UserError, match="has no captions"):
        documents(Features(["a"], np.array([0]), np.ones((1, 2), np.float32)), None, "store")
    with pytest.raises(UserError, match="no caption has a word"):
        SparseIndex(["", "!"])


def test_a_run_by_words(world, features):
    train = features(200, 0, "train")
    rng = np.random.default_rng(1)
    fields = {"texts": [f"t{rng.integers(20)} u{rng.integers(20)}" for _ in range(200)],
              "extras": [{"seen": [f"o{rng.integers(9)}"]} for _ in range(200)]}  # fmt: skip
    columns = {name: getattr(train, name) for name in ("ids", "labels", "hidden")}
    world.store("worded", Features(**columns, **fields))
    args = world.arguments(train=world.folder / "worded", mining="sparse", object_words="seen", epochs=2)
    run_stage2(args)
    searches = read_json(args.output_dir / "mining.json").searches
    assert searches[0].hard_negatives.found > 190
    with pytest.raises(UserError, match="has no captions"):
        run_stage2(world.arguments(mining="sparse"))


@settings(max_examples=80, deadline=None)
@given(bits=st.integers(0, 6), seed=st.integers(0, 9999), rows=st.integers(1, 30))
def test_near_duplicates_are_the_connected_ones(bits, seed, rows):
    rng = np.random.default_rng(seed)
    base = rng.integers(1, 2**63, 4, dtype=np.uint64)
    hashes = base[rng.integers(0, 4, rows)]
    for _ in range(3):
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, rows).astype(np.uint64)) * rng.integers(
            0, 2, rows
        ).astype(np.uint64)
    groups = near_duplicates(hashes, bits)
    expected = list(range(rows))
    for _ in range(rows):
        for one in range(rows):
            for other in range(rows):
                if bin(int(hashes[one]) ^ int(hashes[other])).count("1") <= bits:
                    expected[one] = expected[other] = min(expected[one], expected[other])
    for one in range(rows):
        for other in range(rows):
            assert (groups[one] == groups[other]) == (expected[one] == expected[other])


def test_images_of_one_colour_are_no_duplicates():
    groups = near_duplicates(np.array([0, 0, 7, 7], np.uint64), 2)
    assert groups[0] != groups[1]
    assert groups[2] == groups[3]
    assert len(set(groups.tolist())) == 3


def test_near_duplicate_images_are_neither_positive_nor_negative(world, features):
    """Each image occurs twice, with small changes: once under each label, or twice under one."""
    train = features(100, 0, "m")
    hashes = np.repeat(np.random.default_rng(2).integers(1, 2**63, 50, dtype=np.uint64), 2)
    hashes[1::2] ^= np.uint64(1)
    train = Features(train.ids, train.labels, np.repeat(train.hidden[::2], 2, axis=0), image_hashes=hashes)
    world.store("copies", train)
    plain = mine(train.hidden, train.labels, train.ids, positives=1, hard_negatives=1)
    pair = np.arange(100) ^ 1
    assert ((plain.positives.rows[:, 0] == pair) | (plain.hard_negatives.rows[:, 0] == pair)).mean() > 0.5
    groups = near_duplicates(hashes, 2).astype(str).tolist()
    apart = mine(train.hidden, train.labels, groups, positives=1, hard_negatives=1)
    assert not ((apart.positives.rows[:, 0] == pair) | (apart.hard_negatives.rows[:, 0] == pair)).any()
    args = world.arguments(train=world.folder / "copies", near_duplicate_bits=2, epochs=2)
    run_stage2(args)
    assert json.loads((args.output_dir / "mining.json").read_text())["searches"][0]["positives"]["anchors_short"] == 0
    with pytest.raises(UserError, match="has no image hashes"):
        run_stage2(world.arguments(near_duplicate_bits=2))
