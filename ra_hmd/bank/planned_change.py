"""A change of an example bank that is not made yet, and the bank as it would be after it.

Shapes: Q queries, N bank rows, M rows to add, K neighbours, C outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.identical import decided_labels
from ra_hmd.bank.versions import BankRows, Change, check_new
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.retrieval.distinct_vectors import ABSENT
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.knn import Neighbours, as_matrix, unit_rows


@dataclass(frozen=True)
class PlannedChange:
    """A change that is not made yet: a rollback, or any combination of the others.

    Attributes:
        add: New rows and their embeddings [M, D].
        views: Further vectors [M, D_v] of the new rows, by name.
        remove: Ids.
        relabel: Id to label.
        rollback: The version to restore.
        relabel_identical: Whether all rows of a meme that is added or relabelled get its label.
    """

    add: tuple[BankRows, np.ndarray] | None = None
    remove: Sequence[str] = ()
    relabel: Mapping[str, Any] = field(default_factory=dict)
    rollback: int | None = None
    relabel_identical: bool = False
    views: Mapping[str, np.ndarray] = field(default_factory=dict)

    def changes(self, bank: Bank) -> list[Change]:
        """The changes to rows that the bank has or had; rows to add are left out.

        Raises:
            UserError: nothing is planned, or the plan cannot be carried out.
        """
        others = self.add is not None or self.remove or self.relabel
        if self.rollback is not None:
            if others:
                raise UserError("A rollback stands alone: look at it, or at the other changes.")
            change = bank.plan_rollback(self.rollback)
            if change.empty:
                raise UserError(f"{bank.location} holds at version {bank.version} what it held at {self.rollback}.")
            return [change]
        if not others:
            raise UserError("No change is given; use --add, --remove, --relabel or --rollback.")
        changes = [bank.plan_remove(self.remove), bank.plan_relabel(self.relabel, self.relabel_identical)]
        both = sorted(set(self.remove) & set(self.relabel))
        raise_all([f"id {name!r}" for name in both], "These would be removed and relabelled")
        if self.add is not None:
            added = bank.plan_add(self.add[0], self.relabel_identical, bank.preview(changes))
            changes.append(replace(added, added=BankRows.none(added.added.labels)))
        return changes


class PreviewedBank:
    """A bank as a planned change would make it, for searching: its rows in their order, then the new ones.

    Attributes:
        ids: Ids of the rows.
        labels: int64 [N] or [N, C].
        decided: Content hash to the label of the decided row with that content, see `ra_hmd.bank.identical`.
        changed: Number of rows that the change adds, removes, restores or relabels.

    Raises:
        UserError: nothing is planned, or the plan cannot be carried out.
    """

    def __init__(self, bank: Bank, planned: PlannedChange) -> None:
        self._bank = bank
        changes = planned.changes(bank)
        self._state = bank.preview(changes)
        self.changed = sum(
            len(rows) for change in changes for rows in (change.removed, change.restored, change.relabelled)
        )
        self.ids, self.labels = self._state.ids, self._state.labels
        self.decided = decided_labels(self._state)
        self._kept, self._new_ids, self._new = len(self.ids), np.zeros(0, object), np.zeros((0, bank.dimension))
        self._new_views = planned.views
        if planned.add is not None:
            rows, embedding = planned.add
            self.changed += len(rows)
            self._new = unit_rows(check_new(rows, embedding, bank.problem, bank.dimension)).astype(np.float64)
            self._new_ids = np.array(rows.ids, dtype=object)
            self.ids += rows.ids
            self.labels = np.concatenate([self.labels, rows.labels])
            new = zip(rows.contents, rows.labels.tolist(), rows.decided, strict=True)
            self.decided |= {content: label for content, label, by_person in new if content and by_person}

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: np.ndarray, views: Sequence[str] | None = None) -> Embeddings:
        """Rows at positions [M], with the named views; see `BankReader.select`."""
        old = rows < self._kept
        kept = self._bank.select(rows[old], views, state=self._state)
        new = rows[~old] - self._kept
        further = {name: as_matrix(self._new_views[name], name)[new] for name in kept.views}
        added = Embeddings(
            self._new_ids[new].tolist(),
            self.labels[self._kept :][new],
            self._new[new].astype(np.float32),
            views=further,
        )
        order = np.argsort(np.concatenate([np.flatnonzero(old), np.flatnonzero(~old)]))
        return kept.plus(added).select(order)

    def nearest(self, queries: Embeddings, k: int) -> Neighbours:
        """The K nearest rows of each query, without the query itself."""
        near = self._bank.nearest(queries, k, state=self._state)
        if not len(self._new):
            return near
        numbers = np.arange(self._kept, self._kept + len(self._new))
        rows, similarity = near.rows.copy(), near.similarity.copy()
        for line, query in enumerate(unit_rows(queries.embedding).astype(np.float64)):
            value = np.einsum("cd,d->c", self._new, query).clip(-1, 1).astype(np.float32)
            other = self._new_ids != queries.ids[line]
            candidates = np.concatenate([near.rows[line], numbers[other]])
            values = np.concatenate([near.similarity[line], value[other]])
            order = np.lexsort((candidates, -values, candidates == ABSENT))[:k]
            rows[line], similarity[line] = candidates[order], values[order]
        return Neighbours(rows, similarity)
