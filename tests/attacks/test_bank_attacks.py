"""Attacks on a bank: how many rows flip a verdict, by the vote's own arithmetic, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ra_hmd.attacks.bank_attacks import BankUnderAttack, attack_bank, near_duplicates
from ra_hmd.attacks.bank_settings import BankAttackSettings
from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import official_thresholds
from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.kernel_classifier import fit_kernel_classifier

WIDTH = 16


def rows(count: int, name: str, seed: int) -> Embeddings:
    """Memes of two classes around opposite points."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    centre = np.zeros(WIDTH)
    centre[0] = 3
    vectors = np.where(labels[:, None] == 1, centre, -centre) + generator.standard_normal((count, WIDTH))
    return Embeddings([f"{name}{row}" for row in range(count)], labels, vectors.astype(np.float32))


def under_attack(bank: Embeddings, voting: Voting) -> BankUnderAttack:
    kernel = fit_kernel_classifier(bank, BINARY, KernelSettings())
    return BankUnderAttack(
        bank, BINARY, voting, kernel, {head: official_thresholds(head, BINARY) for head in ("rkc", "krr")}
    )


def test_near_duplicates_have_the_similarity_and_the_label() -> None:
    meme = rows(1, "q", 0)
    copies = near_duplicates(meme, 1, 5, 0.9, np.random.default_rng(0))
    assert copies.labels.tolist() == [1] * 5
    unit = meme.embedding[0] / np.linalg.norm(meme.embedding[0])
    assert copies.embedding @ unit == pytest.approx(np.full(5, 0.9), abs=1e-5)
    assert len(set(copies.ids)) == 5
    assert np.linalg.matrix_rank(copies.embedding) == 5


def test_rows_that_flip_a_vote_are_those_of_its_arithmetic() -> None:
    bank, queries = rows(60, "b", 0), rows(10, "q", 1)
    settings = BankAttackSettings(sizes=[1, 2, 3, 4, 8], similarity=1.0, draws=1)
    found = attack_bank(under_attack(bank, Voting(topk=5, weights="mean", min_similarity=None)), queries, settings)
    assert found["right"]["rkc"] == 1.0
    # Of five votes of weight 1, copies with similarity 1 against neighbours with similarities between .6 and 1: with
    # three copies all are outvoted, with one none is.
    shares = found["flipped_duplicates"]["rkc"]["flipped"]
    assert found["flipped_duplicates"]["rkc"]["aimed_at"] == 10
    assert shares[1] == 0.0
    assert shares[3] == shares[8] == 1.0
    assert found["flipped_duplicates"]["rkc"]["median"] in (2, 3)


def test_flood_of_one_class_takes_verdicts_on_the_other_alone() -> None:
    bank, queries = rows(60, "b", 0), rows(30, "q", 1)
    attacked = under_attack(bank, Voting(topk=20, prior_correction=False))
    few = attack_bank(attacked, queries, BankAttackSettings(sizes=[1, 2], draws=2))
    assert all(one["highest"] == 0 for one in few["flood"] if one["head"] == "rkc")
    near = Embeddings(
        ["edge"], np.array([1]), np.concatenate([[-0.9], np.full(WIDTH - 1, 0.1)])[None].astype(np.float32)
    )
    edge = under_attack(bank.plus(near).select(np.r_[np.flatnonzero(bank.labels == 0), len(bank)]), Voting(topk=20))
    found = attack_bank(edge, queries, BankAttackSettings(sizes=[1, 40], draws=1))
    flood = {(one["head"], one["class"], one["size"]): one["mean"] for one in found["flood"]}
    assert flood["rkc", 1, 40] > 0.5  # copies of the one row of class 1, among memes of class 0
    assert flood["rkc", 1, 1] == 0
    assert found == attack_bank(edge, queries, BankAttackSettings(sizes=[1, 40], draws=1))


def test_sizes_that_do_not_rise_and_label_sets_are_refused() -> None:
    with pytest.raises(UserError, match="rising"):
        BankAttackSettings(sizes=[4, 2])
    bank = under_attack(rows(8, "b", 0), Voting())
    several = BankUnderAttack(bank.rows, Problem("multi_label", 2), bank.voting, bank.kernel, bank.thresholds)
    with pytest.raises(UserError, match="sets of classes"):
        attack_bank(several, rows(4, "q", 1), BankAttackSettings())


def test_command_prints_the_table_and_leaves_the_bank_as_it_was(served_clip: Path) -> None:
    words = ["bank", "attack", served_clip / "bank", "--checkpoint", served_clip / "head", "--queries",
             served_clip / "features" / "dev", "--sizes", "1", "8", "--sample", "4", "--draws", "1"]  # fmt: skip
    shown = CliRunner().invoke(app, [str(word) for word in words])
    assert shown.exit_code == 0, shown.output
    assert "flipped" in shown.output
    made = CliRunner().invoke(app, [str(word) for word in [*words, "--json"]])
    found = json.loads(made.stdout)
    assert found["sizes"] == [1, 8]
    assert set(found["flipped_duplicates"]) == {"rkc", "krr"}
    assert {(one["head"], one["class"]) for one in found["flood"]} == {
        (head, label) for head in ("rkc", "krr") for label in (0, 1)
    }
