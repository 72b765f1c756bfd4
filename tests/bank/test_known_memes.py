"""Known memes first: copies of labelled rows are found by their hashes, and decide where the caption is the same."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from copies import jpeg, picture, rows_of_memes
from PIL import Image
from small_banks import SAID, bank_of, make_rows, points

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.known_memes import KnownMemes, LabelledRows
from ra_hmd.data.image_hashes import TRANSFORMS
from ra_hmd.data.images import content_hash

pytest.importorskip("pdqhash")
CAPTION = "my cat on a Monday"


def known_among(*places, limit=31, turned=False):
    return KnownMemes([LabelledRows.fixed(rows) for rows in places], limit, turned)


def find(known, image, text=CAPTION):
    return known.find(known.hashes(image, text, content_hash(image, text)))


def of_rows(*memes, **options):
    return known_among(rows_of_memes(memes), **options)


def without_pdq(rows):
    """As an earlier release kept them."""
    return replace(rows, pdqs=[""] * len(rows), caption_digests=[""] * len(rows))


@pytest.mark.parametrize(
    "change",
    [lambda image: image, jpeg, lambda image: image.resize((160, 120)), lambda image: image.resize((500, 400))],
)
def test_copies_with_the_same_caption_decide(change):
    known = of_rows(("a", picture(0), CAPTION, 1), ("b", picture(1), CAPTION, 0))
    found = find(known, change(picture(0)), " My CAT on\na monday")
    assert (found.id, found.label, found.hash, found.transform) == ("a", 1, "pdq", "none")
    assert found.same_caption
    assert found.decides
    assert found.distance <= 31
    assert find(known, picture(2)) is None


def test_another_caption_is_evidence_only():
    found = find(of_rows(("a", picture(), CAPTION, 1)), picture(), "my dog on a Monday")
    assert (found.id, found.distance, found.same_caption, found.decides) == ("a", 0, False, False)


def test_an_empty_caption_confirms_nothing_but_the_very_same_meme():
    known = of_rows(("a", picture(), " ", 1))
    near = find(known, jpeg(picture(), 40), "")
    assert (near.same_caption, near.decides) == (None, False)
    assert find(known, picture(), "").decides


def test_the_limit_is_the_largest_distance():
    exact = jpeg(picture(), 5)
    distance = find(of_rows(("a", picture(), CAPTION, 1), limit=64), exact).distance
    assert distance > 0
    assert find(of_rows(("a", picture(), CAPTION, 1), limit=distance), exact).decides
    assert find(of_rows(("a", picture(), CAPTION, 1), limit=distance - 1), exact) is None


def test_rotated_and_mirrored_pictures_are_copies_where_asked():
    row = ("a", picture(), CAPTION, 1)
    for name in TRANSFORMS[1:]:
        turned = picture().transpose(Image.Transpose[name.upper()])
        assert find(of_rows(row), turned) is None
        found = find(of_rows(row, turned=True), turned)
        assert found.decides
        assert turned.transpose(Image.Transpose[found.transform.upper()]).tobytes() == picture().tobytes()
        old = known_among(without_pdq(rows_of_memes([row])), turned=True)
        assert (find(old, turned).hash, find(old, turned).transform) == ("phash", found.transform)


def test_a_picture_of_one_colour_is_known_to_none():
    flat = Image.new("RGB", (64, 64), "red")
    known = of_rows(("a", flat, CAPTION, 1), ("b", picture(), CAPTION, 1))
    assert find(known, flat) is None
    old = known_among(without_pdq(rows_of_memes([("a", flat, CAPTION, 1), ("b", picture(), CAPTION, 1)])))
    assert find(old, flat) is None


def test_rows_with_different_labels_decide_nothing():
    found = find(of_rows(("a", picture(), CAPTION, 1), ("b", jpeg(picture()), CAPTION, 0)), picture())
    assert (found.id, found.contradicted_by, found.decides) == ("a", "b", False)
    other_caption = of_rows(("a", picture(), CAPTION, 1), ("b", picture(), "a dog", 0))
    assert find(other_caption, picture()).decides


def test_labels_of_people_go_before_those_of_examples():
    example = rows_of_memes([("a", picture(), CAPTION, 1)])
    person = rows_of_memes([("b", jpeg(picture()), CAPTION, 0)], decided=True)
    found = find(known_among(example, person), picture())
    assert (found.id, found.label, found.decides) == ("b", 0, True)
    against = rows_of_memes([("c", picture(), CAPTION, 1)], decided=True)
    assert not find(known_among(example, person, against), picture()).decides


def test_a_label_of_several_classes(tmp_path):
    rows = replace(rows_of_memes([("a", picture(), CAPTION, 0)]), labels=np.array([[1, 0, 1]]))
    assert find(known_among(rows), picture()).label == [1, 0, 1]


def test_rows_of_earlier_releases_are_found_by_the_older_hash():
    """Their captions are not known, so only the very same meme decides."""
    known = known_among(without_pdq(rows_of_memes([("a", picture(), CAPTION, 1)])))
    near = find(known, jpeg(picture(), 40))
    assert (near.id, near.hash, near.same_caption, near.decides) == ("a", "phash", None, False)
    assert find(known, picture()).decides


def test_an_index_follows_the_versions_of_its_bank(tmp_path, monkeypatch):
    added = []
    memes = rows_of_memes([(f"p{seed}", picture(seed), CAPTION, 1) for seed in range(3)])
    with bank_of(tmp_path / "bank") as bank, Bank.open(tmp_path / "bank") as reader:
        known = KnownMemes([LabelledRows(reader.state_at)], 31)
        assert find(known, picture()) is None
        bank.add(memes, points(3), **SAID)
        assert find(known, picture()) is None
        reader.refresh()
        assert find(known, picture()).id == "p0"
        index = known.places[0]._indices[0]
        monkeypatch.setattr(index, "extend", lambda hashes: added.append(len(hashes)))
        bank.relabel({"p0": 0}, **SAID)
        bank.remove(["p1"], **SAID)
        reader.refresh()
        assert find(known, picture()).label == 0
        assert find(known, picture(1)) is None
        bank.rollback(2, **SAID)
        reader.refresh()
        assert (find(known, picture()).label, find(known, picture(1)).id) == (1, "p1")
        assert not any(added), "hashes that are known are not added again"


@pytest.mark.parametrize("name", ["bank", "bank.db"])
def test_a_bank_keeps_hashes_of_images_and_captions(tmp_path, name):
    rows = replace(make_rows(["x", "y"], [1, 0]), pdqs=["0f" * 32, ""], caption_digests=["ab" * 16, ""])
    with bank_of(tmp_path / name) as bank:
        bank.add(rows, points(2), **SAID)
    with Bank.open(tmp_path / name) as bank:
        kept = bank.state_at().rows
        assert list(kept.pdqs[-2:]) == rows.pdqs
        assert list(kept.caption_digests[-2:]) == rows.caption_digests
        assert not any(kept.pdqs[:-2])


def test_a_bank_of_an_earlier_release_has_no_such_hashes(tmp_path):
    bank_of(tmp_path / "bank").close()
    (path,) = (tmp_path / "bank" / "versions").glob("*.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["pdq", "caption_digest"]), path)
    with Bank.open(tmp_path / "bank") as bank:
        rows = bank.state_at().rows
        assert len(rows) == len(bank)
        assert {*rows.pdqs, *rows.caption_digests} == {""}
