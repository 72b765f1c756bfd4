"""Rows of a bank across its versions: the changes of one row, what differs between two versions, lists of rows."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ra_hmd.bank.identical import LabelConflictError, rows_by_content
from ra_hmd.bank.reader import BankReader
from ra_hmd.bank.versions import BankState, Change, VersionEntry
from ra_hmd.core.errors import UserError

Operation = Literal["added", "removed", "restored", "relabelled"]


@dataclass(frozen=True)
class RowChange:
    """What a version did to a row.

    Attributes:
        entry: Log entry of the version.
        operation: What it did.
        before: Label before; None where the bank did not hold the row.
        after: Label after; None where the bank does not hold the row.
    """

    entry: VersionEntry
    operation: Operation
    before: Any | None
    after: Any | None

    def to_dict(self) -> dict[str, Any]:
        """The change as JSON values."""
        said = {name: getattr(self.entry, name) for name in ("version", "action", "author", "reason", "time")}
        return {**said, "operation": self.operation, "label_before": self.before, "label_after": self.after}


@dataclass(frozen=True)
class RowDifference:
    """A row that differs between two versions.

    Attributes:
        row: The row (`BankState.row`) as the later version has it, or where it is missing there, the earlier one.
        before: Its label at the first version; None where that has no such row.
        after: Its label at the other version; None where that has no such row.
    """

    row: dict[str, Any]
    before: Any | None
    after: Any | None

    @property
    def kind(self) -> Literal["added", "removed", "relabelled"]:
        """What happened to it."""
        return "added" if self.before is None else "removed" if self.after is None else "relabelled"

    def to_dict(self) -> dict[str, Any]:
        """The difference as JSON values."""
        row = {name: value for name, value in self.row.items() if name != "label"}
        return {"kind": self.kind, "label_before": self.before, "label_after": self.after, **row}


def list_rows(
    state: BankState,
    *,
    words: str = "",
    label: Any | None = None,
    source: str | None = None,
    limit: int = 50,
    offset: int = 0,
) -> tuple[list[dict[str, Any]], int]:
    """A page of rows, newest first, and the number of all that pass the filters.

    Args:
        state: A version of the bank.
        words: Text in the id or the note, whatever its case.
        label: Only rows with this label; of a multi-label task, rows that are of this class.
        source: Only rows from this source; of a folder its name is enough.
        limit: Most rows of a page.
        offset: Number of rows that come before it.
    """
    rows, wanted = state.rows, words.casefold()

    def passes(number: int) -> bool:
        if wanted and wanted not in rows.ids[number].casefold() and wanted not in rows.notes[number].casefold():
            return False
        own = rows.sources[number]
        is_from = source is None or source == own or (own.startswith("/") and source == Path(own).name)
        return is_from and (label is None or _is(rows.labels[number], label))

    numbers = state.members[::-1].tolist()
    found = [number for number in numbers if passes(number)] if wanted or (source, label) != (None, None) else numbers
    return [state.row(number) for number in islice(found, offset, offset + limit)], len(found)


def _is(label: np.ndarray, wanted: Any) -> bool:
    if label.ndim and isinstance(wanted, int):
        return 0 <= wanted < len(label) and bool(label[wanted] == 1)
    return bool(np.array_equal(label, wanted))


def row_history(bank: BankReader, name: str) -> list[RowChange]:
    """What each version did to the row with an id, oldest first; empty where the bank never had it.

    An id that was removed and added anew counts as one row.
    """
    state = bank.state_at()
    numbers = [number for number, other in enumerate(state.rows.ids) if other == name]
    history: list[RowChange] = []
    labels: dict[int, Any] = {}
    held: set[int] = set()
    for entry, change in bank.changes() if numbers else ():
        first = int(state.origins[entry.version - 1])
        for number in numbers:
            done = _operation(change, number, first)
            if done is None:
                continue
            operation, label = done
            before = labels.get(number) if number in held else None
            labels[number] = labels.get(number) if label is None else label
            held.discard(number) if operation == "removed" else held.add(number)
            history.append(RowChange(entry, operation, before, labels[number] if number in held else None))
    return history


def _operation(change: Change, number: int, first: int) -> tuple[Operation, Any | None] | None:
    """What a change does to a row, and the label that it gives, if it gives one."""
    if first <= number < first + len(change.added):
        return "added", change.added.labels[number - first].tolist()
    found = np.flatnonzero(change.relabelled == number)
    label = change.new_labels[found[0]].tolist() if len(found) else None
    if number in change.removed:
        return "removed", None
    if number in change.restored:
        return "restored", label
    return None if label is None else ("relabelled", label)


def difference(bank: BankReader, first: int, last: int) -> list[RowDifference]:
    """The rows that differ between two versions, in the order in which they were added.

    Raises:
        UserError: there is no such version.
    """
    old, new = bank.state_at(first), bank.state_at(last)
    count = max(len(old.rows), len(new.rows))
    before, after = _places(old, count), _places(new, count)
    shared = min(len(old.rows), len(new.rows))
    relabelled = np.zeros(count, bool)
    changed = old.rows.labels[:shared] != new.rows.labels[:shared]
    relabelled[:shared] = changed.any(axis=tuple(range(1, changed.ndim)))
    touched = np.flatnonzero((before != after) | (relabelled & before & after)).tolist()
    rows = new.rows if len(new.rows) == count else old.rows
    earlier = {rows.ids[number]: number for number in touched if before[number]}
    later = {rows.ids[number]: number for number in touched if after[number]}
    found = []
    for name in dict.fromkeys(rows.ids[number] for number in touched):
        label = old.rows.labels[earlier[name]].tolist() if name in earlier else None
        other = new.rows.labels[later[name]].tolist() if name in later else None
        if label != other:
            row = new.row(later[name]) if name in later else old.row(earlier[name])
            found.append(RowDifference(row, label, other))
    return found


def _places(state: BankState, count: int) -> np.ndarray:
    alive = np.zeros(count, bool)
    alive[: len(state.alive)] = state.alive
    return alive


def taking_back(bank: BankReader, name: str, version: int) -> Change:
    """The change that takes back what a version did to a row, see `Bank.take_back`."""
    history = row_history(bank, name)
    if version not in [one.entry.version for one in history]:
        raise UserError(f"Version {version} of {bank.location} did not change the row {name!r}.")
    if version == 1:
        raise UserError(f"Version 1 created {bank.location}; remove the row {name!r} instead.")
    last = history[-1].entry
    if last.version != version:
        raise UserError(
            f"{last.author} changed the row {name!r} again in version {last.version}; take that back first."
        )
    state = bank.state_at()
    names = {name, *_same_meme(state, name)}
    same = [row for row, other in enumerate(state.rows.ids)
            if other in names and row_history(bank, other)[-1].entry.version == version]  # fmt: skip
    change = state.back_to(bank.state_at(version - 1)).of_rows(same)
    _check_one_label(bank, state, change)
    return change


def _same_meme(state: BankState, name: str) -> list[str]:
    """Ids of the rows, removed ones too, that are the same meme as a row."""
    contents = {content for other, content in zip(state.rows.ids, state.rows.contents, strict=True) if other == name}
    pairs = zip(state.rows.ids, state.rows.contents, strict=True)
    return [other for other, content in pairs if content and content in contents]


def _check_one_label(bank: BankReader, state: BankState, change: Change) -> None:
    """Raise `LabelConflictError` where a row that the change leaves alone is the same meme with another label."""
    after = bank.preview([change])
    changed = np.concatenate([change.restored, change.relabelled]).tolist()
    same = rows_by_content(after, [after.rows.contents[row] for row in changed])
    for row in changed:
        label = after.rows.labels[row].tolist()
        for other in same.get(after.rows.contents[row], ()):
            if other not in changed and after.rows.decided[other] and after.rows.labels[other].tolist() != label:
                raise LabelConflictError(
                    f"The row {state.rows.ids[other]!r} of {bank.location} is the same meme and would keep another "
                    "label; relabel both."
                )
