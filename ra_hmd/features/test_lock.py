"""The lock on test splits.

Test scores that later decisions are based on are no test scores any more. A test split is therefore scored only with
`final`, and each time is recorded by one line in `final_evaluations.jsonl` in the head's folder, where a reviewer can
count them. All commands that read labels call `open_labels`; `ra-hmd predict` reads none.
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

StoresByPlace = Mapping[str, Features] | Mapping[Path, Features] | Mapping[str | Path, Features]
"""Place (folder) to features."""
FINAL_RECORD = "final_evaluations.jsonl"
"""File in a head's folder with one line per evaluation that opened a test split."""

_TEST = {"test", "testing"}
_TRAINING = {"train", "training"}
_OTHER = _TRAINING | {"dev", "val", "valid", "validation", "eval"}


def split_name(features: Features, place: str | Path) -> str:
    """Split that a store's manifest states; else the name of the store's folder."""
    return features.manifest.split_name or Path(place).absolute().name


def is_test_split(name: str) -> bool:
    """Whether data of a split count as test data: `test` is a word of its name (`test_seen`, `b-test`), or neither
    train nor dev is. A split of unknown kind is locked.
    """
    return says_test(name) or not _words(name) & _OTHER


def is_training_split(name: str) -> bool:
    """Whether `train` is a word of a split's name, and `test` is none."""
    return bool(_words(name) & _TRAINING) and not says_test(name)


def says_test(name: str) -> bool:
    """Whether `test` is a word of a name, for names that need not name a split."""
    return bool(_words(name) & _TEST)


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", name.lower()))


def store_digest(features: Features) -> str:
    """SHA-256 of a store's fingerprint, ids and labels."""
    stated = json.dumps(plain(store_fingerprint(features)), sort_keys=True)
    ids = json.dumps(list(features.ids), ensure_ascii=False)
    return sha256_bytes(stated.encode(), ids.encode(), features.labels.astype("<i8").tobytes())


def open_labels(
    scored: StoresByPlace | None = None,
    heads: Sequence[str | Path] = (),
    *,
    final: bool = False,
    command: str = "",
    examples: StoresByPlace | None = None,
    chosen_by: StoresByPlace | Mapping[str, Features | str] | Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Check that labels may be read, and record that a test split is opened.

    Labels of a test split need `final`, and nothing may be chosen by them. Every command that shows, counts or uses
    labels calls this first. A store without any label passes.

    Args:
        scored: Place (folder) to features of all query sets.
        heads: Folders of the heads that will score them; a line is added to each where a test split is opened.
        final: Whether the user gave `--final`.
        command: The command line, for the record.
        examples: Place to features of labelled examples. They are training data, and are locked only where the name of
            their split contains `test`.
        chosen_by: Place to features, or name of the split, of what thresholds, epochs, settings or corrections are
            chosen by; refused with `final` too.

    Returns:
        Fields of the run's manifest: `final`, `test_sets` (place → split name) and `opened_before` (head → number
        of its earlier evaluations that opened a test split).

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
    tests |= {place: name for place, one in banks.items() if says_test(name := split_name(one, place))}
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


def check_training(splits: Mapping[str, str], purpose: str) -> None:
    """Raise `UserError` unless all splits are training splits, for what is fitted without labels too.

    Args:
        splits: Place to split.
        purpose: What is done with the memes, the beginning of the message: `Clusters are fitted`.
    """
    other = {place: name for place, name in splits.items() if not is_training_split(name)}
    _raise(other, f"{purpose} on a training split alone, never on dev or test data; give one whose name has `train`")


def _labelled(stores: StoresByPlace) -> dict[str, Features]:
    return {str(place): features for place, features in stores.items() if _has_labels(features)}


def _has_labels(features: Features) -> bool:
    return bool((features.labels != UNLABELLED).any())


def _raise(names: Mapping[str, str], why: str) -> None:
    """Raise `UserError` for the given places and splits, if there are any."""
    known = "a store is known by the `--split` of `ra-hmd extract` or `encode`, else by its folder's name"
    raise_all([f"{place} (split {name!r})" for place, name in names.items()], f"{why}; {known}")


def final_records(head: str | Path) -> list[dict[str, Any]]:
    """Evaluations of this head that opened a test split, oldest first.

    Raises:
        UserError: a line that is not JSON.
    """
    path = Path(head) / FINAL_RECORD
    if not path.is_file():
        return []
    records = []
    whole, _, _ = path.read_bytes().rpartition(b"\n")  # the rest is a line that another process is writing
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
    """Append a line in one write, so that lines of simultaneous evaluations do not mix."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
        os.fsync(file)
    finally:
        os.close(file)
