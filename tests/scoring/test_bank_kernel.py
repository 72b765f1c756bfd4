"""The kernel head of an example bank: the same in every process, whatever versions it has seen."""

from pathlib import Path

import numpy as np
import pytest

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.planned_change import PlannedChange, PreviewedBank
from ra_hmd.bank.versions import BankRows
from ra_hmd.core.problem import BINARY
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.scoring.bank_kernel import kernel_classifier_of, previewed_kernel, refreshed_kernel

BY = {"author": "ana", "reason": "a test"}


def drawn(count: int, name: str, seed: int) -> tuple[BankRows, np.ndarray]:
    """Rows whose class is that of the first coordinate, and their vectors [M, 5]."""
    vectors = np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)
    return BankRows([f"{name}{row}" for row in range(count)], (vectors[:, 0] > 0).astype(np.int64)), vectors


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    rows, vectors = drawn(60, "m", 0)
    return Bank.create(tmp_path / "bank", rows, vectors, fingerprint={}, **BY)


@pytest.mark.parametrize("exact_rows", [5000, 40], ids=["exact", "local"])
def test_a_process_that_saw_every_version_scores_as_one_that_opens_the_bank_now(bank: Bank, exact_rows: int) -> None:
    settings = KernelSettings(exact_rows=exact_rows, local_rows=20)
    queries = Embeddings([f"q{row}" for row in range(9)], np.zeros(9, np.int64), drawn(9, "q", 8)[1])
    follower = kernel_classifier_of(bank, BINARY, settings)
    anchors = set()
    changes = [
        lambda: bank.add(*drawn(1, "a", 1), **BY),
        lambda: bank.remove(["m3", "m4"], **BY),
        lambda: bank.relabel({"m7": 1 - int(bank.labels[bank.ids.index("m7")])}, **BY),
        lambda: bank.add(*drawn(30, "b", 2), **BY),
        lambda: bank.rollback(2, **BY),
        lambda: bank.add(*drawn(2, "c", 3), **BY),
    ]
    for change in changes:
        change()
        follower = refreshed_kernel(follower, bank)
        with Bank.open(bank.location) as other:
            fresh = kernel_classifier_of(other, BINARY, settings)
        np.testing.assert_allclose(follower.predict(queries).scores, fresh.predict(queries).scores, atol=1e-9)
        assert follower.parameters.version == fresh.parameters.version
        assert follower.predict(queries).rows.tolist() == fresh.predict(queries).rows.tolist()
        anchors.add(fresh.parameters.version)
    assert 1 in anchors  # one changed row does not move the parameters of all
    assert len(anchors) > 1  # many do


@pytest.mark.parametrize("count", [1, 30])
def test_a_preview_is_what_the_change_makes(bank: Bank, count: int) -> None:
    queries = Embeddings([f"q{row}" for row in range(9)], np.zeros(9, np.int64), drawn(9, "q", 8)[1])
    classifier = kernel_classifier_of(bank, BINARY, KernelSettings())
    rows, vectors = drawn(count, "new", 4)
    planned = PlannedChange(add=(rows, vectors), remove=["m1"])
    previewed = previewed_kernel(classifier, bank, PreviewedBank(bank, planned)).predict(queries).scores
    bank.remove(["m1"], **BY)
    bank.add(rows, vectors, **BY)
    after = kernel_classifier_of(bank, BINARY, KernelSettings())
    np.testing.assert_allclose(previewed, after.predict(queries).scores, atol=1e-9)
    assert np.abs(previewed - classifier.predict(queries).scores).max() > 1e-3


def test_a_query_that_is_a_row_has_no_part_in_its_score(bank: Bank) -> None:
    rows = bank.to_embeddings()
    classifier = kernel_classifier_of(bank, BINARY, KernelSettings())
    np.testing.assert_allclose(classifier.predict(rows).scores, classifier.leave_one_out(), atol=1e-5)
