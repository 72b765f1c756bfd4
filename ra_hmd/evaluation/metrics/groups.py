"""Error rates per group of memes, such as the targeted group or the source.

Shapes: Q memes, G memes of a group.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ra_hmd.core.errors import UserError
from ra_hmd.evaluation.metrics.estimates import estimates
from ra_hmd.evaluation.metrics.intervals import rate
from ra_hmd.scoring.scores import ScoredSet

SMALL = 30
"""Groups with fewer cases of a class than this are marked as small."""

NO_VALUE = "none"
"""Name of the group of memes whose field is an empty list."""


def parse_group(text: str) -> tuple[str, tuple[str, ...] | None]:
    """Parse `FIELD`, or `DATASET:FIELD` to name the groups after that data set's classes.

    Returns:
        The field, and the class names or None.

    Raises:
        UserError: unknown data set or task.
    """
    dataset, colon, name = text.rpartition(":")
    if not colon:
        return text, None
    from ra_hmd.data.readers import READERS

    if dataset not in READERS:
        raise UserError(f"--groups {text}: there is no data set {dataset!r}; there are {', '.join(READERS)}.")
    tasks = {task.name: task for task in READERS[dataset].tasks}
    if name not in tasks:
        raise UserError(f"--groups {text}: {dataset} has no task {name!r}; it has {', '.join(tasks)}.")
    return name, tasks[name].classes


def group_rows(extras: Sequence[Mapping[str, Any]], name: str, names: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Map each group to its row numbers, in the order of class indices or names.

    A meme with several values is in several groups, a meme without the field in none.
    """
    rows: dict[Any, list[int]] = {}
    for row, fields in enumerate(extras):
        value = fields.get(name)
        if value is None:
            continue
        members = value if isinstance(value, list | tuple) else [value]
        for member in dict.fromkeys(members) if members else [None]:
            rows.setdefault(member, []).append(row)
    order = sorted(rows, key=lambda key: (key is None, isinstance(key, str), key if key is not None else 0))
    return {_label(key, names): np.array(rows[key]) for key in order}


def _label(key: Any, names: Sequence[str] | None) -> str:
    if key is None:
        return NO_VALUE
    if names is not None and isinstance(key, int) and 0 <= key < len(names):
        return names[key]
    return str(key)


def find_groups(name: str, extras: Sequence[Mapping[str, Any]] | None, text: str) -> tuple[str, dict[str, np.ndarray]]:
    """Find the field that `text` names (see `parse_group`) and its groups in the query set `name`.

    Raises:
        UserError: no meme has such a field.
    """
    field, names = parse_group(text)
    groups = group_rows(extras or [], field, names)
    if not groups:
        known = sorted({key for fields in extras or [] for key in fields})
        have = (
            f"its fields are {', '.join(known)}" if known else "it has no extra fields; extract it from imported data"
        )
        raise UserError(f"Query set {name!r} has no field {field!r} to group by; {have}.")
    return field, groups


def breakdown(scored: ScoredSet, text: str, *, samples: int, seed: int) -> dict[str, Any]:
    """Break results down by one field.

    Args:
        scored: The query set.
        text: The field, as in `parse_group`.
        samples: Resamples behind intervals without a closed form.
        seed: Seed of the resamples.

    Returns:
        `field`, `without` (number of memes without it) and `groups`: per group `group`, `memes`, `positives` (None for
        several classes), `small` and `heads`. Each head has `accuracy`, `auroc`, `fpr` and `fnr` of a binary problem,
        otherwise `accuracy` and `macro_f1`, with intervals that also hold at 0 and 1.

    Raises:
        UserError: the store has no such field.
    """
    field, groups = find_groups(scored.name, scored.extras, text)
    found = [_group(scored, group, rows, samples, seed) for group, rows in groups.items()]
    covered = {row for rows in groups.values() for row in rows.tolist()}
    return {"field": field, "without": len(scored) - len(covered), "groups": found}


def _group(scored: ScoredSet, group: str, rows: np.ndarray, samples: int, seed: int) -> dict[str, Any]:
    labels, binary = scored.labels[rows], scored.problem.kind == "binary"
    positives = int(labels.sum()) if binary else None
    cases = [len(rows)] if positives is None else [count for count in (positives, len(rows) - positives) if count]
    heads = {}
    for head in scored.scores:
        right = scored.right(head)[rows]
        values: dict[str, Any] = {"accuracy": rate(right)}
        found = estimates(
            scored.scores[head][rows],
            labels,
            scored.rules[head].thresholds,
            scored.problem,
            samples=samples,
            seed=seed,
            names=("auroc",) if binary else ("macro_f1",),
        )
        values |= {name: item.as_dict() for name, item in found.items()}
        if binary:
            values |= {"fpr": rate(~right[labels == 0]), "fnr": rate(~right[labels == 1])}
        heads[head] = values
    return {"group": group, "memes": len(rows), "positives": positives, "small": min(cases) < SMALL, "heads": heads}
