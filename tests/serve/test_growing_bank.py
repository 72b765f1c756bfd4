"""Thresholds from dev while the bank grows: they stay in force, and the effect of a change is told by them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ra_hmd.evaluation.evaluate import evaluate
from ra_hmd.evaluation.plan import Choice
from ra_hmd.features.store import read_features
from ra_hmd.predict.scorer import Scorer
from ra_hmd.retrieval.bank import open_bank
from ra_hmd.retrieval.effect import Planned, effect
from ra_hmd.retrieval.from_store import embed_store
from ra_hmd.retrieval.voting import Voting


@pytest.fixture
def tuned(served_clip: Path, clip_bank: Path, tmp_path: Path) -> Path:
    """A head whose thresholds were chosen on dev with version 1 of `clip_bank`."""
    head = Path(shutil.copytree(served_clip / "head", tmp_path / "head"))
    stores = served_clip / "features"
    evaluate(head, clip_bank, [stores / "dev"], tmp_path / "report", bootstrap_samples=0,
             choice=Choice(dev=stores / "dev"))  # fmt: skip
    return head


def test_the_rule_outlives_the_growth_of_its_bank(tuned: Path, served_clip: Path, clip_bank: Path) -> None:
    dev = read_features(served_clip / "features" / "dev")
    scorer = Scorer.open(tuned, clip_bank)
    chosen = scorer.rule("rkc")
    assert chosen.chosen
    open_bank(clip_bank).remove(scorer.bank.ids[:2], author="ana", reason="doubles")
    newer = scorer.refreshed()
    for one in (newer, Scorer.open(tuned, clip_bank)):
        assert (one.state["version"], one.grown_from) == (2, 1)
        assert one.rule("rkc").thresholds.tolist() == chosen.thresholds.tolist()
        scored = one("dev", dev)
        assert scored.rules["rkc"].chosen
        assert any("version 1 of the bank, which is at 2" in note for note in scored.notes)
        assert one.notes("rkc") == [note for note in scored.notes if note.startswith("RKC")]
        assert one.notes("lrc") == []
        (other,) = replace(one, voting=Voting(5)).notes("rkc")
        assert "official threshold and no calibration: the stored ones were chosen with another vote" in other


def test_a_bank_of_another_origin_has_the_official_rule(
    tuned: Path, served_clip: Path, clip_bank: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(served_clip / "bank", tmp_path / "other"))
    open_bank(other).remove(open_bank(other).ids[:2], author="ana", reason="doubles")
    bank = open_bank(other)
    bank.rollback(1, author="ana", reason="no doubles")
    assert Scorer.open(tuned, other).grown_from == 1, "its version 1 is the same bank"
    stranger = Scorer.open(tuned, served_clip / "features" / "train")
    assert stranger.grown_from is None
    assert not stranger.rule("rkc").chosen


def test_effect_is_told_by_the_threshold_in_force(tuned: Path, served_clip: Path, clip_bank: Path) -> None:
    scorer = Scorer.open(tuned, clip_bank)
    dev = embed_store(tuned, served_clip / "features" / "dev")
    before = scorer("dev", dev.features)
    planned = Planned(remove=scorer.bank.ids[:10])
    shown = effect(scorer.bank, dev.embedded, planned, scorer.voting, scorer.rule("rkc").thresholds)
    open_bank(clip_bank).remove(planned.remove, author="ana", reason="a trial")
    after = scorer.refreshed()("dev", dev.features)
    pairs = zip(dev.embedded.ids, before.verdicts("rkc").tolist(), after.verdicts("rkc").tolist(), strict=True)
    flipped = [(name, old, new) for name, old, new in pairs if old != new]
    assert [(flip["id"], flip["from"], flip["to"]) for flip in shown["flips"]] == flipped
