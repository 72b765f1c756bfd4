"""Paired tests against hand cases, joins between runs, and results per group."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.evaluation.metrics.classification import classification_metrics
from ra_hmd.evaluation.metrics.groups import group_rows, parse_group
from ra_hmd.evaluation.metrics.intervals import rate
from ra_hmd.evaluation.metrics.significance import Contender, compare_pairs, holm, mcnemar, read_run
from ra_hmd.evaluation.request import OperatingPointSettings
from ra_hmd.features.store import Features

HALF = np.array([0.5])


def test_mcnemar_by_hand():
    """5 against 1 of 6: p = 2 (C(6,0) + C(6,1)) / 2^6 = 14/64."""
    first = np.array([1] * 5 + [0] + [1] * 10 + [0] * 4, bool)
    second = np.array([0] * 5 + [1] + [1] * 10 + [0] * 4, bool)
    assert mcnemar(first, second) == {"only_first": 5, "only_second": 1, "p": pytest.approx(14 / 64)}
    assert mcnemar(second, first)["p"] == pytest.approx(14 / 64)
    assert mcnemar(first, first) == {"only_first": 0, "only_second": 0, "p": 1.0}


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == pytest.approx([1, 1])
    assert holm([]) == []


def test_equal_heads_differ_by_nothing_and_others_by_their_metrics():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    good = np.clip(labels + 0.6 * rng.normal(size=300), 0, 1)[:, None]
    poor = np.clip(labels + 1.5 * rng.normal(size=300), 0, 1)[:, None]
    pairs = [
        (Contender("a", good, HALF), Contender("b", good.copy(), HALF)),
        (Contender("p", poor, HALF), Contender("g", good, HALF)),
    ]
    same, better = compare_pairs(pairs, labels, BINARY, samples=300, seed=0)
    for item in same["difference"].values():
        assert item["value"] == 0
        assert -0.05 < item["low"] < 0 < item["high"] < 0.05, "alike on these memes, as far as these can tell"
    first, second = (classification_metrics(scores[:, 0], labels, 0.5) for scores in (poor, good))
    for name, item in better["difference"].items():
        assert item["value"] == pytest.approx(second[name] - first[name])
        assert 0 < item["low"] < item["value"] < item["high"]
    assert better["mcnemar"]["p_holm"] == pytest.approx(2 * better["mcnemar"]["p"])
    assert same["mcnemar"]["p_holm"] == 1


def test_heads_alike_in_truth_have_a_difference_around_0():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 400)
    one, two = ((labels + rng.normal(size=400))[:, None] for _ in range(2))
    (found,) = compare_pairs(
        [(Contender("1", one, HALF), Contender("2", two, HALF))], labels, BINARY, samples=300, seed=0
    )
    for item in found["difference"].values():
        assert item["low"] < 0 < item["high"]


def test_several_classes():
    rng = np.random.default_rng(0)
    problem, labels = Problem("single_label", 3), rng.integers(0, 3, 200)
    one, two = (rng.random((200, 3)) + weight * np.eye(3)[labels] for weight in (0.2, 0.6))
    (found,) = compare_pairs(
        [(Contender("1", one, HALF), Contender("2", two, HALF))], labels, problem, samples=50, seed=0
    )
    first, second = (classification_metrics(scores, labels, HALF, problem) for scores in (one, two))
    for name, item in found["difference"].items():
        assert item["value"] == pytest.approx(second[name] - first[name])


def test_two_runs_are_joined_by_id(lab):
    lab.evaluate(output=lab.folder / "old", weights="mean", bootstrap_samples=0)
    features = lab.features(120, 1, "test")
    order = np.random.default_rng(0).permutation(120)
    changed = Features([*features.ids[:119], "new"], features.labels, features.hidden, lmh_score=features.lmh_score)
    lab.store("test", changed.select(order))
    result = lab.evaluate(compare=[lab.folder / "old"])
    assert any("119 memes are in both, 1 only here and 1 only there" in note for note in result["notes"])
    found = json.loads((lab.folder / "out" / "analysis.json").read_text())["test"]
    assert [(entry["first"], entry["second"]) for entry in found["comparisons"]] == [
        ("LMH", "LRC"), ("LMH", "RKC"), ("LMH", "KRR"), ("LRC", "RKC"), ("LRC", "KRR"), ("RKC", "KRR")
    ]  # fmt: skip
    (run,) = found["runs"]
    lmh, lrc, rkc, krr = run["comparisons"]
    for same in (lmh, lrc, krr):
        assert same["memes"] == 119
        assert same["difference"]["accuracy"]["value"] == 0
        assert -0.05 < same["difference"]["accuracy"]["low"] < 0 < same["difference"]["accuracy"]["high"] < 0.05
    assert rkc["difference"]["auroc"]["low"] <= rkc["difference"]["auroc"]["high"]
    assert f"LRC of {lab.folder / 'old'}" == lrc["first"]
    assert "With " in (lab.folder / "out" / "report.md").read_text()


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_ids_with_line_separators_are_compared(lab, mark):
    """`str.splitlines` would end a line of JSON at each of them."""
    features = lab.features(120, 1, f"te{mark}st")
    lab.store("test", features)
    lab.evaluate(output=lab.folder / "old", weights="mean", bootstrap_samples=0)
    assert {name for _, name in read_run(lab.folder / "old").rows} == set(features.ids)
    lab.evaluate(compare=[lab.folder / "old"])
    (run,) = json.loads((lab.folder / "out" / "analysis.json").read_text())["test"]["runs"]
    assert {entry["memes"] for entry in run["comparisons"]} == {120}


def test_the_other_run_keeps_its_own_thresholds(lab):
    lab.store("dev", lab.features(60, 2, "dev"))
    lab.evaluate(
        output=lab.folder / "old", operating_point=OperatingPointSettings(dev=lab.folder / "dev"), bootstrap_samples=0
    )
    lab.evaluate(
        compare=[lab.folder / "old" / "predictions.jsonl"],
        operating_point=OperatingPointSettings(thresholds="official"),
    )
    (run,) = json.loads((lab.folder / "out" / "analysis.json").read_text())["test"]["runs"]
    old, new = (json.loads((lab.folder / name / "metrics.json").read_text())["test"] for name in ("old", "out"))
    for entry, head in zip(run["comparisons"], ("lmh", "lrc", "rkc", "krr"), strict=True):
        assert entry["difference"]["accuracy"]["value"] == pytest.approx(
            new[head]["accuracy"]["value"] - old[head]["accuracy"]["value"]
        )
        assert entry["difference"]["auroc"]["value"] == 0
    (lab.folder / "old" / "ra_hmd.json").unlink()
    result = lab.evaluate(compare=[lab.folder / "old"], operating_point=OperatingPointSettings(thresholds="official"))
    assert any("with its official threshold, it states none" in note for note in result["notes"])


def test_runs_that_cannot_be_compared(lab):
    lab.evaluate(output=lab.folder / "old", bootstrap_samples=0)
    features = lab.features(120, 1, "test")
    lab.store("more", features)
    with pytest.raises(UserError, match="none of the memes of query set 'more'; it has sets test"):
        lab.evaluate(queries=[lab.folder / "more"], compare=[lab.folder / "old"])
    lab.store("test", Features(features.ids, 1 - features.labels, features.hidden))
    with pytest.raises(UserError, match="120 memes of 'test' have another label"):
        lab.evaluate(compare=[lab.folder / "old"])
    with pytest.raises(UserError, match="does not exist; give the output folder"):
        read_run(lab.folder / "bank")
    (lab.folder / "bad.jsonl").write_text('{"set": "a"}\n')
    with pytest.raises(UserError, match="line 1 is not a prediction"):
        read_run(lab.folder / "bad.jsonl")


def test_groups_of_a_field():
    extras = [{"t": 1}, {"t": [0, 1]}, {"t": []}, {}, {"t": None}, {"t": "x"}, {"t": [1, 1]}]
    rows = group_rows(extras, "t", ("zero", "one"))
    assert {name: found.tolist() for name, found in rows.items()} == {
        "zero": [1], "one": [0, 1, 6], "x": [5], "none": [2]
    }  # fmt: skip
    assert parse_group("pridemm:target")[1] is not None
    assert parse_group("target") == ("target", None)
    with pytest.raises(UserError, match="no data set 'x'"):
        parse_group("x:target")
    with pytest.raises(UserError, match="pridemm has no task 'colour'"):
        parse_group("pridemm:colour")


def test_rates_have_exact_intervals():
    found, expected = rate(np.arange(20) < 3), binomtest(3, 20).proportion_ci(method="exact")
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert rate(np.zeros(10, bool))["high"] > 0.2, "no error among ten does not show that there are none"
    assert rate(np.zeros(0, bool))["value"] is None


def test_a_breakdown_is_the_metrics_of_each_group_alone(lab):
    features = lab.features(200, 1, "test")
    extras = [{"kind": ["a", "b"] if row % 5 == 0 else "a" if row % 2 else None, "rare": "x"} for row in range(200)]
    lab.store("fine_test", Features(features.ids, features.labels, features.hidden, extras=extras))
    queries = [lab.folder / "fine_test"]
    lab.evaluate(groups=["kind", "rare"], queries=queries)
    found = json.loads((lab.folder / "out" / "analysis.json").read_text())["fine_test"]["groups"]
    assert [field["field"] for field in found] == ["kind", "rare"]
    kind = found[0]
    assert kind["without"] == sum(extra["kind"] is None for extra in extras)
    lines = [json.loads(line) for line in (lab.folder / "out" / "predictions.jsonl").read_text().splitlines()]
    for group in kind["groups"]:
        rows = [i for i, extra in enumerate(extras) if group["group"] in (extra["kind"] or [])]
        labels, scores = (np.array([lines[i][key] for i in rows]) for key in ("label", "lrc_score"))
        said, values = scores >= 0.5, group["heads"]["lrc"]
        assert (group["memes"], group["positives"]) == (len(rows), labels.sum())
        assert values["accuracy"]["value"] == pytest.approx((said == labels).mean())
        assert values["auroc"]["value"] == pytest.approx(roc_auc_score(labels, scores))
        assert values["fpr"]["value"] == pytest.approx(said[labels == 0].mean())
        assert values["fnr"]["value"] == pytest.approx((~said)[labels == 1].mean())
    assert {group["group"]: group["small"] for group in kind["groups"]} == {"a": False, "b": True}
    report = (lab.folder / "out" / "report.md").read_text()
    assert r"| b \* | 40 |" in report
    with pytest.raises(UserError, match=r"no field 'colour' to group by; its fields are kind, rare"):
        lab.evaluate(groups=["colour"], queries=queries)
    with pytest.raises(UserError, match="extract it from imported data"):
        lab.evaluate(groups=["kind"], queries=[lab.store("plain", lab.features(20, 3, "p"))])
