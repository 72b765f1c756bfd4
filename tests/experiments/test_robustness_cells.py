"""Estimates of heads under attack, recomputed by hand on a few memes."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from ra_hmd.experiments.robustness.cells import HeadUnderAttack, defence_results, head_results
from ra_hmd.experiments.robustness.scores import CLEAN, DEV, HeadScores, SystemScores, read_scores, write_scores
from ra_hmd.experiments.robustness.summary import pays
from ra_hmd.scoring.calibration import BINS

LABELS = np.array([1, 1, 1, 1, 0, 0, 0, 0])
SETS = {
    DEV: [0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1],
    CLEAN: [0.9, 0.8, 0.7, 0.4, 0.1, 0.2, 0.3, 0.6],
    "swap-1": [0.9, 0.3, 0.7, 0.4, 0.1, 0.2, 0.3, 0.6],
    "swap-2": [0.2, 0.1, 0.7, 0.6, 0.1, 0.9, 0.3, 0.4],
    "praise-1": [0.9, 0.8, 0.2, 0.4, 0.1, 0.2, 0.3, 0.6],
}
CLASSES = {"swap-1": [0, 1], "swap-2": [0, 1], "praise-1": [1]}
GROUPS = {
    "variants": {name: [name] for name in CLASSES},
    "families": {"characters": ["swap-1", "swap-2"], "words": ["praise-1"]},
}


def scores_of(sets):
    """One head whose score is its probability, with the threshold 0.5."""
    found = {}
    for name, values in sets.items():
        scores = np.array(values)
        verdicts = (scores >= 0.5).astype(np.int64)
        found[name] = {"lrc": HeadScores(scores, scores, verdicts, np.where(verdicts == 1, scores, 1 - scores))}
    rules = {"lrc": {"threshold": 0.5}}
    return SystemScores([f"m{row}" for row in range(8)], LABELS, found, LABELS, rules, {"place": None}, "digest")


def under_attack(sets=SETS, coverage=0.75):
    return HeadUnderAttack(scores_of(sets), "lrc", CLASSES, coverage, 200, 0)


@pytest.fixture(scope="module")
def results():
    return head_results(under_attack(), GROUPS)


def test_a_family_has_the_mean_of_the_metrics_of_its_variants_and_the_paired_difference(results):
    cell, clean = results["families"]["characters"], results["clean"]["metrics"]
    arrays = [np.array(SETS[name]) for name in GROUPS["families"]["characters"]]
    expected = {
        "auroc": np.mean([roc_auc_score(LABELS, one) for one in arrays]),
        "accuracy": np.mean([((one >= 0.5) == LABELS).mean() for one in arrays]),
        "macro_f1": np.mean([f1_score(LABELS, one >= 0.5, average="macro") for one in arrays]),
    }
    for metric, value in expected.items():
        assert cell["metrics"][metric]["value"] == pytest.approx(value)
        assert cell["difference"][metric]["value"] == pytest.approx(value - clean[metric]["value"])
        assert cell["difference"][metric]["low"] <= value - clean[metric]["value"] <= cell["difference"][metric]["high"]


def test_success_counts_memes_that_were_judged_correctly_when_clean(results):
    # Of class 1 the memes 0, 1, 2 are right when clean, of class 0 the memes 4, 5, 6.
    assert results["variants"]["swap-1"]["evasion"]["value"] == pytest.approx(1 / 3)
    assert results["variants"]["swap-2"]["evasion"]["value"] == pytest.approx(2 / 3)
    assert results["variants"]["swap-2"]["false_alarm"]["value"] == pytest.approx(1 / 3)
    assert results["families"]["characters"]["evasion"]["value"] == pytest.approx(1 / 2)


def test_a_variant_does_not_count_for_a_class_that_it_is_not_applied_to(results):
    assert results["variants"]["praise-1"]["false_alarm"] is None
    assert results["suite"]["false_alarm"]["value"] == pytest.approx((0 + 1 / 3) / 2)
    assert results["suite"]["evasion"]["value"] == pytest.approx((1 / 3 + 2 / 3 + 1 / 3) / 3)


def test_the_worst_case_of_a_meme_is_over_all_variants_and_the_clean_set(results):
    worst = results["worst"]
    assert worst["accuracy"]["value"] == pytest.approx(2 / 8)  # memes 4 and 6
    assert worst["evasion"]["value"] == pytest.approx(1.0)
    assert worst["false_alarm"]["value"] == pytest.approx(1 / 3)
    lowest = np.min([SETS[name] for name in (CLEAN, *CLASSES)], axis=0)
    highest = np.max([SETS[name] for name in (CLEAN, *CLASSES)], axis=0)
    expected = roc_auc_score(LABELS, np.where(LABELS == 1, lowest, highest))
    assert worst["auroc"]["value"] == pytest.approx(expected)
    assert results["worst_of"]["words"]["accuracy"]["value"] == pytest.approx(5 / 8)


def test_a_meme_that_is_judged_wrongly_when_clean_is_not_right_in_the_worst_case():
    clean = list(SETS[CLEAN])
    clean[4] = 0.9  # right in every variant
    assert under_attack(SETS | {CLEAN: clean}).worst(list(CLASSES))["accuracy"]["value"] == pytest.approx(1 / 8)


def test_abstention_keeps_the_limit_that_answers_its_share_of_dev(results):
    assert results["limit"] == pytest.approx(0.7)  # the sixth of eight certainties on dev: .9 .9 .8 .8 .7 .7 .6 .6
    answered = np.array(SETS["swap-2"])
    certain = np.where(answered >= 0.5, answered, 1 - answered) >= 0.7 - 1e-12
    abstention = results["variants"]["swap-2"]["abstention"]
    assert abstention["coverage"]["value"] == pytest.approx(certain.mean())
    right = (answered >= 0.5) == LABELS
    assert abstention["accuracy"] == pytest.approx(right[certain].mean())
    # Both evading memes have a certainty of at least 0.7.
    assert results["variants"]["swap-2"]["evasion_unnoticed"]["value"] == pytest.approx(2 / 3)
    assert results["clean"]["abstention"]["coverage"]["value"] == pytest.approx(6 / 8)


def test_calibration_is_measured_on_all_memes_of_a_group(results):
    values = np.concatenate([SETS[name] for name in CLASSES])
    labels = np.tile(LABELS, 3)
    found = results["suite"]["calibration"]
    assert found["brier"]["value"] == pytest.approx(np.mean((values - labels) ** 2))
    bins = np.floor(values * BINS + 1e-9).astype(int)
    gaps = [abs(values[bins == one].sum() - labels[bins == one].sum()) for one in np.unique(bins)]
    assert found["ece"] == pytest.approx(sum(gaps) / len(values))


def test_a_defence_is_compared_with_its_base_on_clean_known_and_other_attacks():
    defended = SETS | {"swap-2": SETS["swap-1"]}
    found = defence_results(under_attack(defended), under_attack(), GROUPS["families"], ["swap-1", "swap-2"])
    gain = (roc_auc_score(LABELS, SETS["swap-1"]) - roc_auc_score(LABELS, SETS["swap-2"])) / 2
    assert found["clean"]["auroc"]["value"] == 0
    assert found["seen"]["auroc"]["value"] == found["families"]["characters"]["auroc"]["value"] == pytest.approx(gain)
    assert found["unseen"]["auroc"]["value"] == found["families"]["words"]["auroc"]["value"] == 0
    assert found["worst"]["base"] == pytest.approx(2 / 8)
    assert found["worst"]["defended"] == pytest.approx(4 / 8)


def test_a_head_that_a_defence_does_not_change_is_said_to_be_unchanged():
    assert defence_results(under_attack(), under_attack(), GROUPS["families"], []) == {"unchanged": True}


@pytest.mark.parametrize(
    ("auroc", "accuracy", "expected"),
    [((0.01, 0.05), (-0.01, 0.04), True), ((-0.01, 0.05), (0.01, 0.04), False), ((0.01, 0.05), (-0.04, -0.01), False)],
)
def test_a_defence_pays_where_auroc_rises_and_accuracy_does_not_fall(auroc, accuracy, expected):
    suite = {name: {"low": low, "high": high} for name, (low, high) in (("auroc", auroc), ("accuracy", accuracy))}
    assert pays({"suite": suite}) is expected


def test_scores_are_read_as_they_were_written_and_only_under_their_digest(tmp_path):
    found = scores_of(SETS)
    write_scores(tmp_path / "scores.parquet", found)
    again = read_scores(tmp_path / "scores.parquet", "digest")
    assert again is not None
    assert again.ids == found.ids
    assert (again.labels == found.labels).all()
    assert list(again.sets) == list(found.sets)
    for name, heads in found.sets.items():
        for value in ("scores", "probabilities", "verdicts", "certain"):
            assert (getattr(again.sets[name]["lrc"], value) == getattr(heads["lrc"], value)).all()
    assert read_scores(tmp_path / "scores.parquet", "another") is None
