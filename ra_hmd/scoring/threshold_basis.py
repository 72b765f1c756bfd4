"""Whether the bank that votes holds the rows with which a decision's rules were chosen.

A bank is known by what its rows are (ids, labels, embeddings), not by the kind of folder that holds them: an example
bank made from a feature store is the same bank.

Shapes: N bank rows, D embedding, C classes.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ra_hmd.bank.bank import Bank
from ra_hmd.core.artifacts import sha256_bytes
from ra_hmd.retrieval.embeddings import Embeddings

if TYPE_CHECKING:
    pass

_SUMS = 8  # one per bit of a byte
_TOLERANCE = 3e-3  # of the root mean square: kernels round by far less, one other row in 10,000 differs by more


def rows_digest(ids: Sequence[str], labels: np.ndarray) -> str:
    """SHA-256 of ids and labels, whatever the order of the rows."""
    labels = np.ascontiguousarray(labels, dtype="<i8")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return sha256_bytes(*(part for row in order for part in (ids[row].encode(), labels[row].tobytes())))


def rows_sketch(ids: Sequence[str], embedding: np.ndarray) -> list[float]:
    """A few sums over the embeddings [N, D], then their scale: equal up to rounding for equal rows in any order.

    A digest of the numbers themselves would differ between a CPU and a GPU.
    """
    values = embedding.astype(np.float64) @ np.sin(np.arange(1, embedding.shape[1] + 1))
    first = np.frombuffer(b"".join(hashlib.sha256(name.encode()).digest()[:1] for name in ids), np.uint8)
    signs = 1.0 - 2.0 * np.unpackbits(first[:, None], axis=1)  # [N, _SUMS]
    return [*(values @ signs / np.sqrt(len(ids))).tolist(), float(np.sqrt((values**2).mean()))]


def content_of(rows: Embeddings) -> dict[str, Any]:
    """What the rows of a bank are: `rows`, `sha256` (of ids and labels), `sketch` (of embeddings)."""
    ids = list(rows.ids)
    return {"rows": len(ids), "sha256": rows_digest(ids, rows.labels), "sketch": rows_sketch(ids, rows.embedding)}


def same_sketch(first: Sequence[float], second: Sequence[float]) -> bool:
    ours, theirs = np.array(first), np.array(second)
    return ours.shape == theirs.shape and bool((np.abs(ours - theirs) <= _TOLERANCE * max(ours[-1], theirs[-1])).all())


@dataclass(frozen=True)
class BankMatch:
    """How the bank that votes stands to the one that rules were chosen with.

    Attributes:
        holds: It has the same rows, or had them at an earlier version: the rules stay in force while a bank grows, so
            that one correction does not move the threshold under all verdicts.
        grown_from: That version, where it is an earlier one.
        version: Of the example bank, now.
    """

    holds: bool
    grown_from: int | None = None
    version: int | None = None

    def notes(self) -> list[str]:
        """What a reader of the RKC's verdicts must know of a bank that has grown."""
        if self.grown_from is None:
            return []
        return [
            f"RKC: its threshold was chosen with version {self.grown_from} of the bank, which is at {self.version}; "
            "choose anew with `--dev` from time to time."
        ]


OTHER = BankMatch(holds=False)
"""No bank, or another one."""


def match_bank(bank: Bank, chosen: Mapping[str, Any]) -> BankMatch:
    """How an example bank stands to the bank that a decision states."""
    for version in _candidates(bank, chosen):
        if _was(bank, version, chosen):
            return BankMatch(True, None if version == bank.version else version, bank.version)
    return OTHER


def _candidates(bank: Bank, chosen: Mapping[str, Any]) -> Iterator[int]:
    """Versions that may be the stated bank, the likely ones first."""
    content, stated = chosen.get("content"), chosen.get("version")
    likely = [bank.version, *([stated] if stated is not None else [])]
    if content is not None:
        same_size = [entry.version for entry in bank.log if entry.counts["rows"] == content["rows"]]
        likely = [*(version for version in (*likely, 1) if version in same_size), *reversed(same_size)]
    yield from (version for version in dict.fromkeys(likely) if 1 <= version <= bank.version)


def _was(bank: Bank, version: int, chosen: Mapping[str, Any]) -> bool:
    """Whether a version is the stated bank."""

    content = chosen.get("content")
    if content is None:
        return bank_state(bank, version)["sha256"] == chosen["sha256"]
    state = bank.at(version)
    members = np.flatnonzero(state.alive)
    ids = [state.rows.ids[row] for row in members]
    if rows_digest(ids, state.rows.labels[members]) != content["sha256"]:
        return False
    return same_sketch(rows_sketch(ids, bank.to_embeddings(version).embedding), content["sketch"])


def bank_state(bank: Bank, version: int | None = None) -> dict[str, Any]:
    """`place`, `version` and `sha256` (of origin, ids, labels) of a version, by default the one shown."""
    state = bank.at(version)
    members = np.flatnonzero(state.alive)
    stated = json.dumps(bank.fingerprint, sort_keys=True)
    ids = json.dumps([state.rows.ids[row] for row in members], ensure_ascii=False)
    digest = sha256_bytes(stated.encode(), ids.encode(), state.rows.labels[members].astype("<i8").tobytes())
    return {"place": str(bank.place), "version": state.version, "sha256": digest}
