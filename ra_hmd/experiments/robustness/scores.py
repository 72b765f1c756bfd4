"""Scores of a system on clean and attacked memes, and the Parquet file that holds them.

Shapes: Q memes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ra_hmd.core.artifacts import atomic_path, plain
from ra_hmd.core.heads import Head

CLEAN, DEV = "clean", "dev"
_DIGEST, _RULES = b"ra_hmd_digest", b"ra_hmd_rules"  # keys of the file's metadata
_VALUES: Sequence[str] = ("scores", "probabilities", "verdicts", "certain")


@dataclass(frozen=True)
class HeadScores:
    """Scores of one head on one set.

    Attributes:
        scores: float64 [Q].
        probabilities: float64 [Q], calibrated probability of class 1.
        verdicts: int64 [Q].
        certain: float64 [Q], estimated probability that the verdict is right; −1 where the vote abstained.
    """

    scores: np.ndarray
    probabilities: np.ndarray
    verdicts: np.ndarray
    certain: np.ndarray


@dataclass(frozen=True)
class SystemScores:
    """Scores of a system.

    Attributes:
        ids: Ids of the clean memes, Q.
        labels: int64 [Q].
        sets: `DEV`, `CLEAN` and each variant → head → scores; all but `DEV` are of the same memes in the same order.
        dev_labels: Labels of the dev memes.
        rules: Head → `threshold`, `calibration`, and `uncalibrated` where it has none.
        bank: `place`, `rows`, `attacked` (rows that `bank_attacks` added).
        opened: Test splits that were opened for it, when it was scored.
        digest: Digest of everything that the scores depend on.
    """

    ids: list[str]
    labels: np.ndarray
    sets: Mapping[str, Mapping[Head, HeadScores]]
    dev_labels: np.ndarray
    rules: Mapping[str, Any]
    bank: Mapping[str, Any]
    digest: str
    opened: Mapping[str, Any] = field(default_factory=dict)

    @property
    def heads(self) -> list[Head]:
        """The heads that it has."""
        return list(self.sets[CLEAN])


def write_scores(path: Path, found: SystemScores) -> None:
    """Write scores as one Parquet file, atomically: a row per meme and set."""
    columns: dict[str, list[Any]] = {"set": [], "id": [], "label": []}
    for name, heads in found.sets.items():
        labels = found.dev_labels if name == DEV else found.labels
        columns["set"] += [name] * len(labels)
        columns["id"] += [""] * len(labels) if name == DEV else found.ids
        columns["label"] += labels.tolist()
        for head, values in heads.items():
            for value in _VALUES:
                columns.setdefault(f"{head}_{value}", []).extend(getattr(values, value).tolist())
    stated = json.dumps(plain({"rules": found.rules, "bank": found.bank, "opened": found.opened}))
    table = pa.table(columns, metadata={_DIGEST: found.digest, _RULES: stated})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_scores(path: Path, digest: str) -> SystemScores | None:
    """Read the scores of a file; None where there is none, or where they depend on something else."""
    if not path.is_file():
        return None
    table = pq.read_table(path)
    metadata = table.schema.metadata or {}
    if metadata.get(_DIGEST, b"").decode() != digest:
        return None
    stated = json.loads(metadata[_RULES])
    of_set = np.array(table["set"].to_pylist())
    values = {name: table[name].to_numpy() for name in table.column_names if name not in ("set", "id")}
    heads: list[Head] = list(stated["rules"])
    sets: dict[str, dict[Head, HeadScores]] = {}
    for name in dict.fromkeys(of_set.tolist()):
        rows = of_set == name
        sets[name] = {head: HeadScores(*(values[f"{head}_{value}"][rows] for value in _VALUES)) for head in heads}
    clean = np.flatnonzero(of_set == CLEAN)
    ids = table["id"].take(pa.array(clean)).to_pylist()
    dev_labels = values["label"][of_set == DEV]
    return SystemScores(
        ids, values["label"][clean], sets, dev_labels, stated["rules"], stated["bank"], digest, stated["opened"]
    )
