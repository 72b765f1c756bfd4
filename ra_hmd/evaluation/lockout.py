"""The test split is opened on purpose, and it is written down beside the head.

Whoever looks at test scores and then changes something has no test set left. So a store of the test split is scored
only with `final`, and each time is one line in `final_evaluations.jsonl` in the head's folder: a reviewer counts them.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ra_hmd.errors import UserError, raise_all
from ra_hmd.evaluation.checks import store_fingerprint
from ra_hmd.features.store import Features
from ra_hmd.manifest import plain, sha256_bytes

FINAL_RECORD = "final_evaluations.jsonl"
"""In a head's folder: one line per evaluation that opened a test split."""

_TEST = {"test", "testing"}
_OTHER = {"train", "training", "dev", "val", "valid", "validation", "eval"}


def split_name(features: Features, place: str | Path) -> str:
    """The split that a store's manifest states; where it states none, the name of its folder."""
    return features.provenance.split or Path(place).absolute().name


def names_test(name: str) -> bool:
    """Whether `test` is a word of a split's name (`test`, `test_seen`, `b-test`)."""
    return bool(_words(name) & _TEST)


def is_test_split(name: str) -> bool:
    """Whether a query set of this split must be taken for test data.

    A name that says neither test nor train or dev is taken for it too: a lock that opens when nothing is known would
    not be one.
    """
    return names_test(name) or not _words(name) & _OTHER


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", name.lower()))


def store_digest(features: Features) -> str:
    """SHA-256 of what a store is: its fingerprint, ids and labels."""
    stated = json.dumps(plain(store_fingerprint(features)), sort_keys=True)
    ids = json.dumps(list(features.ids), ensure_ascii=False)
    return sha256_bytes(stated.encode(), ids.encode(), features.labels.astype("<i8").tobytes())


def open_queries(
    stores: Mapping[str | Path, Features],
    heads: Sequence[str | Path],
    *,
    final: bool,
    command: str,
    banks: Mapping[str | Path, Features] | None = None,
) -> dict[str, Any]:
    """Let query sets be scored, or refuse: the test split needs `final`. Call it before anything is scored.

    Args:
        stores: Place (folder) to features of all the query sets.
        heads: Folders of the heads that will score them; each gets a line per call in which a test split is opened.
        final: Whether the user said `--final`.
        command: The command line, for the record.
        banks: Place to features of labelled examples: they count where their split's name says test. A name that says
            nothing is no hindrance here, examples are training data.

    Returns:
        For the run's manifest: `final`, `test_sets` (place → split name) and `opened_before` (head → how many earlier
        evaluations of it opened a test split).

    Raises:
        UserError: a test split, or one of unknown kind, without `final`.
    """
    names = {str(place): split_name(features, place) for place, features in stores.items()}
    tests = {place: name for place, name in names.items() if is_test_split(name)}
    for place, features in (banks or {}).items():
        if names_test(split_name(features, place)):
            tests[str(place)] = split_name(features, place)
    if tests and not final:
        raise_all(
            [f"{place} (split {name!r})" for place, name in tests.items()],
            "Test data, or data of a split that is neither named train nor dev, is scored only with `--final`: when "
            "everything is decided. Compare and choose on dev; a store is known by the `--split` of `ra-hmd extract`, "
            "else by its folder's name",
        )
    before = {str(head): len(final_records(head)) for head in heads}
    if tests:
        found = {str(place): features for place, features in {**(banks or {}), **stores}.items()}
        opened = [
            {"store": place, "split": name, "rows": len(found[place]), "sha256": store_digest(found[place])}
            for place, name in tests.items()
        ]
        for head in dict.fromkeys(map(Path, heads)):
            _append(head / FINAL_RECORD, {"time": _now(), "command": command, "test_sets": opened})
    return {"final": final, "test_sets": tests, "opened_before": before}


def final_records(head: str | Path) -> list[dict[str, Any]]:
    """The evaluations of this head that opened a test split, oldest first.

    Raises:
        UserError: a line that is not JSON.
    """
    path = Path(head) / FINAL_RECORD
    if not path.is_file():
        return []
    records = []
    whole, _, _ = path.read_bytes().rpartition(b"\n")  # what follows is a line that someone is writing now
    for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"{path}, line {number} is not JSON: {error}. Restore the line; do not remove it."
            ) from error
    return records


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _append(path: Path, record: dict[str, Any]) -> None:
    """Append a line in one write, so that two evaluations at once do not mix theirs."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
        os.fsync(file)
    finally:
        os.close(file)
