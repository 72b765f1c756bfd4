"""The same picture and caption again: a person's label answers it, and contradicting labels are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_banks import SAID, bank_of, make_rows, points

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.identical import LabelConflictError
from ra_hmd.bank.planned_change import PlannedChange
from ra_hmd.bank.versions import BankRows
from ra_hmd.core.errors import UserError
from ra_hmd.data.images import content_hash
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.change_impact import change_impact


def of_content(names: list[str], labels: list[int], contents: list[str], *, decided: bool = True) -> BankRows:
    return replace(make_rows(names, labels), contents=contents, decided=np.full(len(names), decided))


def answer(bank: Bank, content: str) -> tuple[str, int] | None:
    (place,) = bank.decided_positions([content])
    return None if place is None else (bank.ids[place], int(bank.labels[place]))


def test_content_is_pixels_and_caption(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    same = content_hash(picture, "my cat on a monday")
    picture.save(tmp_path / "cat.png")
    picture.save(tmp_path / "cat.bmp")
    for name in ("cat.png", "cat.bmp"):
        with Image.open(tmp_path / name) as opened:
            assert content_hash(opened, "  my cat\non a  monday ") == same
    assert content_hash(picture, "caf\u00e9") == content_hash(picture, "cafe\u0301")
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    others = [content_hash(picture, "my dog on a monday"), content_hash(turned, "my cat on a monday"),
              content_hash(picture.resize((18, 14)), "my cat on a monday")]  # fmt: skip
    one_pixel = picture.copy()
    one_pixel.putpixel((0, 0), tuple(255 - value for value in picture.getpixel((0, 0))))
    others.append(content_hash(one_pixel, "my cat on a monday"))
    assert len({same, *others}) == 5


@pytest.mark.parametrize("name", ["bank", "bank.db"])
def test_decided_rows_answer_through_all_changes(tmp_path: Path, name: str) -> None:
    with bank_of(tmp_path / name) as bank:
        bank.add(of_content(["e"], [0], ["cat"], decided=False), points(3)[2:], **SAID)  # 2: an example only votes
        assert answer(bank, "cat") is None
        bank.add(of_content(["x", "y"], [1, 0], ["dog", ""]), points(2), **SAID)  # 3
        assert answer(bank, "dog") == ("x", 1)
        assert answer(bank, "") is None
        bank.relabel({"e": 1}, **SAID)  # 4: now a person decided
        assert answer(bank, "cat") == ("e", 1)
        bank.relabel({"x": 0}, **SAID)  # 5
        assert answer(bank, "dog") == ("x", 0)
        bank.rollback(3, **SAID)  # 6
        assert (answer(bank, "cat"), answer(bank, "dog")) == (None, ("x", 1))
        bank.rollback(5, **SAID)  # 7
        assert (answer(bank, "cat"), answer(bank, "dog")) == (("e", 1), ("x", 0))
        bank.remove(["x"], **SAID)  # 8
        assert answer(bank, "dog") is None
    with Bank.open(tmp_path / name) as again:
        assert (answer(again, "cat"), answer(again, "dog")) == (("e", 1), None)
        assert again.info()["decided_rows"] == 2  # e and y
        assert np.array_equal(again.to_embeddings().embedding[-2:], points(3)[[2, 1]])


@pytest.mark.parametrize("name", ["bank", "bank.db"])
def test_contradictions_are_refused_or_settled(tmp_path: Path, name: str) -> None:
    with bank_of(tmp_path / name) as bank:
        bank.add(of_content(["a", "b"], [0, 0], ["cat", "cat"]), points(2), **SAID)
        opposite, vector = of_content(["c"], [1], ["cat"]), points(3)[2:]
        with pytest.raises(
            LabelConflictError, match=r"--relabel-identical[\s\S]*'c' \(label 1\) is 'a' there \(label 0\)"
        ):
            bank.add(opposite, vector, **SAID)
        with pytest.raises(LabelConflictError, match=r"'a' \(label 1\) is 'b' there"):
            bank.relabel({"a": 1}, **SAID)
        with pytest.raises(UserError, match="decide on one label"):
            bank.relabel({"a": 1, "b": 0}, **SAID)
        with pytest.raises(UserError, match="decide on one label"):
            bank.add(of_content(["d", "e"], [1, 0], ["dog", "dog"]), points(2), **SAID)
        with pytest.raises(LabelConflictError):
            change_impact(
                bank, Embeddings(["q"], np.zeros(1, int), vector), PlannedChange(add=(opposite, vector)), Voting(3)
            )
        assert bank.version == 2
        bank.add(of_content(["same"], [0], ["cat"]), points(1), **SAID)
        bank.add(opposite, vector, **SAID, relabel_identical=True)
        labels = dict(zip(bank.ids, bank.labels.tolist(), strict=True))
        assert [labels[one] for one in ("a", "b", "same", "c")] == [1, 1, 1, 1]
        assert (bank.log[-1].counts["added"], bank.log[-1].counts["relabelled"]) == (1, 3)
        bank.relabel({"a": 0}, **SAID, relabel_identical=True)
        labels = dict(zip(bank.ids, bank.labels.tolist(), strict=True))
        assert [labels[one] for one in ("a", "b", "same", "c")] == [0, 0, 0, 0]
        bank.relabel(dict.fromkeys(("a", "b", "same", "c"), 1), **SAID)
        assert answer(bank, "cat") == ("a", 1)


@pytest.mark.parametrize("name", ["bank", "bank.db"])
def test_the_effect_knows_who_is_answered(tmp_path: Path, name: str) -> None:
    """Nine of ten equal rows outvote the corrected one; the same meme is answered all the same, a neighbour is not."""
    embedding = np.ones((9, 4), np.float32)
    with bank_of(tmp_path / name, 9, embedding=embedding) as bank:
        if (ones := [one for one, label in zip(bank.ids, bank.labels, strict=True) if label]) != []:
            bank.relabel(dict.fromkeys(ones, 0), **SAID)
        asked = Embeddings(["again", "other"], np.array([1, 0]), np.ones((2, 4), np.float32), ["cat", "dog"])
        planned = PlannedChange(add=(of_content(["new"], [1], ["cat"]), embedding[:1]))
        told = change_impact(bank, asked, planned, Voting(5))
        assert [(flip["id"], flip["from"], flip["to"]) for flip in told["flips"]] == [("again", 0, 1)]
        assert (told["paired"]["gained"], told["paired"]["lost"]) == (1, 0)
        before = bank.version
        bank.add(*planned.add, **SAID)
        assert change_impact(bank, asked, PlannedChange(remove=["m1"]), Voting(5))["flips"] == []
        back = change_impact(bank, asked, PlannedChange(rollback=before), Voting(5))
        assert [(flip["id"], flip["from"], flip["to"]) for flip in back["flips"]] == [("again", 1, 0)]


def test_a_bank_of_an_earlier_version_has_no_contents_and_opens(tmp_path: Path) -> None:
    bank = bank_of(tmp_path / "bank")
    bank.relabel({"m1": 1 - int(bank.labels[1])}, **SAID)
    for path in (tmp_path / "bank" / "versions").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.drop_columns(["content", "decided"]), path)
    old = Bank.open(tmp_path / "bank")
    assert (old.ids, old.labels.tolist()) == (bank.ids, bank.labels.tolist())
    assert answer(old, "") is None
    old.add(of_content(["x"], [1], ["cat"]), points(1), **SAID)
    old.add(of_content(["y"], [0], [""]), points(1), **SAID)
    assert answer(Bank.open(tmp_path / "bank"), "cat") == ("x", 1)
