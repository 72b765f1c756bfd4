"""The vote against a loop that says what it means, for every setting and kind of label; the same from every bank."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_banks import bank_of, labels_of, queries_of

from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import Problem
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.knn import ABSENT, Neighbours, search
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.knn_classifier import ABSTAINED, knn_classify

PROBLEMS = [Problem(), Problem("single_label", 3), Problem("multi_label", 4)]
WEIGHTS = ["arithmetic", "mean", "similarity"]


def naive_vote(found, labels, problem, voting):
    """Scores [Q][C] and who abstained, from lists of (row, similarity) per query, nearest first."""
    scores, abstained = [], []
    for pairs in found:
        line, heard = [], False
        for c in range(problem.outputs):
            total = weight_sum = 0.0
            voters = [pair for pair in pairs if voting.min_similarity is None or pair[1] >= voting.min_similarity]
            for rank, (row, similarity) in enumerate(pairs):
                if voting.min_similarity is not None and similarity < voting.min_similarity:
                    continue
                weight = {
                    "arithmetic": voting.topk - rank,
                    "mean": 1,
                    "similarity": max(similarity, 0),
                }[voting.weights]
                label = labels[row]
                if problem.kind == "single_label":
                    sign = 1 if label == c else 0
                    alike = sum(1 for other in labels if other == label)
                    kinds = problem.outputs
                else:
                    member = label[c] if problem.kind == "multi_label" else label
                    sign = 1 if member == 1 else -1
                    column = [other[c] if problem.kind == "multi_label" else other for other in labels]
                    alike = sum(1 for other in column if other == member)
                    kinds = 2
                if voting.prior_correction:
                    weight *= len(labels) / (kinds * alike)
                worth = 1 if voting.weights == "similarity" else similarity
                total += weight * sign * worth
                weight_sum += weight
            heard |= weight_sum > 0 and any(similarity != 0 for _, similarity in voters)
            line.append(total / weight_sum if weight_sum > 0 else 0.0)
        scores.append(line)
        abstained.append(not heard)
    return np.array(scores), abstained


def lists(near: Neighbours):
    """Neighbours as lists of (row, similarity)."""
    return [
        [(row, float(similarity)) for row, similarity in zip(*pair, strict=True) if row != ABSENT]
        for pair in zip(near.rows.tolist(), near.similarity, strict=True)
    ]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.kind)
def test_every_setting_equals_the_loop(problem):
    rng = np.random.default_rng(1)
    labels = labels_of(problem, 70)
    near = search(rng.normal(size=(50, 6)), rng.normal(size=(70, 6)), 12)
    for weights, least, prior in itertools.product(WEIGHTS, [None, -1.0, 0.3, 0.8, 1.0], [False, True]):
        voting = Voting(12, weights, least, prior)
        votes = voting.vote(near, labels, problem)
        scores, abstained = naive_vote(lists(near), labels.tolist(), problem, voting)
        assert np.allclose(votes.scores, scores, atol=1e-12), voting
        assert votes.abstained.tolist() == abstained
        assert (np.abs(votes.scores) <= 1 + 1e-6).all()
    assert Voting(12, "mean", 1.0).vote(near, labels, problem).abstained.all()  # the last settings did abstain
    some = Voting(12, "mean", 0.8).vote(near, labels, problem).abstained
    assert some.any()
    assert not some.all()


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    problem=st.sampled_from(PROBLEMS),
    weights=st.sampled_from(WEIGHTS),
    least=st.one_of(st.none(), st.floats(-1, 1, width=32)),
    prior=st.booleans(),
    rows=st.integers(1, 25),
    k=st.integers(1, 30),
)
def test_any_vote_equals_the_loop(seed, problem, weights, least, prior, rows, k):
    """Coarse embeddings: ties, zero vectors and similarities exactly at the limit."""
    rng = np.random.default_rng(seed)
    near = search(rng.integers(-1, 2, (8, 3)), rng.integers(-1, 2, (rows, 3)), k)
    labels = labels_of(problem, rows, seed)
    voting = Voting(k, weights, least, prior)
    votes = voting.vote(near, labels, problem)
    scores, abstained = naive_vote(lists(near), labels.tolist(), problem, voting)
    assert np.allclose(votes.scores, scores, atol=1e-12)
    assert votes.abstained.tolist() == abstained
    assert (votes.scores[votes.abstained] == 0).all()


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.kind)
def test_folder_milvus_memory_and_loop_agree(tmp_path, problem):
    asked = queries_of()
    with bank_of(tmp_path / "bank", problem=problem) as folder, bank_of(tmp_path / "bank.db", problem=problem) as file:
        near = [bank.nearest(asked, 9) for bank in (folder, file)]
        held = folder.to_embeddings()
        near.append(held.nearest(asked, 9))
        for weights, least, prior in itertools.product(WEIGHTS, [None, 0.7], [False, True]):
            voting = Voting(9, weights, least, prior)
            votes = [voting.vote(found, folder.labels, problem) for found in near]
            scores, abstained = naive_vote(lists(near[0]), folder.labels.tolist(), problem, voting)
            assert np.array_equal(votes[0].scores, votes[1].scores)
            assert np.allclose(votes[0].scores, scores, atol=1e-12)
            assert votes[0].abstained.tolist() == abstained
            assert np.array_equal(votes[0].scores, votes[2].scores)


def test_the_order_of_the_bank_does_not_matter():
    rng = np.random.default_rng(0)
    embedding, labels = rng.normal(size=(50, 6)), rng.integers(0, 2, 50)
    order = rng.permutation(50)
    asked = rng.normal(size=(20, 6))
    voting = Voting(10, "similarity", 0.1, True)
    one = voting.vote(search(asked, embedding, 10), labels)
    other = voting.vote(search(asked, embedding[order], 10), labels[order])
    assert np.allclose(one.scores, other.scores, atol=1e-6)


def test_weights_with_k_above_the_bank_are_the_first_of_k():
    """As in the released `compute_metrics_retrieval`: K, K − 1, … cut to those found; the mean is of those found."""
    near = Neighbours(np.array([[2, 0, 1, ABSENT, ABSENT]]), np.array([[0.9, 0.8, 0.5, 0, 0]], np.float32))
    labels = np.array([0, 0, 1])
    weighted = (5 * 0.9 - 4 * 0.8 - 3 * 0.5) / (5 + 4 + 3)
    assert Voting(5).vote(near, labels).scores[0, 0] == pytest.approx(weighted)
    assert Voting(5, "mean").vote(near, labels).scores[0, 0] == pytest.approx((0.9 - 0.8 - 0.5) / 3)


def test_prior_correction_hears_the_rare_class():
    """One hateful meme among nine benign ones, all equally near: corrected, both classes weigh the same."""
    near = Neighbours(np.arange(10)[None], np.ones((1, 10), np.float32))
    labels = np.array([1] + [0] * 9)
    assert Voting(10, "mean").vote(near, labels).scores[0, 0] == pytest.approx(-0.8)
    assert Voting(10, "mean", prior_correction=True).vote(near, labels).scores[0, 0] == pytest.approx(0)


def test_abstention():
    bank = Embeddings(["a"], np.array([1]), np.array([[1.0, 0.0]], np.float32))
    asked = Embeddings(["a", "b"], np.zeros(2, int), np.array([[1.0, 0.0], [0.0, 1.0]], np.float32))
    near = bank.nearest(asked, 3)
    with pytest.raises(UserError, match="have no neighbour"):
        Voting(3).vote(near, bank.labels)  # `a` has only itself
    votes = Voting(3, min_similarity=-1.0).vote(near, bank.labels)
    assert votes.abstained.tolist() == [True, True]
    near = Neighbours(near.rows[1:], near.similarity[1:])
    for weights in WEIGHTS:  # a neighbour at a right angle adds nothing, whatever its weight
        assert Voting(3, weights).vote(near, bank.labels).abstained.tolist() == [True]
    slanted = Neighbours(near.rows, np.where(near.present, np.float32(-0.01), 0))
    assert not Voting(3, min_similarity=-1.0).vote(slanted, bank.labels).abstained.any()
    empty = Voting(3, min_similarity=0.5).vote(Neighbours(np.full((2, 3), ABSENT), np.zeros((2, 3))), np.zeros(0, int))
    assert empty.abstained.all()
    assert empty.scores.shape == (2, 1)
    with pytest.raises(UserError, match=r"in \[-1, 1\]"):
        Voting(min_similarity=2.0)


@pytest.mark.parametrize("problem", [Problem(), Problem("single_label", 3), Problem("multi_label", 3)])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_an_embedding_of_length_zero_abstains(problem, weights):
    """It has similarity 0 to every row: no row is near, and none of class 0 is a reason for a verdict of class 1."""
    labels = np.zeros((4, 3) if problem.kind == "multi_label" else 4, int)
    bank = Embeddings(list("abcd"), labels, np.eye(4, 8, dtype=np.float32) + np.float32(0.1))
    asked = Embeddings(["z", "y"], labels[:2], np.stack([np.zeros(8), np.ones(8)]).astype(np.float32))
    found = knn_classify(asked, bank, Voting(3, weights), problem)
    votes = found.votes
    assert votes.abstained.tolist() == [True, False]
    assert not votes.scores[0].any()
    assert found.verdict_values()[0] == ABSTAINED


def test_a_meme_at_the_least_similarity_votes():
    near = Neighbours(np.array([[0]]), np.array([[0.5]], np.float32))
    assert not Voting(1, "mean", 0.5).vote(near, np.array([1])).abstained.any()
    assert Voting(1, "mean", 0.500001).vote(near, np.array([1])).abstained.all()
