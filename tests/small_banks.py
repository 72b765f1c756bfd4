"""Small banks and queries for tests."""

from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.versions import BankRows
from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.retrieval.embeddings import Embeddings

SAID = {"author": "ana", "reason": "test"}


def make_rows(names: list[str], labels: np.ndarray) -> BankRows:
    """Rows whose other fields tell which they are."""
    return BankRows(
        names,
        np.asarray(labels, dtype=np.int64),
        [f"source of {name}" for name in names],
        [f"note “{name}” \u202e" for name in names],
        ["2026-01-01T00:00:00+00:00"] * len(names),
        np.arange(len(names), dtype=np.uint64) + np.uint64(2**63),
    )


def points(count: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    """Like embeddings after a ReLU: no negative entry, many zeros, rows that repeat, a row of zeros."""
    matrix = np.maximum(np.random.default_rng(seed).normal(size=(count, dim)), 0).astype(np.float32)
    if count > 30:
        matrix[3] = 0
        matrix[10:30] = matrix[9]  # a tie that is longer than what is usually asked for
    return matrix


def labels_of(problem: Problem, count: int, seed: int = 0) -> np.ndarray:
    """Labels of N rows as the problem has them."""
    rng = np.random.default_rng(seed)
    if problem.kind == "multi_label":
        return rng.integers(0, 2, (count, problem.outputs))
    return rng.integers(0, problem.classes, count)


def bank_of(place: Path | str, count: int = 60, problem: Problem = BINARY, **options: Any) -> Bank:
    """A new bank of memes m0, m1, …"""
    rows = make_rows([f"m{number}" for number in range(count)], labels_of(problem, count))
    settings = {"fingerprint": {"model": "m"}, **SAID, "problem": problem}
    return Bank.create(place, rows, options.pop("embedding", points(count)), **settings | options)


def queries_of(count: int = 40, seed: int = 1) -> Embeddings:
    """Queries, of which some are in the bank and some lie exactly on its rows."""
    embedding = points(count, seed=seed)
    embedding[: count // 2] = points(60)[: count // 2]
    names = [f"m{number}" if number % 3 == 0 else f"q{number}" for number in range(count)]
    return Embeddings(names, np.arange(count) % 2, embedding)
