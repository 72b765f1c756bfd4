"""Rows of a bank that are the same meme: by the hash of picture and caption (`ra_hmd.data.images.content_hash`).

A row is decided where a person gave its label to this very meme: it was added or relabelled after the bank was made, or
the bank was made of decisions. A meme that is identical to it is answered by its label. Rows that are not decided are
examples, which vote and nothing more.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ra_hmd.bank.versions import BankRows, BankState, Change, differing
from ra_hmd.core.errors import UserError, raise_all

REMEDY = (
    "relabel or remove those rows first, or give the new label to all rows of the meme with --relabel-identical "
    "(API: relabel_identical)"
)


class Contradicts(UserError):
    """The bank holds the same picture and caption with another label. Nothing was changed."""


def decided_rows(state: BankState) -> dict[str, int]:
    """Content → number of the row that answers it; without contents on which decisions contradict each other."""
    found: dict[str, int] = {}
    open_to_doubt = set()
    labels = state.rows.labels
    for row in np.flatnonzero(state.alive & state.rows.decided).tolist():
        content = state.rows.contents[row]
        if content and not np.array_equal(labels[found.setdefault(content, row)], labels[row]):
            open_to_doubt.add(content)
    return {content: row for content, row in found.items() if content not in open_to_doubt}


def decided_labels(state: BankState) -> dict[str, Any]:
    """Content hash to the label of the row that answers it."""
    return {content: state.rows.labels[row].tolist() for content, row in decided_rows(state).items()}


def rows_with(state: BankState, contents: Sequence[str]) -> dict[str, list[int]]:
    """Content → numbers of the state's rows that have it; of those that are asked for, without the empty one."""
    wanted = set(contents) - {""}
    found: dict[str, list[int]] = {}
    for row in np.flatnonzero(state.alive).tolist() if wanted else ():
        if state.rows.contents[row] in wanted:
            found.setdefault(state.rows.contents[row], []).append(row)
    return found


def check_one_label(rows: BankRows) -> None:
    """Raise `UserError` where two of the rows are the same meme with different labels."""
    first: dict[str, int] = {}
    wrong = [
        f"ids {rows.ids[other]!r} (label {_said(rows.labels[other])}) and {name!r} (label {_said(rows.labels[place])})"
        for place, (name, content) in enumerate(zip(rows.ids, rows.contents, strict=True))
        if content and not np.array_equal(rows.labels[other := first.setdefault(content, place)], rows.labels[place])
    ]
    raise_all(wrong, "These are the same picture and caption with different labels; decide on one label")


def addition(state: BankState, rows: BankRows, relabel_identical: bool, place: object) -> Change:
    """The change that adds rows to a state.

    Args:
        state: Of the bank.
        rows: The new memes.
        relabel_identical: Whether rows that are the same memes with other labels get the new ones.
        place: Of the bank, for messages.

    Raises:
        UserError: ids that the state has; two labels for one meme; memes that it has with another label
            (`Contradicts`).
    """
    taken = {state.rows.ids[row] for row in np.flatnonzero(state.alive)}
    present = [f"id {name!r}" for name in rows.ids if name in taken]
    raise_all(present, f"{place} has these already; relabel or remove them, or leave them out")
    check_one_label(rows)
    other = _contradicting(state, rows, relabel_identical, place)
    numbers, memes = np.array(list(other), np.int64), list(other.values())
    return Change.of(
        state.rows.labels,
        added=rows,
        relabelled=numbers,
        new_labels=rows.labels[memes],
        new_decided=rows.decided[memes],
    )


def relabelling(
    state: BankState, numbers: np.ndarray, labels: np.ndarray, relabel_identical: bool, place: object
) -> Change:
    """The change that gives rows of a state, by number [M], other labels; those that have them stay untouched.

    Args:
        state: Of the bank.
        numbers: int64 [M].
        labels: [M] or [M, C].
        relabel_identical: Whether all rows of the same memes get their labels.
        place: Of the bank, for messages.

    Raises:
        UserError: two labels for one meme; other rows of a meme that would keep another label (`Contradicts`).
    """
    known, blank = state.rows, [""] * len(numbers)
    ids = [known.ids[row] for row in numbers]
    contents = [known.contents[row] for row in numbers]
    named = BankRows(ids, labels, blank, blank, blank, np.zeros(len(numbers), np.uint64), contents)
    check_one_label(named)
    differs = differing(known.labels[numbers], labels)
    changed = [content if differs[meme] else "" for meme, content in enumerate(contents)]
    other = _contradicting(state, replace(named, contents=changed), relabel_identical, place)
    memes = [*np.flatnonzero(differs).tolist(), *other.values()]
    rows = np.concatenate([numbers[differs], np.array(list(other), np.int64)])
    return Change.of(labels, relabelled=rows, new_labels=labels[memes])


def _contradicting(state: BankState, memes: BankRows, relabel: bool, place: object) -> dict[int, int]:
    """Rows of a state that hold one of the memes under another id with another label → which of the memes.

    Raises:
        Contradicts: there are such rows, and they are not to be relabelled.
    """
    known, own = rows_with(state, memes.contents), set(memes.ids)
    found = {
        row: meme
        for meme, content in enumerate(memes.contents)
        for row in known.get(content, ())
        if state.rows.ids[row] not in own and not np.array_equal(state.rows.labels[row], memes.labels[meme])
    }
    if found and not relabel:
        lines = [
            f"id {memes.ids[meme]!r} (label {_said(memes.labels[meme])}) is {state.rows.ids[row]!r} there (label "
            f"{_said(state.rows.labels[row])})"
            for row, meme in found.items()
        ]
        try:
            raise_all(lines, f"{place} holds the same picture and caption with another label; {REMEDY}")
        except UserError as error:
            raise Contradicts(str(error)) from None
    return found


def _said(label: np.ndarray) -> str:
    return ",".join(map(str, np.atleast_1d(label).tolist()))
