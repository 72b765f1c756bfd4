"""The versions of an example bank: log entries, changes, and the state that a series of changes leads to.

Rows are numbered in the order in which they were added, and a number is never reused: removing a row only marks it. So
an embedding is written once, and every version can be restored.

Shapes: N rows ever added, M rows of a change, C classes.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
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


class VersionTaken(UserError):
    """Another process wrote the version that was about to be written. Nothing was changed; plan the change again."""


class BankInUse(UserError):
    """Another process held the bank for as long as this one waits. Nothing was changed; try again."""


@dataclass(frozen=True)
class VersionEntry:
    """The log entry of one version.

    Attributes:
        version: 1, 2, …
        action: The kind of change.
        author: Author of the change.
        reason: Why it was made.
        time: UTC, ISO 8601.
        counts: Numbers of rows `added`, `removed`, `restored` and `relabelled`, and `rows`, the size of the bank.
        restores: The version that a rollback restores; None where it restores some rows alone.
    """

    version: int
    action: Action
    author: str
    reason: str
    time: str
    counts: dict[str, int]
    restores: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The entry as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class BankRows:
    """M labelled memes of a bank, without their embeddings.

    Attributes:
        ids: M ids.
        labels: int64 [M] or [M, C].
        sources: Where each meme comes from. Default: empty.
        notes: Free text. Default: empty.
        times: When each meme was added or collected: UTC, ISO 8601. Default: now.
        image_hashes: uint64 [M] perceptual hashes; 0: none, the default.
        pdqs: M PDQ hashes of the images (`ra_hmd.data.image_hashes`); empty: none, the default.
        caption_digests: M digests of the captions (same module); empty: unknown, the default.
        contents: M hashes of image and caption (`ra_hmd.data.images.content_hash`); empty: unknown, the default.
        decided: bool [M], whether a person gave the label to this very meme (`ra_hmd.bank.identical`). Default: no.
    """

    ids: Sequence[str]
    labels: np.ndarray
    sources: Sequence[str] = ()
    notes: Sequence[str] = ()
    times: Sequence[str] = ()
    image_hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    contents: Sequence[str] = ()
    decided: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    pdqs: Sequence[str] = ()
    caption_digests: Sequence[str] = ()

    def __post_init__(self) -> None:
        count = len(self.ids)
        for name in _TEXT_COLUMNS:
            if not len(getattr(self, name)):
                object.__setattr__(self, name, [now() if name == "times" else ""] * count)
        for name, dtype in (("image_hashes", np.uint64), ("decided", bool)):
            if not len(getattr(self, name)):
                object.__setattr__(self, name, np.zeros(count, dtype))

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def none(cls, labels: np.ndarray) -> "BankRows":
        """No row, with labels of the same width as `labels`."""
        return cls([], labels[:0])

    def plus(self, others: Sequence["BankRows"]) -> "BankRows":
        """These rows followed by the others."""
        parts = [self, *others]
        columns: dict[str, Any] = {
            name: list(chain.from_iterable(getattr(part, name) for part in parts)) for name in _TEXT_COLUMNS
        }
        columns |= {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAY_COLUMNS}
        return BankRows(**columns)

    def select(self, numbers: np.ndarray) -> "BankRows":
        """The rows at the given places, in the given order."""
        columns: dict[str, Any] = {
            name: [values[number] for number in numbers.tolist()]
            for name in _TEXT_COLUMNS
            for values in [getattr(self, name)]
        }
        return BankRows(**columns, **{name: getattr(self, name)[numbers] for name in _ARRAY_COLUMNS})


_TEXT_COLUMNS = ("ids", "sources", "notes", "times", "contents", "pdqs", "caption_digests")
_ARRAY_COLUMNS = ("labels", "image_hashes", "decided")


@dataclass(frozen=True)
class Change:
    """The difference between a version and the one before it.

    Attributes:
        added: New rows; they get the next numbers.
        removed: int64 [M], numbers of rows that are removed.
        restored: int64 [M], numbers of removed rows that are restored.
        relabelled: int64 [M], numbers of rows that get another label.
        new_labels: Their labels, [M] or [M, C].
        new_decided: bool [M], whether a person gave them these labels. Default: yes.
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
        """A change with the given parts, the others empty, for labels of the same width as `labels`."""
        none = np.zeros(0, np.int64)
        return replace(cls(BankRows.none(labels), none, none, none, labels[:0]), **parts)

    def of_rows(self, numbers: Sequence[int]) -> "Change":
        """The part of a change without new rows that changes the rows with these numbers."""
        relabelled = np.isin(self.relabelled, numbers)
        return replace(
            self,
            removed=self.removed[np.isin(self.removed, numbers)],
            restored=self.restored[np.isin(self.restored, numbers)],
            relabelled=self.relabelled[relabelled],
            new_labels=self.new_labels[relabelled],
            new_decided=self.new_decided[relabelled],
        )

    @property
    def empty(self) -> bool:
        """Whether the change changes nothing."""
        return not (len(self.added) or len(self.removed) or len(self.restored) or len(self.relabelled))

    def counts(self, rows: int) -> dict[str, int]:
        """The counts of the log entry; `rows` is the size of the bank after the change."""
        return {
            "added": len(self.added),
            "removed": len(self.removed),
            "restored": len(self.restored),
            "relabelled": len(self.relabelled),
            "rows": rows,
        }

    def to_table(self) -> pa.Table:
        """One line per changed row: `operation`, `row` (null: added), `label`, and the fields of new rows."""
        parts: list[tuple[str, np.ndarray | None, np.ndarray | None]] = [
            ("add", None, self.added.labels),
            ("remove", self.removed, None),
            ("restore", self.restored, None),
            ("relabel", self.relabelled, self.new_labels),
        ]
        width = self.new_labels.shape[1] if self.new_labels.ndim == 2 else 1
        operations: list[int] = []
        numbers: list[int | None] = []
        labels: list[np.ndarray] = []
        for operation, rows, values in parts:
            count = len(self.added) if rows is None else len(rows)
            operations += [_OPERATIONS.index(operation)] * count
            numbers += [None] * count if rows is None else rows.tolist()
            labels.append(np.zeros((count, width), np.int64) if values is None else values.reshape(count, width))
        others = len(operations) - len(self.added)
        flat = pa.array(np.concatenate(labels).reshape(-1).astype(np.int64))
        hashes = np.concatenate([self.added.image_hashes, np.zeros(others, np.uint64)])
        texts = {name: pa.array([*getattr(self.added, name), *[""] * others], pa.string()) for name in _TEXT_COLUMNS}
        # Lines for earlier rows follow those for new rows. Only the relabelling ones, which are last, can be decided.
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
        """The inverse of `to_table`; earlier releases wrote no `content`, `decided`, `pdq` and `caption_digest`."""
        return cls.from_joined_tables(table, [0, len(table)], multi_label=multi_label)[0]

    @classmethod
    def from_joined_tables(cls, table: pa.Table, bounds: Sequence[int], *, multi_label: bool) -> "list[Change]":
        """Changes from their concatenated tables: change i has the lines from `bounds[i]` to `bounds[i + 1]`."""
        operation = table["operation"].to_numpy()
        width = table.schema.field("label").type.list_size
        flat = [chunk.flatten().to_numpy() for chunk in table["label"].chunks]
        labels = np.concatenate([*flat, np.zeros(0, np.int64)]).reshape(len(operation), width)
        labels = labels if multi_label else labels[:, 0]
        numbers, hashes = table["row"].fill_null(-1).to_numpy(), table["image_hash"].to_numpy()
        decided = np.zeros(len(operation), bool)
        if "decided" in table.column_names:
            decided = table["decided"].to_numpy()
        columns = {name: name.removesuffix("s") for name in _TEXT_COLUMNS}
        lists = {name: table[column].to_pylist() for name, column in columns.items() if column in table.column_names}
        changes = []
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
            changes.append(cls(added, *parts, labels[relabel], decided[relabel]))
        return changes


@dataclass(frozen=True)
class BankState:
    """The content of a bank at a version, with all rows that were ever added until then.

    Attributes:
        version: The version; 0 is before the first.
        rows: The N rows, with the labels of this version.
        alive: bool [N], which rows the bank holds at this version.
        origins: int64 [V + 1], number of rows ever added after each version.
    """

    version: int
    rows: BankRows
    alive: np.ndarray
    origins: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))

    @classmethod
    def start(cls, labels: np.ndarray) -> "BankState":
        """The state before the first version, for labels of the same width as `labels`."""
        return cls(0, BankRows.none(labels), np.zeros(0, bool))

    @cached_property
    def members(self) -> np.ndarray:
        """int64, numbers of the rows that the bank holds, in rising order."""
        return np.flatnonzero(self.alive)

    @property
    def ids(self) -> list[str]:
        """Ids of `members`."""
        return [self.rows.ids[row] for row in self.members.tolist()]

    @property
    def labels(self) -> np.ndarray:
        """Labels of `members`."""
        return self.rows.labels[self.members]

    def row(self, number: int) -> dict[str, Any]:
        """The row with a number: `id`, `label`, `source`, `note`, `time`, `image_hash`."""
        rows = self.rows
        return {
            "id": rows.ids[number],
            "label": rows.labels[number].tolist(),
            "source": rows.sources[number],
            "note": rows.notes[number],
            "time": rows.times[number],
            "image_hash": f"{rows.image_hashes[number]:016x}",
        }

    def after(self, changes: Iterable[Change]) -> "BankState":
        """The state after further changes."""
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
        """The change that restores the content of an earlier state."""
        before = np.zeros(len(self.alive), bool)
        before[: len(old.alive)] = old.alive
        kept = np.flatnonzero(before)
        current, then = self.rows.labels[kept], old.rows.labels[kept]
        differs = differing(current, then) | (self.rows.decided[kept] != old.rows.decided[kept])
        return Change.of(
            self.rows.labels,
            removed=np.flatnonzero(self.alive & ~before),
            restored=np.flatnonzero(before & ~self.alive),
            relabelled=kept[differs],
            new_labels=then[differs],
            new_decided=old.rows.decided[kept][differs],
        )


def differing(labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """bool [M]: where two arrays of labels, [M] or [M, C], differ."""
    return (labels != others).any(axis=tuple(range(1, labels.ndim)))


def now() -> str:
    """The current time: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def no_labels(problem: Problem) -> np.ndarray:
    """The labels of no row: int64 [0], or [0, C] for `multi_label`."""
    return np.zeros((0, problem.outputs) if problem.kind == "multi_label" else 0, np.int64)


def check_entry(author: str, reason: str) -> None:
    """Raise `UserError` unless author and reason are given, in UTF-8."""
    problems = [] if reason.strip() else ["--reason is empty; say why, the log keeps it."]
    problems += [] if author.strip() else ["--author is empty; the log keeps who did it."]
    problems += [
        f"{option} {text!r} is not UTF-8; set the terminal, or what starts this command, to UTF-8."
        for option, text in (("--reason", reason), ("--author", author))
        if well_formed(text) != text
    ]
    raise_all(problems, "The change cannot be entered in the log")


def check_new(rows: BankRows, embedding: np.ndarray, problem: Problem, dimension: int) -> np.ndarray:
    """Validate new rows, and return their embeddings as float32 [M, D].

    Raises:
        UserError: duplicate ids, labels that are not the problem's, embeddings of another width or not finite.
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
    duplicates = [f"id {name!r}" for name, count in Counter(rows.ids).items() for _ in range(count - 1)]
    raise_all(duplicates, "The new memes hold these more than once")
    return embedding
