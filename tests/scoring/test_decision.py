"""Thresholds and calibration that dev chose: stored beside the head, used where they hold, never on test."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from json_files import read_json

from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import THRESHOLDS
from ra_hmd.evaluation.metrics.classification import classification_metrics
from ra_hmd.evaluation.metrics.significance import PREDICTIONS_NAME
from ra_hmd.evaluation.request import OperatingPointSettings
from ra_hmd.features.store import write_features
from ra_hmd.features.test_lock import FINAL_RECORD, final_records
from ra_hmd.models.head import load_head, save_head
from ra_hmd.scoring.operating_point import DECISION_NAME, read_operating_point
from ra_hmd.scoring.thresholds import best_threshold

CHOOSE = {"bootstrap_samples": 0}


def predictions(lab, name="out"):
    return [json.loads(line) for line in (lab.folder / name / PREDICTIONS_NAME).read_text().splitlines()]


@pytest.fixture
def tilted(lab):
    """A head whose logit is 2 too high, so that its official threshold is far off."""
    head = load_head(lab.folder / "head")
    with torch.no_grad():
        head.output.bias += 2
    save_head(lab.folder / "head", head.config, head.state_dict())
    lab.store("dev", lab.features(150, 2, "dev"))
    return lab


def test_dev_chooses_and_later_evaluations_use_it(tilted):
    lab = tilted
    official = lab.evaluate(**CHOOSE)
    assert "`--dev` chooses" in official["notes"][-1]
    lab.evaluate(queries=[lab.folder / "dev"], operating_point=OperatingPointSettings(thresholds="official"), **CHOOSE)
    dev = predictions(lab)
    chosen = lab.evaluate(
        operating_point=OperatingPointSettings(dev=lab.folder / "dev", criterion="accuracy"), **CHOOSE
    )
    stored = read_operating_point(lab.folder / "head")
    labels = np.array([row["label"] for row in dev])
    for head, rule in stored.rules.items():
        scores = np.array([row[f"{head}_score"] for row in dev])
        assert rule.thresholds[0] == best_threshold(scores, labels == 1, "accuracy", THRESHOLDS[head])
        assert stored.values[head]["chosen"] >= stored.values[head]["official"]
        assert stored.values[head]["official"] == classification_metrics(scores, labels, THRESHOLDS[head])["accuracy"]
    assert stored.values["lrc"]["chosen"] > stored.values["lrc"]["official"] + 0.05
    accuracy = [result["metrics"]["test"]["lrc"]["accuracy"]["value"] for result in (official, chosen)]
    assert accuracy[1] > accuracy[0] + 0.05
    assert official["metrics"]["test"]["lrc"]["auroc"] == chosen["metrics"]["test"]["lrc"]["auroc"]
    assert lab.evaluate(**CHOOSE)["metrics"] == chosen["metrics"], "stored thresholds are used"
    again = lab.evaluate(operating_point=OperatingPointSettings(thresholds="official"), **CHOOSE)
    assert again["metrics"] == official["metrics"]
    lab.evaluate(**CHOOSE)
    analysis = json.loads((lab.folder / "out" / "analysis.json").read_text())["test"]["calibration"]
    assert analysis["lrc"]["after"]["nll"]["value"] < analysis["lrc"]["before"]["nll"]["value"]
    assert [analysis[head]["kind"] for head in ("lmh", "lrc", "rkc")] == ["temperature", "temperature", "platt"]
    manifest = read_json(lab.folder / "out" / "ra_hmd.json")
    assert manifest.decisions.test.lrc.thresholds == [stored.rules["lrc"].thresholds[0]]
    assert "chosen on" in (lab.folder / "out" / "report.md").read_text()


def test_a_head_that_is_worse_than_chance_on_dev_is_not_calibrated(tilted):
    lab = tilted
    dev = lab.features(150, 2, "dev")
    lab.store("dev_against", replace(dev, labels=1 - dev.labels))
    for kind in ("temperature", "isotonic"):
        result = lab.evaluate(
            operating_point=OperatingPointSettings(dev=lab.folder / "dev_against", calibration=kind), **CHOOSE
        )
        stored = read_operating_point(lab.folder / "head")
        assert {rule.calibration.kind for rule in stored.rules.values()} == {"none"}
        assert set(stored.uncalibrated) == {"lmh", "lrc", "rkc", "krr"}
        assert sum("has no calibration: on dev" in note for note in result["notes"]) == 4
        assert all(rule.chosen for rule in stored.rules.values()), "their thresholds are those of dev all the same"
    path = lab.folder / "head" / DECISION_NAME
    old = json.loads(path.read_text())
    del old["heads"]["rkc"]["uncalibrated"]
    old["heads"]["rkc"]["calibration"] = {"kind": "platt", "slope": [-2.06], "intercept": [0.0]}
    path.write_text(json.dumps(old))
    again = read_operating_point(lab.folder / "head")
    assert (again.rules["rkc"].calibration.kind, "falls" in again.uncalibrated["rkc"]) == ("none", True)


def test_isotonic_and_stored_file(tilted):
    lab = tilted
    lab.evaluate(operating_point=OperatingPointSettings(dev=lab.folder / "dev", calibration="isotonic"), **CHOOSE)
    stored = read_json(lab.folder / "head" / DECISION_NAME)
    assert stored.kind == "decision"
    assert stored.criterion == "macro_f1"
    assert stored.dev.rows == 150
    assert len(stored.dev.ids) == 150
    assert {item.calibration.kind for item in stored.heads.values()} == {"isotonic"}
    assert (stored.voting.topk, stored.bank.place) == (20, str(lab.folder / "bank"))


def test_the_memes_that_chose_are_not_judged_by_their_choice(tilted):
    lab = tilted
    dev = lab.folder / "dev"
    official = lab.evaluate(queries=[dev], **CHOOSE)
    result = lab.evaluate(queries=[dev, lab.folder / "test"], operating_point=OperatingPointSettings(dev=dev), **CHOOSE)
    assert result["metrics"]["dev"] == official["metrics"]["dev"]
    assert any("150 memes are among those that the stored ones were chosen on" in note for note in result["notes"])
    part = lab.features(150, 2, "dev").select(np.arange(10))
    lab.store("few", part)
    assert any("10 memes are among" in note for note in lab.evaluate(queries=[lab.folder / "few"], **CHOOSE)["notes"])


def test_a_meme_of_dev_that_is_judged_takes_part_in_no_choice(tilted):
    lab = tilted
    dev, test = lab.features(150, 2, "dev"), lab.features(120, 1, "test")
    shared = replace(test, ids=["dev3", *test.ids[1:]])
    lab.store("dev_less", dev.select(np.r_[:3, 4:150]))
    lab.store("shared", shared)
    asked = {"queries": [lab.folder / "shared"], **CHOOSE}
    less = lab.evaluate(operating_point=OperatingPointSettings(dev=lab.folder / "dev_less"), **asked)
    rules = read_operating_point(lab.folder / "head").rules
    result = lab.evaluate(operating_point=OperatingPointSettings(dev=lab.folder / "dev"), **asked)
    stored = read_operating_point(lab.folder / "head")
    assert (stored.dev.left_out, stored.dev.rows) == (["dev3"], 149)
    assert {head: rule.thresholds[0] for head, rule in stored.rules.items()} == {
        head: rule.thresholds[0] for head, rule in rules.items()
    }
    assert result["metrics"] == less["metrics"]
    assert all(rule["chosen"] for rule in read_json(lab.folder / "out/ra_hmd.json").decisions.shared.values())
    assert any("dev: 1 memes are among the queries, for example ['dev3']" in n for n in result["notes"])
    lab.store("other", replace(test, ids=["dev5", *test.ids[1:]]))
    with pytest.raises(UserError, match=r"1 of 120 memes of .*other are among those .*dev5"):
        lab.evaluate(queries=[lab.folder / "other"], **CHOOSE)
    lab.store("all", lab.features(150, 2, "dev").select(np.arange(150)))
    lab.store("more", replace(lab.features(151, 5, "x"), ids=[*dev.ids, "new"]))
    with pytest.raises(UserError, match=r"All 150 memes of --dev"):
        lab.evaluate(
            queries=[lab.folder / "more"], operating_point=OperatingPointSettings(dev=lab.folder / "dev"), **CHOOSE
        )
    assert lab.evaluate(queries=[lab.folder / "dev"], **CHOOSE)["metrics"], "dev itself is judged officially"


def test_another_bank_or_vote_takes_the_vote_s_threshold_away_and_no_other(tilted):
    lab = tilted
    chosen = lab.evaluate(operating_point=OperatingPointSettings(dev=lab.folder / "dev"), **CHOOSE)
    lab.store("bank2", lab.features(100, 9, "other"))
    for changes, words in (({"topk": 7}, "vote"), ({"bank": lab.folder / "bank2"}, "bank")):
        result = lab.evaluate(**changes, **CHOOSE)
        assert any(f"chosen with another {words};" in note for note in result["notes"])
        assert result["metrics"]["test"]["lrc"] == chosen["metrics"]["test"]["lrc"]
        decisions = read_json(lab.folder / "out" / "ra_hmd.json").decisions.test
        assert decisions.rkc == {"thresholds": [0.0], "chosen": False}
        assert decisions.lrc.chosen


def test_a_head_that_was_trained_again_refuses_the_old_choice(tilted):
    lab = tilted
    lab.evaluate(operating_point=OperatingPointSettings(dev=lab.folder / "dev"), **CHOOSE)
    head = load_head(lab.folder / "head")
    with torch.no_grad():
        head.output.bias += 1
    save_head(lab.folder / "head", head.config, head.state_dict())
    with pytest.raises(UserError, match="trained again"):
        lab.evaluate(**CHOOSE)
    lab.evaluate(operating_point=OperatingPointSettings(thresholds="official"), **CHOOSE)
    lab.evaluate(operating_point=OperatingPointSettings(dev=lab.folder / "dev"), **CHOOSE)
    (lab.folder / "head" / DECISION_NAME).write_text('{"criterion": "f1"}')
    with pytest.raises(UserError, match=r"decision\.json"):
        lab.evaluate(**CHOOSE)


def test_nothing_is_chosen_on_test_or_on_one_class(tilted):
    lab = tilted
    with pytest.raises(UserError, match=r"(?s)Nothing is chosen by test data.*test \(split 'test'\)"):
        lab.evaluate(operating_point=OperatingPointSettings(dev=lab.folder / "test"), **CHOOSE)
    one = lab.features(40, 3, "one")
    lab.store("dev1", one.select(np.flatnonzero(one.labels == 1)))
    with pytest.raises(UserError, match="class 1 only"):
        lab.evaluate(operating_point=OperatingPointSettings(dev=lab.folder / "dev1"), **CHOOSE)
    with pytest.raises(UserError, match="contradict"):
        OperatingPointSettings(dev="dev", thresholds="official")
    with pytest.raises(UserError, match="`criterion`: 'auc' is not one of"):
        OperatingPointSettings(criterion="auc")
    with pytest.raises(UserError, match="lower --min-similarity"):
        lab.evaluate(operating_point=OperatingPointSettings(dev=lab.folder / "dev"), min_similarity=1.0, **CHOOSE)
    assert not (lab.folder / "head" / DECISION_NAME).exists()


def test_test_data_needs_final_and_is_recorded(tilted):
    lab = tilted
    lab.evaluate(queries=[lab.folder / "dev"], final=False, **CHOOSE)
    assert read_json(lab.folder / "out" / "ra_hmd.json").final is False
    with pytest.raises(UserError, match=r"(?s)`--final`.*split 'test'"):
        lab.evaluate(final=False, output=lab.folder / "new", **CHOOSE)
    assert not (lab.folder / "new").exists()
    assert not (lab.folder / "head" / FINAL_RECORD).exists()
    for number in range(2):
        lab.evaluate(**CHOOSE)
        manifest = read_json(lab.folder / "out" / "ra_hmd.json")
        assert manifest.final is True
        assert list(manifest.test_sets.values()) == ["test"]
        assert list(manifest.opened_before.values()) == [number]
    records = final_records(lab.folder / "head")
    assert len(records) == 2
    assert "--final" in records[0]["command"]
    assert "earlier evaluations of this head that opened test data: 1" in (lab.folder / "out/report.md").read_text()


def test_a_dev_named_folder_of_the_test_split_and_a_test_bank_are_locked(tilted):
    lab = tilted
    write_features(lab.folder / "dev2", lab.features(30, 4, "x"), {}, split="test_seen")
    with pytest.raises(UserError, match="split 'test_seen'"):
        lab.evaluate(queries=[lab.folder / "dev2"], final=False, **CHOOSE)
    with pytest.raises(UserError, match="split 'test_seen'"):
        lab.evaluate(queries=[lab.folder / "dev"], bank=lab.folder / "dev2", final=False, **CHOOSE)
