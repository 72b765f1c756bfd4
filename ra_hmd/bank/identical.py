"""Rows of a bank that are the same meme: equal hashes of image and caption (`ra_hmd.data.images.content_hash`).

A row is decided where a person gave its label to this very meme: it was added or relabelled after the bank was created,
or the bank was created from such labels. Memes identical to a decided row get its label. Rows that are not decided are
examples, which only vote.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ra_hmd.bank.versions import BankRows, BankState, Change, differing
from ra_hmd.core.errors import UserError, raise_all

_REMEDY = (
    "relabel or remove those rows first, or give the new label to all rows of the meme with --relabel-identical "
    "(API: relabel_identical)"
)


class LabelConflictError(UserError):
    """The bank holds the same image and caption with another label. Nothing was changed."""


def decided_rows(state: BankState) -> dict[str, int]:
    """Content hash to the number of its decided row; contents whose decided rows have different labels are left out."""
    first: dict[str, int] = {}
    conflicting = set()
    labels = state.rows.labels
    for row in np.flatnonzero(state.alive & state.rows.decided).tolist():
        content = state.rows.contents[row]
        if content and not np.array_equal(labels[first.setdefault(content, row)], labels[row]):
            conflicting.add(content)
    return {content: row for content, row in first.items() if content not in conflicting}


def decided_labels(state: BankState) -> dict[str, Any]:
    """Content hash to the label of its decided row."""
    return {content: state.rows.labels[row].tolist() for content, row in decided_rows(state).items()}


def rows_by_content(state: BankState, contents: Sequence[str]) -> dict[str, list[int]]:
    """Content hash to the numbers of the rows that have it, for the given hashes except the empty one."""
    wanted = set(contents) - {""}
    rows: dict[str, list[int]] = {}
    for row in state.members.tolist() if wanted else ():
        if state.rows.contents[row] in wanted:
            rows.setdefault(state.rows.contents[row], []).append(row)
    return rows


def check_one_label(rows: BankRows) -> None:
    """Raise `UserError` where two of the rows are the same meme with different labels."""
    first: dict[str, int] = {}
    problems = []
    for place, (name, content) in enumerate(zip(rows.ids, rows.contents, strict=True)):
        other = first.setdefault(content, place)
        if content and not np.array_equal(rows.labels[other], rows.labels[place]):
            problems.append(
                f"ids {rows.ids[other]!r} (label {_format_label(rows.labels[other])}) and {name!r} (label "
                f"{_format_label(rows.labels[place])})"
            )
    raise_all(problems, "These are the same image and caption with different labels; decide on one label")


def addition(state: BankState, rows: BankRows, relabel_identical: bool, location: object) -> Change:
    """The change that adds rows to a state.

    Args:
        state: State of the bank.
        rows: The new memes.
        relabel_identical: Whether rows that are the same memes with other labels get the new ones.
        location: Location of the bank, for messages.

    Raises:
        UserError: ids that the state has; two labels for one meme; memes that it has with another label
            (`LabelConflictError`).
    """
    taken = set(state.ids)
    present = [f"id {name!r}" for name in rows.ids if name in taken]
    raise_all(present, f"{location} has these already; relabel or remove them, or leave them out")
    check_one_label(rows)
    conflicts = _conflicting_rows(state, rows, relabel_identical, location)
    memes = list(conflicts.values())
    return Change.of(
        state.rows.labels,
        added=rows,
        relabelled=np.array(list(conflicts), np.int64),
        new_labels=rows.labels[memes],
        new_decided=rows.decided[memes],
    )


def relabelling(
    state: BankState, numbers: np.ndarray, labels: np.ndarray, relabel_identical: bool, location: object
) -> Change:
    """The change that gives other labels to rows of a state; rows that have them already are left out.

    Args:
        state: State of the bank.
        numbers: int64 [M], row numbers.
        labels: [M] or [M, C].
        relabel_identical: Whether all rows of the same memes get their labels.
        location: Location of the bank, for messages.

    Raises:
        UserError: two labels for one meme; other rows of a meme that would keep another label (`LabelConflictError`).
    """
    ids = [state.rows.ids[row] for row in numbers.tolist()]
    contents = [state.rows.contents[row] for row in numbers.tolist()]
    memes = BankRows(ids, labels, contents=contents)
    check_one_label(memes)
    differs = differing(state.rows.labels[numbers], labels)
    changed = [content if differs[meme] else "" for meme, content in enumerate(contents)]
    conflicts = _conflicting_rows(state, replace(memes, contents=changed), relabel_identical, location)
    sources = [*np.flatnonzero(differs).tolist(), *conflicts.values()]
    rows = np.concatenate([numbers[differs], np.array(list(conflicts), np.int64)])
    return Change.of(labels, relabelled=rows, new_labels=labels[sources])


def _conflicting_rows(state: BankState, memes: BankRows, relabel: bool, location: object) -> dict[int, int]:
    """Number of each row that is one of the memes under another id with another label, to the place of that meme.

    Raises:
        LabelConflictError: there are such rows, and they are not to be relabelled.
    """
    same, own = rows_by_content(state, memes.contents), set(memes.ids)
    conflicts = {
        row: meme
        for meme, content in enumerate(memes.contents)
        for row in same.get(content, ())
        if state.rows.ids[row] not in own and not np.array_equal(state.rows.labels[row], memes.labels[meme])
    }
    if conflicts and not relabel:
        lines = [
            f"id {memes.ids[meme]!r} (label {_format_label(memes.labels[meme])}) is {state.rows.ids[row]!r} there "
            f"(label {_format_label(state.rows.labels[row])})"
            for row, meme in conflicts.items()
        ]
        try:
            raise_all(lines, f"{location} holds the same image and caption with another label; {_REMEDY}")
        except UserError as error:
            raise LabelConflictError(str(error)) from None
    return conflicts


def _format_label(label: np.ndarray) -> str:
    return ",".join(map(str, np.atleast_1d(label).tolist()))
