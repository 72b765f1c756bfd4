"""Comparison of the bank that votes with the bank that an operating point was chosen with.

A bank is identified by its rows (ids, labels, embeddings), not by the kind of folder that holds them: an example bank
created from a feature store is the same bank.

Shapes: N bank rows, D embedding, C classes.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ra_hmd.bank.bank import Bank
from ra_hmd.core.artifacts import sha256_bytes
from ra_hmd.core.heads import Head
from ra_hmd.core.manifests import BankReference
from ra_hmd.retrieval.embeddings import Embeddings

_SUMS = 8  # one per bit of a byte
_TOLERANCE = 3e-3  # of the root mean square: kernels round by far less, one other row in 10,000 differs by more


def rows_digest(ids: Sequence[str], labels: np.ndarray) -> str:
    """SHA-256 of ids and labels, whatever the order of the rows."""
    labels = np.ascontiguousarray(labels, dtype="<i8")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return sha256_bytes(*(part for row in order for part in (ids[row].encode(), labels[row].tobytes())))


def rows_sketch(ids: Sequence[str], embedding: np.ndarray) -> list[float]:
    """Signed sums over the embeddings [N, D] and their scale: equal up to rounding for equal rows in any order.

    A digest of the numbers themselves would differ between a CPU and a GPU.
    """
    values = embedding.astype(np.float64) @ np.sin(np.arange(1, embedding.shape[1] + 1))
    first = np.frombuffer(b"".join(hashlib.sha256(name.encode()).digest()[:1] for name in ids), np.uint8)
    signs = 1.0 - 2.0 * np.unpackbits(first[:, None], axis=1)  # [N, _SUMS]
    return [*(values @ signs / np.sqrt(len(ids))).tolist(), float(np.sqrt((values**2).mean()))]


def bank_content(rows: Embeddings) -> dict[str, Any]:
    """The identity of a bank's rows: `rows`, `sha256` (of ids and labels), `sketch` (of embeddings)."""
    ids = list(rows.ids)
    return {"rows": len(ids), "sha256": rows_digest(ids, rows.labels), "sketch": rows_sketch(ids, rows.embedding)}


def same_sketch(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two sketches are of equal rows."""
    ours, theirs = np.array(first), np.array(second)
    return ours.shape == theirs.shape and bool((np.abs(ours - theirs) <= _TOLERANCE * max(ours[-1], theirs[-1])).all())


@dataclass(frozen=True)
class BankMatch:
    """Result of comparing the bank that votes with the one that an operating point was chosen with.

    Attributes:
        holds: Whether it has the same rows, or had them at an earlier version. An operating point stays in force while
            a bank grows, so that one correction does not move the threshold of all verdicts.
        grown_from: That version, if it is an earlier one.
        version: The current version of an example bank.
    """

    holds: bool
    grown_from: int | None = None
    version: int | None = None

    def notes(self, head: Head = "rkc") -> list[str]:
        """Caveats for a bank head's verdicts of a bank that has grown."""
        if self.grown_from is None:
            return []
        return [
            f"{head.upper()}: its threshold was chosen with version {self.grown_from} of the bank, which is at "
            f"{self.version}; choose anew with `--dev` from time to time."
        ]


NO_MATCH = BankMatch(holds=False)
"""No bank, or another one."""


def match_bank(bank: Bank, chosen: BankReference) -> BankMatch:
    """Compare an example bank with the bank that an operating point records."""
    for version in _likely_versions(bank, chosen):
        if _is_recorded(bank, version, chosen):
            return BankMatch(True, None if version == bank.version else version, bank.version)
    return NO_MATCH


def _likely_versions(bank: Bank, chosen: BankReference) -> Iterator[int]:
    """Versions that may be the recorded bank, the likely ones first."""
    content, recorded = chosen.content, chosen.version
    likely = [bank.version, *([recorded] if recorded is not None else [])]
    if content is not None:
        same_size = [entry.version for entry in bank.log if entry.counts["rows"] == content.rows]
        likely = [*(version for version in (*likely, 1) if version in same_size), *reversed(same_size)]
    yield from (version for version in dict.fromkeys(likely) if 1 <= version <= bank.version)


def _is_recorded(bank: Bank, version: int, chosen: BankReference) -> bool:
    """Whether a version is the recorded bank."""
    content = chosen.content
    if content is None:
        return bank_record(bank, version)["sha256"] == chosen.sha256
    state = bank.state_at(version)
    if rows_digest(state.ids, state.labels) != content.sha256:
        return False
    return same_sketch(rows_sketch(state.ids, bank.to_embeddings(version, views=()).embedding), content.sketch)


def bank_record(bank: Bank, version: int | None = None) -> dict[str, Any]:
    """`place`, `version` and `sha256` (of origin, ids, labels) of a version (default: the one shown), for manifests."""
    state = bank.state_at(version)
    origin, ids = json.dumps(bank.fingerprint, sort_keys=True), json.dumps(state.ids, ensure_ascii=False)
    digest = sha256_bytes(origin.encode(), ids.encode(), state.labels.astype("<i8").tobytes())
    return {"place": str(bank.location), "version": state.version, "sha256": digest}
