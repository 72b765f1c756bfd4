"""What an example bank holds at a version: the fold of the changes that led there.

Rows are numbered in the order in which they were added, and a number is never given twice: removing a row only marks
it. So an embedding is written once, and every version can be restored.

Shapes: N rows ever added, M rows of a change, C classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.problem import Problem
from ra_hmd.data.text import well_formed
from ra_hmd.retrieval.knn import as_matrix

Action = Literal["create", "add", "remove", "relabel", "rollback"]
_OPERATIONS = ("add", "remove", "restore", "relabel")


@dataclass(frozen=True)
class VersionEntry:
    """One line of the log.

    Attributes:
        version: 1, 2, …
        action: The command.
        author: Who did it.
        reason: Why.
        time: UTC, ISO 8601.
        counts: Rows `added`, `removed`, `restored`, `relabelled`, and `rows`, how many the bank has then.
        restores: Of a rollback, the version that it brings back.
    """

    version: int
    action: Action
    author: str
    reason: str
    time: str
    counts: dict[str, int]
    restores: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class BankRows:
    """What is known of M memes, apart from their embeddings.

    Attributes:
        ids: M ids.
        labels: int64 [M] or [M, C].
        sources: Where each comes from.
        notes: Free text.
        times: When each was added, or is from: UTC, ISO 8601.
        image_hashes: uint64 [M] perceptual hashes; 0: none.
        contents: M hashes of picture and caption (`content_hash`); empty: unknown. Default: all unknown.
        decided: bool [M], whether a person gave the label to this very meme (`ra_hmd.bank.identical`). Default:
            no.
    """

    ids: Sequence[str]
    labels: np.ndarray
    sources: Sequence[str]
    notes: Sequence[str]
    times: Sequence[str]
    image_hashes: np.ndarray
    contents: Sequence[str] = ()
    decided: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def __post_init__(self) -> None:
        if not len(self.contents):
            object.__setattr__(self, "contents", [""] * len(self.ids))
        if not len(self.decided):
            object.__setattr__(self, "decided", np.zeros(len(self.ids), bool))

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def none(cls, labels: np.ndarray) -> "BankRows":
        """No row, with labels of the shape that `labels` has."""
        return cls([], labels[:0], [], [], [], np.zeros(0, np.uint64))

    def plus(self, others: Sequence["BankRows"]) -> "BankRows":
        """These rows, then the others'."""
        parts = [self, *others]
        lists = {name: list(chain.from_iterable(getattr(part, name) for part in parts)) for name in _LISTS}
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
        return BankRows(**lists, **arrays)


_LISTS = ("ids", "sources", "notes", "times", "contents")
_ARRAYS = ("labels", "image_hashes", "decided")


@dataclass(frozen=True)
class Change:
    """What one version does: it adds rows, or it does something to earlier ones.

    Attributes:
        added: The new rows; they get the next numbers.
        removed: int64 [M], numbers of rows that leave.
        restored: int64 [M], numbers of removed rows that come back.
        relabelled: int64 [M], numbers of rows whose label changes …
        new_labels: … to these, [M] or [M, C].
        new_decided: bool [M], whether a person gave them these. Default: yes.
    """

    added: BankRows
    removed: np.ndarray
    restored: np.ndarray
    relabelled: np.ndarray
    new_labels: np.ndarray
    new_decided: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def __post_init__(self) -> None:
        if not len(self.new_decided):
            object.__setattr__(self, "new_decided", np.ones(len(self.relabelled), bool))

    @classmethod
    def of(cls, labels: np.ndarray, **parts: Any) -> "Change":
        """A change with the given parts, the others empty; `labels` shows what shape labels have."""
        empty = np.zeros(0, np.int64)
        whole = {
            "added": BankRows.none(labels),
            "removed": empty,
            "restored": empty,
            "relabelled": empty,
            "new_labels": labels[:0],
        }
        return cls(**whole | parts)

    @property
    def empty(self) -> bool:
        """Whether nothing would change."""
        return not (len(self.added) or len(self.removed) or len(self.restored) or len(self.relabelled))

    def counts(self, rows: int) -> dict[str, int]:
        """For the log; `rows` is what the bank has afterwards."""
        return {
            "added": len(self.added),
            "removed": len(self.removed),
            "restored": len(self.restored),
            "relabelled": len(self.relabelled),
            "rows": rows,
        }

    def to_table(self) -> pa.Table:
        """One line per row that is touched: `operation`, `row` (null: added), `label`, and the new rows' fields."""
        parts = [
            ("add", None, self.added.labels),
            ("remove", self.removed, None),
            ("restore", self.restored, None),
            ("relabel", self.relabelled, self.new_labels),
        ]
        width = self.new_labels.shape[1] if self.new_labels.ndim == 2 else 1
        operations, numbers, labels = [], [], []
        for operation, rows, values in parts:
            count = len(self.added) if rows is None else len(rows)
            operations += [_OPERATIONS.index(operation)] * count
            numbers += [None] * count if rows is None else rows.tolist()
            labels.append(np.zeros((count, width), np.int64) if values is None else values.reshape(count, width))
        others = len(operations) - len(self.added)
        flat = pa.array(np.concatenate(labels).reshape(-1).astype(np.int64))
        hashes = np.concatenate([self.added.image_hashes, np.zeros(others, np.uint64)])
        texts = {name: pa.array([*getattr(self.added, name), *[""] * others], pa.string()) for name in _LISTS}
        # Of the lines that touch earlier rows, only those that relabel decide; they are the last.
        decided = np.zeros(len(operations), bool)
        decided[: len(self.added)] = self.added.decided
        decided[len(operations) - len(self.relabelled) :] = self.new_decided
        columns = {
            "operation": pa.array(operations, pa.int8()),
            "row": pa.array(numbers, pa.int64()),
            "label": pa.FixedSizeListArray.from_arrays(flat, width),
            "image_hash": pa.array(hashes, pa.uint64()),
            **{name.removesuffix("s"): column for name, column in texts.items()},
            "decided": pa.array(decided),
        }
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table, *, multi_label: bool) -> "Change":
        """The inverse of `to_table`; earlier versions wrote no `content` and no `decided`."""
        return cls.several(table, [0, len(table)], multi_label=multi_label)[0]

    @classmethod
    def several(cls, table: pa.Table, bounds: Sequence[int], *, multi_label: bool) -> "list[Change]":
        """The changes whose tables are joined: the first one's lines are from `bounds[0]` to `bounds[1]`, and so on."""
        operation = table["operation"].to_numpy()
        width = table.schema.field("label").type.list_size
        flat = [chunk.flatten().to_numpy() for chunk in table["label"].chunks]
        labels = np.concatenate([*flat, np.zeros(0, np.int64)]).reshape(len(operation), width)
        labels = labels if multi_label else labels[:, 0]
        numbers, hashes = table["row"].fill_null(-1).to_numpy(), table["image_hash"].to_numpy()
        decided = np.zeros(len(operation), bool)
        if "decided" in table.column_names:
            decided = table["decided"].to_numpy()
        columns = {name: name.removesuffix("s") for name in _LISTS}
        lists = {name: table[column].to_pylist() for name, column in columns.items() if column in table.column_names}
        found = []
        for first, last in pairwise(bounds):
            add, remove, restore, relabel = (
                first + np.flatnonzero(operation[first:last] == code) for code in range(len(_OPERATIONS))
            )
            end = first + len(add)  # what is added comes first
            added = BankRows(
                labels=labels[first:end],
                image_hashes=hashes[first:end],
                decided=decided[first:end],
                **{name: values[first:end] for name, values in lists.items()},
            )
            parts = numbers[remove], numbers[restore], numbers[relabel]
            found.append(cls(added, *parts, labels[relabel], decided[relabel]))
        return found


@dataclass(frozen=True)
class BankState:
    """All rows that were ever added, up to a version.

    Attributes:
        version: Of the state; 0 is before the first.
        rows: What is known of each of N rows, with the labels of this version.
        alive: bool [N], which of them the bank has at this version.
        origins: int64 [V + 1], how many rows there were after each version.
    """

    version: int
    rows: BankRows
    alive: np.ndarray
    origins: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))

    @classmethod
    def start(cls, labels: np.ndarray) -> "BankState":
        """Before the first version; `labels` shows what shape labels have."""
        return cls(0, BankRows.none(labels), np.zeros(0, bool))

    def after(self, changes: Iterable[Change]) -> "BankState":
        """The state some versions later."""
        changes = list(changes)
        rows = self.rows.plus([change.added for change in changes])
        labels, decided = rows.labels.copy(), rows.decided.copy()
        origins = [*self.origins, *self.origins[-1] + np.cumsum([len(change.added) for change in changes], dtype=int)]
        alive = np.zeros(len(rows), bool)
        alive[: len(self.alive)] = self.alive
        for number, change in enumerate(changes, start=self.version):
            alive[origins[number] : origins[number + 1]] = True
            alive[change.removed] = False
            alive[change.restored] = True
            labels[change.relabelled] = change.new_labels
            decided[change.relabelled] = change.new_decided
        rows = replace(rows, labels=labels, decided=decided)
        return BankState(self.version + len(changes), rows, alive, np.array(origins, dtype=np.int64))

    def back_to(self, old: "BankState") -> Change:
        """The change that makes the bank hold what it held at an earlier state."""
        before = np.zeros(len(self.alive), bool)
        before[: len(old.alive)] = old.alive
        kept = np.flatnonzero(before)
        now, then = self.rows.labels[kept], old.rows.labels[kept]
        differs = differing(now, then) | (self.rows.decided[kept] != old.rows.decided[kept])
        return Change.of(
            self.rows.labels,
            removed=np.flatnonzero(self.alive & ~before),
            restored=np.flatnonzero(before & ~self.alive),
            relabelled=kept[differs],
            new_labels=then[differs],
            new_decided=old.rows.decided[kept][differs],
        )


def differing(labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """bool [M]: which rows of labels [M] or [M, C] are not the same."""
    return (labels != others).any(axis=tuple(range(1, labels.ndim)))


def check_entry(author: str, reason: str) -> None:
    """Raise `UserError` unless both are given."""
    problems = [] if reason.strip() else ["--reason is empty; say why, the log keeps it."]
    problems += [] if author.strip() else ["--author is empty; the log keeps who did it."]
    problems += [
        f"{option} {text!r} is not UTF-8; set the terminal, or what starts this command, to UTF-8."
        for option, text in (("--reason", reason), ("--author", author))
        if well_formed(text) != text
    ]
    raise_all(problems, "The change cannot be entered in the log")


def check_new(rows: BankRows, embedding: np.ndarray, problem: Problem, dimension: int) -> np.ndarray:
    """The embeddings of new rows as float32 [M, D].

    Raises:
        UserError: doubled ids, labels that are not the problem's, embeddings of another width or not finite.
    """
    embedding = as_matrix(embedding, "new")
    if len(embedding) != len(rows):
        raise ValueError(f"{len(rows)} rows and {len(embedding)} embeddings")
    if embedding.shape[1] != dimension:
        raise UserError(
            f"The new embeddings have {embedding.shape[1]} dimensions, the bank has {dimension}; embed with its head."
        )
    if len(rows):
        problem.check(rows.labels, "The new memes")
    seen: set[str] = set()
    doubled = [f"id {name!r}" for name in rows.ids if name in seen or seen.add(name)]
    raise_all(doubled, "The new memes hold these more than once")
    return embedding
