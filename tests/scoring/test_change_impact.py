"""The predicted impact of a change equals the change that is made."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from small_banks import SAID, bank_of, labels_of, make_rows, points, queries_of

from ra_hmd.bank.planned_change import PlannedChange, PreviewedBank
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import decide
from ra_hmd.core.problem import Problem
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.bank_kernel import kernel_classifier_of, previewed_kernel
from ra_hmd.scoring.change_impact import change_impact
from ra_hmd.scoring.knn_classifier import ABSTAINED, knn_classify

PROBLEMS = [Problem(), Problem("single_label", 3), Problem("multi_label", 4)]


def carry_out(bank, planned):
    """Make the change for real: as removal, relabelling and addition."""
    if planned.remove:
        bank.remove(planned.remove, **SAID)
    if bank.plan_relabel(planned.relabel).relabelled.size:
        bank.relabel(planned.relabel, **SAID)
    if planned.add is not None:
        bank.add(*planned.add, **SAID)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    problem=st.sampled_from(PROBLEMS),
    removed=st.integers(0, 30),
    relabelled=st.integers(0, 10),
    added=st.integers(0, 15),
    k=st.sampled_from([1, 5, 20, 70]),
)
def test_the_predicted_impact_equals_the_change(tmp_path_factory, seed, problem, removed, relabelled, added, k):
    rng = np.random.default_rng(seed)
    bank = bank_of(tmp_path_factory.mktemp("effect") / "bank", problem=problem)
    chosen = [f"m{number}" for number in rng.permutation(60)]
    remove, change = chosen[:removed], chosen[removed : removed + relabelled]
    new = labels_of(problem, max(added, 1), seed)[:added]
    again = min(added, removed)  # some of the removed ids come back, with other embeddings
    names = [*remove[:again], *(f"q{number}" for number in range(added - again))]
    planned = PlannedChange(
        add=(make_rows(names, new), points(60, seed=seed)[20 : 20 + added]) if added else None,
        remove=remove,
        relabel=dict(zip(change, labels_of(problem, relabelled, seed + 1).tolist(), strict=True)),
    )
    if planned.add is None and not planned.remove and not planned.relabel:
        with pytest.raises(UserError, match="No change is given"):
            change_impact(bank, queries_of(), planned, Voting(k))
        return
    asked, voting = queries_of(), Voting(k, min_similarity=0.5, prior_correction=True)
    previewed = PreviewedBank(bank, planned)
    near, labels = previewed.nearest(asked, k), previewed.labels
    assert len(previewed.ids) == len(labels)
    impact = change_impact(bank, asked, planned, voting)
    before = knn_classify(asked, bank, voting, problem).verdict_values()
    assert bank.version == 1
    carry_out(bank, planned)
    real = bank.nearest(asked, k)
    assert np.array_equal(labels, bank.labels)
    assert np.array_equal(near.rows, real.rows)
    assert np.array_equal(near.similarity, real.similarity)
    found = knn_classify(asked, bank, voting, problem)
    votes, after = found.votes, found.verdict_values()
    flipped = [line for line, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    assert [flip["id"] for flip in impact["flips"]] == [asked.ids[line] for line in flipped]
    assert [flip["to"] for flip in impact["flips"]] == [after[line] for line in flipped]
    assert [flip["score_after"] for flip in impact["flips"]] == votes.scores[flipped].tolist()
    assert impact["abstained"]["after"] == votes.abstained.sum()
    assert sum(impact["flip_counts"].values()) == len(flipped)


@pytest.mark.parametrize(
    "planned",
    [
        PlannedChange(
            add=(make_rows([f"n{number}" for number in range(8)], [0, 1] * 4), queries_of().embedding[30:38])
        ),
        PlannedChange(remove=[f"m{number}" for number in (*range(9, 20), 21, 22, 25, 26)]),
        PlannedChange(relabel={f"m{number}": int(number < 12) for number in range(9, 25)}),
    ],
    ids=["add", "remove", "relabel"],
)
@pytest.mark.parametrize("name", ["bank", "bank.db"])
def test_the_predicted_impact_equals_the_change_in_both_backends(tmp_path, name, planned):
    """Among twenty equal points of both classes."""
    with bank_of(tmp_path / name) as bank:
        asked, voting = queries_of(), Voting(7)
        before = knn_classify(asked, bank, voting).verdict_values()
        impact = change_impact(bank, asked, planned, voting)
        carry_out(bank, planned)
        found = knn_classify(asked, bank, voting)
        votes, after = found.votes, found.verdict_values()
        flips = [(asked.ids[line], pair[1], votes.scores[line].tolist())
                 for line, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]  # fmt: skip
        assert [(flip["id"], flip["to"], flip["score_after"]) for flip in impact["flips"]] == flips
        assert flips


@pytest.mark.parametrize("name", ["bank", "bank.db"])
@pytest.mark.parametrize("version", [1, 2, 4])
def test_the_predicted_impact_of_a_rollback_equals_the_rollback(tmp_path, name, version):
    """Also where rows come back among copies of themselves that are labelled otherwise."""
    with bank_of(tmp_path / name) as bank:
        labels = dict(zip(bank.ids, bank.labels.tolist(), strict=True))
        assert len({labels[f"m{number}"] for number in range(9, 30)}) == 2  # equal points of both classes
        bank.remove([f"m{number}" for number in range(9, 20)], **SAID)
        bank.relabel({f"m{number}": 1 - labels[f"m{number}"] for number in (20, 21, 40)}, **SAID)
        bank.add(make_rows(["m9", "n"], [1, 0]), points(60)[[9, 25]], **SAID)
        bank.remove(["m25", "m26", "n"], **SAID)
        asked, planned, voting = queries_of(), PlannedChange(rollback=version), Voting(7)
        before = knn_classify(asked, bank, voting).verdict_values()
        previewed = PreviewedBank(bank, planned)
        near, would = previewed.nearest(asked, 7), previewed.labels
        impact = change_impact(bank, asked, planned, voting)
        assert bank.version == 5
        bank.rollback(version, **SAID)
        real = bank.nearest(asked, 7)
        assert np.array_equal(would, bank.labels)
        assert np.array_equal(near.rows, real.rows)
        assert np.array_equal(near.similarity, real.similarity)
        after = knn_classify(asked, bank, voting).verdict_values()
        flips = [(asked.ids[i], pair[0], pair[1]) for i, pair in enumerate(zip(before, after, strict=True))
                 if pair[0] != pair[1]]  # fmt: skip
        assert [(flip["id"], flip["from"], flip["to"]) for flip in impact["flips"]] == flips
        assert flips


@pytest.mark.parametrize("name", ["bank", "bank.db"])
def test_counts_and_paired_accuracy(tmp_path, name):
    """Two clusters; the bank has the labels of one of them wrong, and relabelling flips just its queries."""
    embedding = np.repeat(np.eye(2, dtype=np.float32), 4, axis=0)
    with bank_of(tmp_path / name, 8, embedding=embedding) as bank:
        bank.relabel(dict.fromkeys(bank.ids, 1), **SAID)
        asked = Embeddings([f"q{i}" for i in range(6)], np.array([0, 0, 1, 0, 1, -1]), embedding[[0, 1, 2, 3, 5, 6]])
        impact = change_impact(bank, asked, PlannedChange(relabel={f"m{i}": 0 for i in range(4)}), Voting(4))
        assert impact["flip_counts"] == {"1 → 0": 4}
        assert [flip["id"] for flip in impact["flips"]] == ["q0", "q1", "q2", "q3"]
        assert impact["flips"][0]["score_before"] == pytest.approx([1.0])
        assert impact["flips"][0]["score_after"] == pytest.approx([-1.0])
        paired = impact["paired"]
        assert paired["labelled"] == 5
        assert (paired["gained"], paired["lost"]) == (3, 1)
        assert paired["accuracy_before"] == pytest.approx(2 / 5)
        assert paired["accuracy_after"] == pytest.approx(4 / 5)
        assert paired["p"] == pytest.approx(binomtest(3, 4).pvalue)
        gone = change_impact(
            bank, asked, PlannedChange(remove=[f"m{i}" for i in range(4)]), Voting(4, min_similarity=0.5)
        )
        assert gone["flip_counts"] == {f"1 → {ABSTAINED}": 4}
        assert gone["abstained"] == {"before": 0, "after": 4}
        unlabelled = Embeddings(asked.ids, np.full(6, -1), asked.embedding)
        assert change_impact(bank, unlabelled, PlannedChange(remove=["m0"]), Voting(4))["paired"] is None


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.kind)
@pytest.mark.parametrize("count", [2, 40], ids=["updated", "tuned again"])
def test_the_flips_of_the_kernel_head_are_those_after_the_change(tmp_path, problem, count):
    bank, asked = bank_of(tmp_path / "bank", problem=problem), queries_of()
    asked = Embeddings(asked.ids, labels_of(problem, len(asked.ids), 7), asked.embedding)
    asked = asked.select(np.delete(np.arange(len(asked)), 3))  # a row of zeros, on which the vote abstains
    kernel = kernel_classifier_of(bank, problem, KernelSettings())
    before = kernel.predict(asked).scores
    new = labels_of(problem, count, 3)
    planned = PlannedChange(add=(make_rows([f"n{row}" for row in range(count)], new), points(60, seed=1)[:count]))
    would = previewed_kernel(kernel, bank, PreviewedBank(bank, planned)).predict(asked).scores
    moved = np.abs(would - before).argmax(axis=0)
    limits = np.take_along_axis((would + before) / 2, moved[None], axis=0)[0]  # the verdict that moves most flips
    impact = change_impact(bank, asked, planned, Voting(5), None, kernel, limits)
    assert impact["krr"].keys() == {"flips", "flip_counts", "paired"}
    carry_out(bank, planned)
    after = kernel_classifier_of(bank, problem, KernelSettings()).predict(asked).scores
    old, new = (decide(scores, limits, problem).tolist() for scores in (before, after))
    flips = [(name, one, other) for name, one, other in zip(asked.ids, old, new, strict=True) if one != other]
    assert flips or problem.kind == "single_label"
    assert [(flip["id"], flip["from"], flip["to"]) for flip in impact["krr"]["flips"]] == flips
    for flip in impact["krr"]["flips"]:
        assert flip["score_after"] == pytest.approx(after[asked.ids.index(flip["id"])].tolist(), abs=1e-8)
    assert impact["krr"]["paired"]["gained"] + impact["krr"]["paired"]["lost"] <= len(flips)


def test_a_plan_that_cannot_be_carried_out_is_refused(tmp_path):
    bank, asked = bank_of(tmp_path / "bank"), queries_of()
    for planned, message in (
        (PlannedChange(remove=["nobody"]), "does not have these"),
        (PlannedChange(relabel={"nobody": 1}), "does not have these"),
        (PlannedChange(relabel={"m1": 7}), r"labels \[7\]"),
        (PlannedChange(remove=["m1"], relabel={"m1": 1}), "removed and relabelled"),
        (PlannedChange(add=(make_rows(["m1"], [0]), points(1))), "has these already"),
        (PlannedChange(add=(make_rows(["x"], [0]), points(1, 3))), "3 dimensions"),
        (PlannedChange(remove=bank.ids), "have no neighbour"),
        (PlannedChange(rollback=1), "holds at version 1 what it held at 1"),
        (PlannedChange(rollback=3), "versions 1 to 1, not 3"),
        (PlannedChange(remove=["m1"], rollback=1), "stands alone"),
        (PlannedChange(), "No change is given"),
    ):
        with pytest.raises(UserError, match=message):
            change_impact(bank, asked, planned, Voting(5))
    assert bank.version == 1
