"""Thresholds from dev while the bank grows: they stay in force, and the effect of a change is told by them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.embed_features import embed_store
from ra_hmd.bank.planned_change import PlannedChange
from ra_hmd.core.manifests import BankReference
from ra_hmd.evaluation.evaluate import evaluate
from ra_hmd.evaluation.request import OperatingPointSettings
from ra_hmd.features.store import read_features
from ra_hmd.inference.batch_features import predict_features
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.change_impact import change_impact
from ra_hmd.scoring.reference_set import ReferenceSet, match_reference_set
from ra_hmd.scoring.scorer import Scorer
from ra_hmd.scoring.threshold_basis import NO_MATCH, BankMatch, bank_content


@pytest.fixture
def tuned(served_clip: Path, clip_bank: Path, tmp_path: Path) -> Path:
    """A head whose thresholds were chosen on dev with version 1 of `clip_bank`."""
    head = Path(shutil.copytree(served_clip / "head", tmp_path / "head"))
    stores = served_clip / "features"
    evaluate(head, clip_bank, [stores / "dev"], tmp_path / "report", bootstrap_samples=0,
             operating_point=OperatingPointSettings(dev=stores / "dev"))  # fmt: skip
    return head


def test_the_rule_outlives_the_growth_of_its_bank(tuned: Path, served_clip: Path, clip_bank: Path) -> None:
    dev = read_features(served_clip / "features" / "dev")
    scorer = Scorer.open(tuned, clip_bank)
    chosen = scorer.rule("rkc")
    assert chosen.chosen
    Bank.open(clip_bank).remove(scorer.bank.ids[:2], author="ana", reason="doubles")
    newer = scorer.refreshed()
    for one in (newer, Scorer.open(tuned, clip_bank)):
        assert (one.state["version"], one.bank_match.grown_from) == (2, 1)
        assert one.rule("rkc").thresholds.tolist() == chosen.thresholds.tolist()
        scored = one("dev", dev)
        assert scored.rules["rkc"].chosen
        assert any("version 1 of the bank, which is at 2" in note for note in scored.notes)
        assert one.notes("rkc") == [note for note in scored.notes if note.startswith("RKC")]
        assert one.notes("lrc") == [note for note in scored.notes if note.startswith("LRC")]
        assert not any("version" in note for note in one.notes("lrc"))
        (other,) = replace(one, voting=Voting(5)).notes("rkc")
        assert "official threshold and no calibration: the stored ones were chosen with another vote" in other


def test_the_kernel_head_follows_the_bank(tuned: Path, served_clip: Path, clip_bank: Path, tmp_path: Path) -> None:
    store, kernel = served_clip / "features" / "dev", KernelSettings()
    dev = read_features(store)
    scorer, without = Scorer.open(tuned, clip_bank, kernel=kernel), Scorer.open(tuned, clip_bank)
    before, plain = scorer("dev", dev), without("dev", dev)
    assert "krr" not in plain.scores
    for head, scores in plain.scores.items():
        np.testing.assert_array_equal(before.scores[head], scores)
    ids = scorer.bank.ids
    bank = Bank.open(clip_bank)
    bank.remove(ids[:2], author="ana", reason="doubles")
    bank.relabel({ids[4]: 1 - int(bank.labels[bank.ids.index(ids[4])])}, author="ana", reason="satire")
    newer, fresh = scorer.refreshed()("dev", dev), Scorer.open(tuned, clip_bank, kernel=kernel)("dev", dev)
    assert np.abs(newer.scores["krr"] - before.scores["krr"]).max() > 1e-6
    np.testing.assert_allclose(newer.scores["krr"], fresh.scores["krr"], atol=1e-8)
    np.testing.assert_allclose(newer.kernel.shares.sum(1) + newer.kernel.rest, newer.scores["krr"], atol=1e-12)
    assert newer.rules["krr"].chosen
    predict_features(tuned, store, tmp_path / "krr.jsonl", head="krr", bank=clip_bank)
    rows = list(map(json.loads, (tmp_path / "krr.jsonl").read_text().splitlines()))
    np.testing.assert_allclose([row["score"] for row in rows], fresh.scores["krr"][:, 0], atol=1e-12)
    for row in rows:
        named = sum(one["share"] for one in row["contributions"])
        assert row["score"] == pytest.approx(named + row["contributions_rest"], abs=1e-12)
    assert [row["verdict"] for row in rows] == fresh.verdicts("krr").tolist()


def test_a_bank_is_known_by_its_rows_not_by_its_folder(
    tuned: Path, served_clip: Path, clip_bank: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(served_clip / "bank", tmp_path / "other"))
    Bank.open(other).remove(Bank.open(other).ids[:2], author="ana", reason="doubles")
    assert Scorer.open(tuned, other).bank_match == BankMatch(True, 1, 2), "its version 1 is the same bank"
    bank = Bank.open(other)
    bank.rollback(1, author="ana", reason="no doubles")
    assert Scorer.open(tuned, other).bank_match == BankMatch(True, None, 3), "and so is its version 3"
    store = Scorer.open(tuned, served_clip / "features" / "train")
    assert store.bank_match == BankMatch(True)
    assert store.rule("rkc").chosen
    stranger = Scorer.open(tuned, served_clip / "features" / "dev")
    assert stranger.bank_match == NO_MATCH
    assert not stranger.rule("rkc").chosen


def test_a_decision_of_an_earlier_version_still_holds(tuned: Path, clip_bank: Path) -> None:
    path = tuned / "decision.json"
    stored = json.loads(path.read_text())
    del stored["bank"]["content"], stored["dev"]["left_out"]
    path.write_text(json.dumps(stored))
    assert Scorer.open(tuned, clip_bank).bank_match == BankMatch(True, None, 1)
    Bank.open(clip_bank).remove(Bank.open(clip_bank).ids[:2], author="ana", reason="doubles")
    assert Scorer.open(tuned, clip_bank).bank_match == BankMatch(True, 1, 2)


def test_content_does_not_depend_on_the_order_and_does_on_ids_labels_and_embeddings() -> None:
    rng = np.random.default_rng(0)
    rows = Embeddings([f"m{i}" for i in range(2000)], rng.integers(0, 2, 2000), rng.normal(size=(2000, 8)))
    said = bank_content(rows)
    decision = BankReference(place="x", content=said)

    def holds(other: Embeddings) -> bool:
        return match_reference_set(ReferenceSet(other, {"place": "x", "sha256": ""}), decision).holds

    assert holds(rows.select(rng.permutation(2000)))
    assert holds(Embeddings(rows.ids, rows.labels, rows.embedding * (1 + 1e-6 * rng.normal(size=(2000, 8)))))
    embedding, labels = rows.embedding.copy(), rows.labels.copy()
    embedding[7] = rng.normal(size=8)
    labels[7] = 1 - labels[7]
    assert not holds(Embeddings(rows.ids, rows.labels, embedding))
    assert not holds(Embeddings(rows.ids, labels, rows.embedding))
    assert not holds(Embeddings(["new", *rows.ids[1:]], rows.labels, rows.embedding))
    assert not holds(rows.select(np.arange(1999)))


def test_effect_is_told_by_the_threshold_in_force(tuned: Path, served_clip: Path, clip_bank: Path) -> None:
    scorer = Scorer.open(tuned, clip_bank)
    dev = embed_store(tuned, served_clip / "features" / "dev")
    before = scorer("dev", dev.features)
    planned = PlannedChange(remove=scorer.bank.ids[:10])
    shown = change_impact(scorer.bank, dev.embeddings, planned, scorer.voting, scorer.rule("rkc").thresholds)
    Bank.open(clip_bank).remove(planned.remove, author="ana", reason="a trial")
    after = scorer.refreshed()("dev", dev.features)
    pairs = zip(dev.embeddings.ids, before.verdicts("rkc").tolist(), after.verdicts("rkc").tolist(), strict=True)
    flipped = [(name, old, new) for name, old, new in pairs if old != new]
    assert [(flip["id"], flip["from"], flip["to"]) for flip in shown["flips"]] == flipped
