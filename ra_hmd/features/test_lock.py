"""The test split is opened on purpose, and it is written down beside the head.

Whoever looks at test scores and then changes something has no test set left. So a store of the test split is scored
only with `final`, and each time is one line in `final_evaluations.jsonl` in the head's folder: a reviewer counts them.
All commands that read labels ask `open_labels`; `ra-hmd predict` looks at none.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ra_hmd.core.artifacts import plain, sha256_bytes
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.problem import UNLABELLED
from ra_hmd.features.compatibility import store_fingerprint
from ra_hmd.features.store import Features

FINAL_RECORD = "final_evaluations.jsonl"
"""In a head's folder: one line per evaluation that opened a test split."""

_TEST = {"test", "testing"}
_OTHER = {"train", "training", "dev", "val", "valid", "validation", "eval"}


def split_name(features: Features, place: str | Path) -> str:
    """The split that a store's manifest states; where it states none, the name of its folder."""
    return features.manifest.split_name or Path(place).absolute().name


def is_test_split(name: str) -> bool:
    """Whether data of this split must be taken for test data: `test` is a word of its name (`test_seen`, `b-test`), or
    neither train nor dev is.

    A lock that opens when nothing is known would not be one.
    """
    return says_test(name) or not _words(name) & _OTHER


def says_test(name: str) -> bool:
    """Whether `test` is a word of a name: for names that need not say of which split the data is."""
    return bool(_words(name) & _TEST)


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", name.lower()))


def store_digest(features: Features) -> str:
    """SHA-256 of what a store is: its fingerprint, ids and labels."""
    stated = json.dumps(plain(store_fingerprint(features)), sort_keys=True)
    ids = json.dumps(list(features.ids), ensure_ascii=False)
    return sha256_bytes(stated.encode(), ids.encode(), features.labels.astype("<i8").tobytes())


def open_labels(
    scored: Mapping[str | Path, Features] | None = None,
    heads: Sequence[str | Path] = (),
    *,
    final: bool = False,
    command: str = "",
    examples: Mapping[str | Path, Features] | None = None,
    chosen_by: Mapping[str | Path, Features | str] | None = None,
) -> dict[str, Any]:
    """Let labels be read, or refuse: those of a test split need `final`, and nothing is chosen by them.

    Every command that shows, counts or uses labels of memes calls it before it does. A store without any label passes.

    Args:
        scored: Place (folder) to features of all the query sets.
        heads: Folders of the heads that will score them; each gets a line per call in which a test split is opened.
        final: Whether the user said `--final`.
        command: The command line, for the record.
        examples: Place to features of labelled examples: they count where their split's name says test. A name that
            says nothing is no hindrance here, examples are training data.
        chosen_by: Place to features, or name of the split, of what thresholds, epochs, settings or corrections are
            chosen by; refused with `final` too.

    Returns:
        For the run's manifest: `final`, `test_sets` (place → split name) and `opened_before` (head → how many earlier
        evaluations of it opened a test split).

    Raises:
        UserError: a test split, or one of unknown kind, that something is chosen by, or without `final`.
    """
    labelled, banks = _labelled(scored or {}), _labelled(examples or {})
    choosing = {
        str(place): of if isinstance(of, str) else split_name(of, place)
        for place, of in (chosen_by or {}).items()
        if isinstance(of, str) or _has_labels(of)
    }
    _raise(
        {place: name for place, name in choosing.items() if is_test_split(name)},
        "Nothing is chosen by test data, or by data of a split that is named neither train nor dev; give a dev split",
    )
    names = {place: split_name(features, place) for place, features in labelled.items()}
    tests = {place: name for place, name in names.items() if is_test_split(name)}
    names = {place: split_name(features, place) for place, features in banks.items()}
    tests |= {place: name for place, name in names.items() if says_test(name)}
    if not final:
        _raise(
            tests,
            "Test data, or data of a split that is named neither train nor dev, is scored only with `--final`: when "
            "everything is decided. Compare and choose on dev",
        )
    before = {str(head): len(final_records(head)) for head in heads}
    if tests:
        found = banks | labelled
        opened = [
            {"store": place, "split": name, "rows": len(found[place]), "sha256": store_digest(found[place])}
            for place, name in tests.items()
        ]
        for head in dict.fromkeys(map(Path, heads)):
            _append(head / FINAL_RECORD, {"time": _now(), "command": command, "test_sets": opened})
    return {"final": final, "test_sets": tests, "opened_before": before}


def _labelled(stores: Mapping[str | Path, Features]) -> dict[str, Features]:
    return {str(place): features for place, features in stores.items() if _has_labels(features)}


def _has_labels(features: Features) -> bool:
    return bool((features.labels != UNLABELLED).any())


def _raise(names: Mapping[str, str], why: str) -> None:
    """Raise `UserError` if there are any, with their splits and how a split is known."""
    known = "a store is known by the `--split` of `ra-hmd extract` or `encode`, else by its folder's name"
    raise_all([f"{place} (split {name!r})" for place, name in names.items()], f"{why}; {known}")


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
