"""What a change would do to verdicts, before it is made.

Shapes: Q queries, N bank rows, M rows to add, K neighbours, C outputs.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.stats import binomtest

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.identical import decided_rows
from ra_hmd.bank.versions import BankRows, BankState, Change, check_new
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.heads import decide, official_thresholds
from ra_hmd.core.problem import UNLABELLED, Problem
from ra_hmd.retrieval.distinct_vectors import ABSENT
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.knn import Neighbours, unit_rows
from ra_hmd.retrieval.voting import Votes, Voting

ABSTAINED = "abstained"


def verdicts(votes: Votes, problem: Problem, thresholds: np.ndarray | None = None) -> list[Any]:
    """Per query the class, for `multi_label` a list of 0 and 1, or `ABSTAINED`.

    Args:
        votes: Of the queries.
        problem: What labels mean.
        thresholds: [C] of the scores; by default the official ones. Without meaning for one of C classes.
    """
    limits = official_thresholds("rkc", problem) if thresholds is None else thresholds
    decided = decide(votes.scores, limits, problem).tolist()
    return [ABSTAINED if abstains else verdict for verdict, abstains in zip(decided, votes.abstained, strict=True)]


@dataclass(frozen=True)
class PlannedChange:
    """A change that is not made yet: a rollback, or any of the others together.

    Attributes:
        add: New rows and their embeddings [M, D].
        remove: Ids.
        relabel: Id to label.
        rollback: The version to go back to.
        relabel_identical: Whether all rows of a meme that is added or relabelled get its label.
    """

    add: tuple[BankRows, np.ndarray] | None = None
    remove: Sequence[str] = ()
    relabel: Mapping[str, Any] = field(default_factory=dict)
    rollback: int | None = None
    relabel_identical: bool = False

    def changes(self, bank: Bank) -> list[Change]:
        """What it does to rows that the bank has or had.

        Raises:
            UserError: nothing is planned; what is planned could not be done.
        """
        others = self.add is not None or self.remove or self.relabel
        if self.rollback is not None:
            if others:
                raise UserError("A rollback stands alone: look at it, or at the other changes.")
            change = bank.at().back_to(bank.at(self.rollback))
            if change.empty:
                raise UserError(f"{bank.place} holds at version {bank.version} what it held at {self.rollback}.")
            return [change]
        if not others:
            raise UserError("No change is given; use --add, --remove, --relabel or --rollback.")
        changes = [bank.removal(self.remove), bank.relabelling(self.relabel, self.relabel_identical)]
        both = sorted(set(self.remove) & set(self.relabel))
        raise_all([f"id {name!r}" for name in both], "These would be removed and relabelled")
        if self.add is not None:
            added = bank.addition(self.add[0], self.relabel_identical, bank.preview(changes))
            changes.append(replace(added, added=BankRows.none(added.added.labels)))
        return changes


def effect(
    bank: Bank, queries: Embeddings, planned: PlannedChange, voting: Voting, thresholds: np.ndarray | None = None
) -> dict[str, Any]:
    """Verdicts with the bank as it is and as it would be; `thresholds` [C] of the scores, by default the official ones.

    A query that is the same meme as a decided row has that row's label; the others are voted on.

    Returns:
        `version`, `queries`, `flips` (`id`, `label`, `from`, `to`, `score_before`, `score_after`), `flip_counts` of
        (from → to), `abstained`; where queries are labelled, `paired`: how many there are, accuracy before and after,
        `gained` and `lost` verdicts, and the two-sided exact p of McNemar's test. An abstention counts as wrong.

    Raises:
        UserError: nothing is planned; what is planned could not be done.
    """
    before = voting.vote(bank.nearest(queries, voting.topk), bank.labels, bank.problem)
    after = voting.vote(*_changed(bank, queries, planned, voting.topk), bank.problem)
    old = _overruled(verdicts(before, bank.problem, thresholds), queries, _labels_of_decided(bank.at()))
    decided = _labels_of_decided(bank.preview(planned.changes(bank)))
    if planned.add is not None:
        rows = planned.add[0]
        known = zip(rows.contents, rows.labels.tolist(), rows.decided, strict=True)
        decided |= {content: label for content, label, by_person in known if content and by_person}
    new = _overruled(verdicts(after, bank.problem, thresholds), queries, decided)
    flips = [
        {
            "id": name,
            "label": label,
            "from": one,
            "to": other,
            "score_before": before.scores[line].tolist(),
            "score_after": after.scores[line].tolist(),
        }
        for line, (name, label, one, other) in enumerate(
            zip(queries.ids, queries.labels.tolist(), old, new, strict=True)
        )
        if one != other
    ]
    counts = Counter(f"{flip['from']} → {flip['to']}" for flip in flips)
    return {
        "version": bank.version,
        "queries": len(queries),
        "flips": flips,
        "flip_counts": dict(counts.most_common()),
        "abstained": {"before": int(before.abstained.sum()), "after": int(after.abstained.sum())},
        "paired": _paired(queries.labels, old, new),
    }


def _changed(bank: Bank, queries: Embeddings, planned: PlannedChange, k: int) -> tuple[Neighbours, np.ndarray]:
    """Neighbours in, and labels of, the bank as it would be: its rows in their places, then the new ones."""
    state = bank.preview(planned.changes(bank))
    near, labels = bank.nearest(queries, k, state=state), state.rows.labels[state.alive]
    if planned.add is None:
        return near, labels
    new, embedding = planned.add
    embedding = check_new(new, embedding, bank.problem, bank.dimension)
    return _with_new(near, queries, new.ids, embedding, first=len(labels)), np.concatenate([labels, new.labels])


def _with_new(
    near: Neighbours, queries: Embeddings, ids: Sequence[str], embedding: np.ndarray, first: int
) -> Neighbours:
    """The K nearest among the K found and M new rows, which are numbered from `first` on."""
    k = near.rows.shape[1]
    vectors, names = unit_rows(embedding).astype(np.float64), np.array(ids, dtype=object)
    numbers = np.arange(first, first + len(names))
    rows, similarity = near.rows.copy(), near.similarity.copy()
    for line, query in enumerate(unit_rows(queries.embedding).astype(np.float64)):
        value = np.einsum("cd,d->c", vectors, query).clip(-1, 1).astype(np.float32)
        other = names != queries.ids[line]
        candidates = np.concatenate([near.rows[line], numbers[other]])
        values = np.concatenate([near.similarity[line], value[other]])
        order = np.lexsort((candidates, -values, candidates == ABSENT))[:k]
        rows[line], similarity[line] = candidates[order], values[order]
    return Neighbours(rows, similarity)


def _labels_of_decided(state: BankState) -> dict[str, Any]:
    """Content → the label with which a person's decision answers it."""
    return {content: state.rows.labels[row].tolist() for content, row in decided_rows(state).items()}


def _overruled(voted: list[Any], queries: Embeddings, decided: Mapping[str, Any]) -> list[Any]:
    """Verdicts of votes, and in their place the labels of decided rows that are the same memes."""
    contents = queries.contents or [""] * len(queries)
    return [decided.get(content, verdict) for content, verdict in zip(contents, voted, strict=True)]


def _paired(labels: np.ndarray, old: list[Any], new: list[Any]) -> dict[str, Any] | None:
    known = (labels != UNLABELLED).reshape(len(labels), -1).all(axis=1)
    if not known.any():
        return None
    truth = labels.tolist()
    right = np.array([[verdict == truth[line] for line, verdict in enumerate(side)] for side in (old, new)])[:, known]
    gained, lost = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    accuracy = right.mean(axis=1).tolist()
    return {
        "labelled": int(known.sum()),
        "accuracy_before": accuracy[0],
        "accuracy_after": accuracy[1],
        "gained": gained,
        "lost": lost,
        "p": p,
    }
