"""`ra-hmd bank suggest`: memes whose labels would teach a bank most."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lab import Lab
from typer.testing import CliRunner

from ra_hmd.bank_review.suggest import Suggestions, suggest_memes
from ra_hmd.bank_review.suggestion_files import read_suggestions
from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import BankSuggestionsManifest, read_manifest
from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.knn import unit_rows
from ra_hmd.scoring.kernel_classifier import KernelClassifier, fit_kernel_classifier


def rows(count: int, seed: int, prefix: str = "m") -> Embeddings:
    vectors = np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)
    return Embeddings([f"{prefix}{row}" for row in range(count)], np.arange(count) % 2, vectors)


def head(bank: Embeddings, problem: Problem = BINARY, **settings: int) -> KernelClassifier:
    return fit_kernel_classifier(bank, problem, KernelSettings(**settings))


def suggested(classifier: KernelClassifier, pool: Embeddings, budget: int, **sizes: int) -> Suggestions:
    return suggest_memes(classifier, pool, budget, **{"sample": 1000, "candidates": 1000, "seed": 0} | sizes)


@pytest.mark.parametrize("exact_rows", [5000, 10])
def test_memes_are_those_of_the_textbook_design(exact_rows: int) -> None:
    bank, pool = rows(30, 0), rows(50, 1, "p")
    classifier = head(bank, exact_rows=exact_rows)
    kernel, noise = classifier.kernel.kernels["embedding"], classifier.parameters.noise
    ours, theirs = (kernel.standardised(unit_rows(one.embedding)) for one in (bank, pool))
    known = kernel(ours, ours) + noise * np.eye(30)
    covariance = kernel(theirs, theirs) - kernel(theirs, ours) @ np.linalg.solve(known, kernel(ours, theirs))
    uncertainty = np.diag(covariance).copy()
    found = suggested(classifier, pool, 12)
    for row, score, own in zip(found.rows, found.score, found.uncertainty, strict=True):
        gains = (covariance**2).sum(axis=0) / (np.diag(covariance) + noise)
        gains[found.rows[: found.rows.tolist().index(row)]] = -1
        assert gains.argmax() == row
        assert score == pytest.approx(gains[row], abs=1e-9)
        assert own == pytest.approx(uncertainty[row], abs=1e-9)
        covariance = covariance - np.outer(covariance[:, row], covariance[row]) / (covariance[row, row] + noise)


def test_each_group_of_like_memes_is_asked_about_once_before_any_twice() -> None:
    centres = np.eye(6)[:4].astype(np.float32)
    pool = Embeddings([f"p{row}" for row in range(40)], np.full(40, -1), np.repeat(centres, 10, axis=0))
    pool.embedding[:] += 0.01 * np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    bank = Embeddings(["a", "b"], np.arange(2), -np.eye(6, dtype=np.float32)[4:])
    classifier = head(bank.plus(rows(20, 3)))
    assert len(set(suggested(classifier, pool, 4).rows // 10)) == 4


def test_an_empty_pool_gives_nothing_and_a_large_budget_all() -> None:
    classifier = head(rows(20, 0))
    assert len(suggested(classifier, rows(0, 1), 5).rows) == 0
    assert sorted(suggested(classifier, rows(7, 1), 99).rows.tolist()) == list(range(7))


@pytest.mark.parametrize("count", [0, 1])
def test_a_bank_of_hardly_any_row_has_suggestions(count: int) -> None:
    found = suggested(head(rows(count, 0)), rows(10, 1), 3)
    assert len(set(found.rows.tolist())) == 3
    assert (found.uncertainty <= 1).all()


def test_of_equal_memes_the_first_is_suggested_and_none_twice() -> None:
    pool = Embeddings([f"p{row}" for row in range(6)], np.full(6, -1), np.ones((6, 6), np.float32))
    found = suggested(head(rows(20, 0)), pool, 6).rows.tolist()
    assert found[0] == 0
    assert sorted(found) == list(range(6))


def test_labels_of_the_pool_have_no_part_and_label_sets_are_taken() -> None:
    bank = replace(rows(30, 0), labels=np.arange(60).reshape(30, 2) % 2)
    pool = replace(rows(12, 1), labels=np.full((12, 2), -1))
    classifier = head(bank, Problem("multi_label", 2))
    found = suggested(classifier, pool, 5).rows.tolist()
    assert len(set(found)) == 5
    assert found == suggested(classifier, replace(pool, labels=np.ones((12, 2), int)), 5).rows.tolist()


def test_a_large_pool_is_drawn_from_by_the_seed() -> None:
    classifier, pool = head(rows(20, 0)), rows(100, 1)
    first = suggested(classifier, pool, 5, candidates=20, sample=10)
    again = suggested(classifier, pool, 5, candidates=20, sample=10)
    other = suggested(classifier, pool, 5, candidates=20, sample=10, seed=1)
    assert first.rows.tolist() == again.rows.tolist() != other.rows.tolist()
    assert set(first.rows) <= set(np.random.default_rng(0).permutation(100)[:20])


def run(*words: str | Path, fails: str = "") -> str:
    done = CliRunner().invoke(app, ["bank", "suggest", *map(str, words)])
    assert done.exit_code == (2 if fails else 0), done.output
    assert fails in " ".join(done.output.split())
    return done.stdout


def test_memes_that_the_bank_holds_are_left_out(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    bank = replace(lab.features(40, 0, "m"), contents=[f"c{row}" for row in range(40)])
    pool = replace(lab.features(30, 1, "p"), contents=["c3", ""] + [f"d{row}" for row in range(28)])
    pool.ids[7] = "m5"
    store, others = lab.store("train", bank), lab.store("pool", pool)
    run(store, "--checkpoint", lab.head("head"), "--pool", others, "--budget", "99", "--output", tmp_path / "s.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == set(pool.ids) - {"p0", "m5"}
    assert set(lines[0]) == {"id", "score", "uncertainty"}
    manifest = read_manifest(tmp_path / "s.jsonl.manifest.json", BankSuggestionsManifest)
    assert (manifest.pool_rows, manifest.left_out, manifest.suggested) == (30, 2, 28)


def test_test_memes_are_not_suggested(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    store, pool = lab.store("train", lab.features(20, 0, "m")), lab.store("test", lab.features(9, 1, "p"))
    run(store, "--checkpoint", lab.head("head"), "--pool", pool, "--output", tmp_path / "s", fails="not made of test")


def test_the_order_of_suggestions_is_that_of_their_file(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text('{"id": "c"}\n{"id": "gone"}\n{"id": "a"}\n{"id": "c"}\n')
    assert read_suggestions(tmp_path / "s.jsonl") == {"c": 0, "gone": 1, "a": 2}


def test_a_file_that_is_no_suggestions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_suggestions(tmp_path / "s.jsonl")
    (tmp_path / "s.jsonl").write_text('{"name": "a"}\n')
    with pytest.raises(UserError, match="has no `id`"):
        read_suggestions(tmp_path / "s.jsonl")
