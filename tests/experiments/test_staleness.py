"""The bank as it ages: cells recomputed from scratch, periods, gaps, the lock."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from json_files import read_json
from sklearn.metrics import accuracy_score, roc_auc_score
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.experiments.common import regress
from ra_hmd.experiments.staleness.config import StalenessSettings
from ra_hmd.experiments.staleness.periods import periods_of
from ra_hmd.experiments.staleness.run import staleness
from ra_hmd.features.test_lock import final_records
from ra_hmd.models.head import load_head
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.voting import Voting

YEARS = (2019, 2020, 2021, 2022)
FEW = StalenessSettings(key="year", bootstrap_samples=40, topk=7)


def drifting(lab, rows=60, *, years=YEARS):
    """One store whose domain turns around between the second and the third year; rows shuffled."""
    parts = [lab.features(rows, year, f"{year}-", domain=float(year > 2020)) for year in years]
    order = np.random.default_rng(0).permutation(rows * len(parts))
    whole = replace(
        parts[0],
        ids=[name for part in parts for name in part.ids],
        labels=np.concatenate([part.labels for part in parts]),
        hidden=np.concatenate([part.hidden for part in parts]),
        lmh_score=None,
        extras=[{"year": year, "month": f"{year}-0{1 + row % 2}-15"} for year in years for row in range(rows)],
    )
    return whole.select(order)


@pytest.fixture
def store(lab):
    return lab.store("dev", drifting(lab))


def test_every_cell_is_that_of_the_bank_of_its_age(lab, store):
    result = staleness(lab.folder / "head", [store], lab.folder / "out", settings=FEW)
    features = drifting(lab)
    seen = Embeddings.of(features, load_head(lab.folder / "head"))
    year = np.array([extra["year"] for extra in features.extras])
    assert [(cell["period"], cell["age"]) for cell in result["cells"]] == [
        (str(t), age) for t in YEARS[1:] for age in range(1, t - YEARS[0] + 1)
    ]
    for cell in result["cells"]:
        t = int(cell["period"])
        frozen_at = t - cell["age"]
        assert cell["frozen_at"] == str(frozen_at)
        bank, asked = (seen.select(np.flatnonzero(chosen)) for chosen in (year <= frozen_at, year == t))
        assert cell["bank_rows"] == len(bank) == 60 * (frozen_at - 2018)
        scores = Voting(7).vote(bank.nearest(asked, 7), bank.labels).scores[:, 0]
        assert cell["auroc"]["value"] == pytest.approx(roc_auc_score(asked.labels, scores))
        assert cell["accuracy"]["value"] == pytest.approx(accuracy_score(asked.labels, scores >= 0))
        assert cell["accuracy"]["low"] <= cell["accuracy"]["value"] <= cell["accuracy"]["high"]
        scores = regress(asked, bank, KernelSettings())
        assert cell["krr"]["auroc"]["value"] == pytest.approx(roc_auc_score(asked.labels, scores))
        assert cell["krr"]["accuracy"]["value"] == pytest.approx(accuracy_score(asked.labels, scores >= 0))


def test_a_bank_that_is_updated_follows_the_drift_and_a_frozen_one_does_not(lab, store):
    result = staleness(lab.folder / "head", [store], lab.folder / "out", settings=FEW)
    accuracy = {(cell["period"], cell["age"]): cell["accuracy"]["value"] for cell in result["cells"]}
    assert accuracy["2020", 1] > 0.8, "before the turn"
    assert accuracy["2021", 1] < 0.5, "the first period after the turn is new to every bank"
    assert accuracy["2022", 1] > 0.8
    assert accuracy["2022", 3] < 0.5
    gain = result["updated_gain"]["2022"]
    assert gain["value"] == pytest.approx(accuracy["2022", 1] - accuracy["2022", 3])
    assert gain["low"] > 0
    gain, kernel = result["updated_gain_krr"]["2022"], [cell for cell in result["cells"] if cell["period"] == "2022"]
    assert gain["value"] == pytest.approx(kernel[0]["krr"]["accuracy"]["value"] - kernel[2]["krr"]["accuracy"]["value"])
    assert set(result["updated_gain"]) == {"2021", "2022"}, "in the second period both banks are the same"


@pytest.mark.renders
def test_everything_is_written(lab, store):
    result = staleness(lab.folder / "head", [store], lab.folder / "out", settings=FEW, command="the command")
    output = lab.folder / "out"
    assert {path.name for path in output.iterdir()} == {
        "staleness.json",
        "staleness.md",
        "staleness.png",
        "ra_hmd.json",
    }
    assert json.loads((output / "staleness.json").read_text()) == result
    report = (output / "staleness.md").read_text()
    for text in (
        "RKC: accuracy by age",
        "KRR: AUROC by age",
        "by the KRR",
        "KRR compares embedding",
        "age 3",
        "2022",
        "the command",
        "all earlier periods",
    ):
        assert text in report
    assert read_json(output / "ra_hmd.json").arguments.key == "year"


def test_stores_in_order_are_periods_of_their_own(lab):
    for place, domain in (("old", 0.0), ("new", 1.0)):
        lab.store(f"train/{place}", lab.features(80, 3, f"t{place}", domain=domain))
        lab.store(f"dev/{place}", lab.features(40, 4, f"d{place}", domain=domain))
    banks, queries = ([lab.folder / side / name for name in ("old", "new")] for side in ("train", "dev"))
    few = StalenessSettings(bootstrap_samples=40)
    result = staleness(lab.folder / "head", banks, lab.folder / "out", queries=queries, settings=few, final=True)
    (cell,) = result["cells"]
    assert (cell["period"], cell["frozen_at"], cell["bank_rows"]) == ("new", "old", 80)
    assert [one["queries"] for one in result["periods"]] == [40, 40]
    named = few.replace(order=("then", "now"))
    again = staleness(lab.folder / "head", banks, lab.folder / "out", queries=queries, settings=named, final=True)
    assert again["cells"] == [cell | {"period": "now", "frozen_at": "then"}]
    one = few.replace(order=("then",))
    with pytest.raises(UserError, match="--order names 1 periods, there are 2 bank stores"):
        staleness(lab.folder / "head", banks, lab.folder / "out", queries=queries, settings=one, final=True)
    with pytest.raises(UserError, match="2 bank stores and 1 query stores"):
        staleness(lab.folder / "head", banks, lab.folder / "out", queries=queries[:1], settings=few, final=True)
    with pytest.raises(UserError, match="one period"):
        staleness(lab.folder / "head", banks[:1], lab.folder / "out", settings=few, final=True)
    with pytest.raises(UserError, match="given twice"):
        staleness(lab.folder / "head", [banks[1], *banks], lab.folder / "out", settings=few, final=True)
    with pytest.raises(UserError, match=r"new \(2 times\)"):
        staleness(lab.folder / "head", [banks[1], queries[1]], lab.folder / "out", settings=few, final=True)


def test_banks_of_one_size_and_of_a_window(lab, store):
    same = FEW.replace(window=1, bank_size=20)
    result = staleness(lab.folder / "head", [store], lab.folder / "out", settings=same)
    assert {cell["bank_rows"] for cell in result["cells"]} == {20}
    report = (lab.folder / "out/staleness.md").read_text()
    assert "the last 1 periods of its time, 20 of them" in report
    too_many = staleness(lab.folder / "head", [store], lab.folder / "big", settings=same.replace(bank_size=62))
    assert {cell["why"] for cell in too_many["cells"]} == {"the bank has no 62 memes in equal parts of both classes"}
    assert "Cells without a value" in (lab.folder / "big/staleness.md").read_text()


def test_periods_of_one_class_or_of_few_memes_are_said(lab):
    features = drifting(lab)
    year = np.array([extra["year"] for extra in features.extras])
    kept = (year != 2020) | (np.cumsum(year == 2020) <= 5)
    kept &= (year != 2021) | (features.labels == 1)
    kept &= (year != 2019) | (features.labels == 0)
    place = lab.store("dev", features.select(np.flatnonzero(kept)))
    result = staleness(lab.folder / "head", [place], lab.folder / "out", settings=FEW.replace(min_memes=6))
    assert result["notes"] == [
        "2019: all memes are of class 0, so the AUROC is undefined",
        "2020: not evaluated, 5 memes are fewer than 6",
        "2021: all memes are of class 1, so the AUROC is undefined",
    ]
    cells = {(cell["period"], cell["age"]): cell for cell in result["cells"]}
    assert {period for period, _ in cells} == {"2021", "2022"}
    assert cells["2021", 2]["why"] == "the bank holds class 0 alone"
    assert cells["2021", 1]["auroc"]["value"] is None
    assert cells["2021", 1]["accuracy"]["value"] is not None


def test_the_test_split_needs_final(lab):
    place = lab.store("test_late", drifting(lab))
    with pytest.raises(UserError, match="--final"):
        staleness(lab.folder / "head", [place], lab.folder / "out", settings=FEW)
    assert not (lab.folder / "out").exists()
    staleness(lab.folder / "head", [place], lab.folder / "out", settings=FEW, final=True)
    assert len(final_records(lab.folder / "head")) == 1


def test_the_command_line(lab, store):
    words = ["staleness", "--checkpoint", str(lab.folder / "head"), "--bank", str(store), "--period-key", "month"]
    words += ["--output", str(lab.folder / "out"), "--date-part", "year", "--bootstrap-samples", "100"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    result = json.loads((lab.folder / "out/staleness.json").read_text())
    assert [period["name"] for period in result["periods"]] == list(map(str, YEARS))
    several = [*words, "--views", "embedding", "--views", "hidden"]
    done = CliRunner().invoke(app, several)
    assert done.exit_code == 0, done.output
    again = json.loads((lab.folder / "out/staleness.json").read_text())
    assert [cell["auroc"] for cell in again["cells"]] == [cell["auroc"] for cell in result["cells"]]
    assert [cell["krr"] for cell in again["cells"]] != [cell["krr"] for cell in result["cells"]]
    done = CliRunner().invoke(app, [*words, "--views", "untuned"])
    assert (done.exit_code, "View 'untuned' is not among" in done.output) == (2, True)
    done = CliRunner().invoke(app, [*words, "--order", "a,b", "--bins", "2"])
    assert done.exit_code == 2
    assert "give one" in done.output


def values(raw):
    return [(Path("s"), f"m{number}", value) for number, value in enumerate(raw)]


def test_periods_of_numbers_dates_and_names():
    names, found = periods_of(values([3, "1", 2.5, 3]), "k")
    assert (names, found.tolist()) == (["1", "2.5", "3"], [2, 0, 1, 2])
    dates = ["2021-03-01", "2020-12-31T23:00:00", "2021-03-09"]
    assert periods_of(values(dates), "k")[0] == ["2020-12-31", "2021-03-01", "2021-03-09"]
    names, found = periods_of(values(dates), "k", date_part="month")
    assert (names, found.tolist()) == (["2020-12", "2021-03"], [1, 0, 1])
    names, found = periods_of(values(["late", "early", "late"]), "k", order=["early", "middle", "late"])
    assert (names, found.tolist()) == (["early", "middle", "late"], [2, 0, 2])


@pytest.mark.parametrize(
    ("raw", "options", "message"),
    [
        ([1, None], {}, r"have no 'k' \(1\):\n  - s: meme 'm1'"),
        (["spring", 4], {}, r"for example '4', 'spring'.*--order"),
        (["a", "c"], {"order": ["a", "b"]}, "lacks 'c'"),
        (["a"], {"order": ["a", "a"]}, "names a period twice"),
        ([1, 1, 2], {"bins": 3}, "has 2 values, 3 periods"),
    ],
)
def test_periods_that_cannot_be_told(raw, options, message):
    with pytest.raises(UserError, match=message):
        periods_of(values(raw), "k", **options)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=60), st.integers(2, 6))
def test_bins_keep_the_order_and_equal_values_together(raw, bins):
    if len(set(raw)) < bins:
        return
    names, found = periods_of(values(raw), "k", bins=bins)
    assert 2 <= len(names) <= bins
    assert sorted(set(found.tolist())) == list(range(len(names)))
    by_value = {}
    for value, period in zip(raw, found.tolist(), strict=True):
        assert by_value.setdefault(value, period) == period
    ordered = [by_value[value] for value in sorted(by_value)]
    assert ordered == sorted(ordered)


def test_a_head_of_several_classes_is_refused(lab, store):
    lab.head("several", output_dim=3, problem_type="single_label")
    with pytest.raises(UserError, match="`problem_type: single_label`"):
        staleness(lab.folder / "several", [store], lab.folder / "out", settings=FEW)
