"""The kernel head: its equality with a direct solution, leave-one-out, updates, evidence and large banks."""

from dataclasses import replace

import numpy as np
import pytest

from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import BINARY, UNLABELLED, Problem
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.scoring.kernel_classifier import (
    ExactKernelClassifier,
    KernelClassifier,
    LocalKernelClassifier,
    fit_kernel_classifier,
    views_of,
)

SINGLE, MULTI = Problem("single_label", 3), Problem("multi_label", 3)
PROBLEMS = pytest.mark.parametrize("problem", [BINARY, SINGLE, MULTI], ids=lambda problem: problem.kind)
BALANCE = pytest.mark.parametrize("balanced", [False, True], ids=["plain", "balanced"])
TWO_VIEWS = ("embedding", "untuned")


def rows_of(count: int, problem: Problem = BINARY, *, seed: int = 0, name: str = "row") -> Embeddings:
    """Rows whose classes are blobs, in two views."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(problem.classes, count, p=[0.7, *[0.3 / (problem.classes - 1)] * (problem.classes - 1)])
    centres = np.random.default_rng(5).normal(size=(problem.classes, 6))
    vectors = (centres[labels] + generator.normal(size=(count, 6))).astype(np.float32)
    untuned = (vectors[:, ::-1] @ np.random.default_rng(6).normal(size=(6, 4))).astype(np.float32)
    if problem.kind == "multi_label":
        labels = np.stack([labels == 1, labels == 2, generator.random(count) < 0.4], axis=1).astype(np.int64)
    return Embeddings([f"{name}{row}" for row in range(count)], labels, vectors, views={"untuned": untuned})


def directly(head: KernelClassifier, rows: Embeddings, queries: Embeddings) -> np.ndarray:
    """Scores [Q, C] by numpy.linalg.solve on the whole system, with the head's kernel, noise and weights."""
    kernel, weights = head.kernel, head.weights(rows.labels)
    names = kernel.used
    left, right = (kernel.standardised(views_of(one, names)) for one in (rows, queries))
    targets = head.problem.signs(rows.labels)
    solved = [
        np.linalg.solve(kernel(left, left) + np.diag(head.parameters.noise / weights[:, group]), part)
        for group, part in enumerate(np.split(targets, weights.shape[1], axis=1))
    ]
    return kernel(right, left) @ np.concatenate(solved, axis=1)


@PROBLEMS
@BALANCE
def test_scores_are_those_of_a_direct_solution(problem: Problem, balanced: bool) -> None:
    rows, queries = rows_of(60, problem), rows_of(20, problem, seed=1, name="query")
    head = fit_kernel_classifier(rows, problem, KernelSettings(views=TWO_VIEWS, balanced=balanced))
    found = head.predict(queries)
    np.testing.assert_allclose(found.scores, directly(head, rows, queries), atol=1e-8)
    np.testing.assert_allclose(head.predict(queries, 1000).shares.sum(axis=1), found.scores, atol=1e-10)
    np.testing.assert_allclose(found.shares.sum(axis=1) + found.rest, found.scores, atol=1e-10)


@PROBLEMS
@BALANCE
def test_after_two_hundred_changes_scores_are_those_of_a_direct_solution(problem: Problem, balanced: bool) -> None:
    pool, queries = rows_of(300, problem), rows_of(20, problem, seed=1, name="query")
    generator = np.random.default_rng(3)
    held, labels = list(range(100)), pool.labels.copy()
    head = fit_kernel_classifier(pool.select(np.arange(100)), problem, KernelSettings(balanced=balanced))
    for _ in range(200):
        action = generator.integers(3)
        if action == 0 and len(held) < 300:
            held.append(int(generator.choice(np.setdiff1d(np.arange(300), held))))
        elif action == 1 and len(held) > 50:
            held.remove(int(generator.choice(held)))
        else:
            row = int(generator.choice(held))
            labels[row] = labels[int(generator.integers(300))]
        rows = replace(pool, labels=labels).select(np.array(held))
        head = head.with_rows(rows)
    np.testing.assert_allclose(head.predict(queries).scores, directly(head, rows, queries), atol=1e-8)
    assert list(head.rows.ids) == list(rows.ids)


@PROBLEMS
@BALANCE
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "local"])
def test_leave_one_out_is_that_of_systems_without_each_row(problem: Problem, balanced: bool, exact: bool) -> None:
    rows = rows_of(30, problem)
    settings = KernelSettings(balanced=balanced, local_rows=30, **({} if exact else {"exact_rows": 1}))
    head = fit_kernel_classifier(rows, problem, settings)
    left_out = np.concatenate(
        [directly(head, rows.select(np.setdiff1d(np.arange(30), [row])), rows.select(np.array([row])))
         for row in range(30)]
    )  # fmt: skip
    np.testing.assert_allclose(head.leave_one_out(), left_out, atol=1e-8)
    np.testing.assert_allclose(head.predict(rows).scores, left_out, atol=1e-8)  # no row votes for itself


def test_a_large_bank_is_answered_by_the_nearest_rows() -> None:
    rows, queries = rows_of(400), rows_of(50, seed=1, name="query")
    exact = fit_kernel_classifier(rows, BINARY, KernelSettings())
    for views in (("embedding",), TWO_VIEWS):
        local = fit_kernel_classifier(rows, BINARY, KernelSettings(views=views, exact_rows=300, local_rows=400))
        whole = fit_kernel_classifier(rows, BINARY, KernelSettings(views=views))
        assert isinstance(exact, ExactKernelClassifier)
        assert isinstance(local, LocalKernelClassifier)
        np.testing.assert_allclose(local.predict(queries).scores, whole.predict(queries).scores, atol=1e-8)
        near = fit_kernel_classifier(rows, BINARY, KernelSettings(views=views, exact_rows=300, local_rows=100))
        agree = (near.predict(queries).scores >= 0) == (whole.predict(queries).scores >= 0)
        assert agree.mean() >= 0.9


def test_evidence_names_the_rows_that_add_most() -> None:
    rows, query = rows_of(40), rows_of(1, seed=1, name="query")
    head = fit_kernel_classifier(rows, BINARY, KernelSettings())
    found = head.predict(query, 5)
    every = head.predict(query, 40)
    strength = np.abs(every.shares[0, :, 0])
    assert (np.diff(strength) <= 0).all()
    assert found.rows[0].tolist() == every.rows[0, :5].tolist()
    assert sorted(every.rows[0].tolist()) == list(range(40))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_rows(count: int) -> None:
    rows, queries = rows_of(count), rows_of(3, seed=1, name="query")
    head = fit_kernel_classifier(rows, BINARY, KernelSettings(views=TWO_VIEWS))
    found = head.predict(queries)
    assert found.rows.shape == (3, count)
    assert np.isfinite(found.scores).all()
    assert (np.sign(found.scores[:, 0]) == (0 if not count else np.sign(found.scores[:, 0]))).all()
    np.testing.assert_allclose(found.scores, directly(head, rows, queries) if count else 0, atol=1e-10)
    assert head.leave_one_out().shape == (count, 1)


def test_a_bank_of_one_class_answers_that_class_and_equal_rows_are_no_obstacle() -> None:
    rows = rows_of(20)
    one = replace(rows, labels=np.ones(20, np.int64))
    head = fit_kernel_classifier(one, BINARY, KernelSettings(balanced=True))
    assert (head.predict(rows_of(5, seed=1, name="query")).scores > 0).all()
    equal = replace(rows, embedding=np.ones((20, 6), np.float32))
    scores = fit_kernel_classifier(equal, BINARY, KernelSettings()).predict(rows_of(5, seed=1, name="query")).scores
    assert np.isfinite(scores).all()


def test_views_that_tell_the_classes_apart_get_the_weight() -> None:
    rows = rows_of(200)
    noise = np.random.default_rng(9).normal(size=(200, 6)).astype(np.float32)
    head = fit_kernel_classifier(replace(rows, views={"untuned": noise}), BINARY, KernelSettings(views=TWO_VIEWS))
    assert head.kernel.weights["embedding"] >= 0.75
    assert head.parameters.losses["embedding"] < head.parameters.losses["untuned"]


def test_what_cannot_be_compared_is_named() -> None:
    rows = rows_of(10)
    with pytest.raises(UserError, match="'hidden'"):
        fit_kernel_classifier(rows, BINARY, KernelSettings(views=("hidden",)))
    with pytest.raises(UserError, match="have no label"):
        fit_kernel_classifier(replace(rows, labels=np.full(10, UNLABELLED)), BINARY, KernelSettings())
    broken = rows.embedding.copy()
    broken[3] = np.nan
    with pytest.raises(UserError, match="not finite"):
        fit_kernel_classifier(replace(rows, embedding=broken), BINARY, KernelSettings())
