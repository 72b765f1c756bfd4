"""Which labelled memes are shown before a question.

Shapes: Q queries, N examples, D embedding, K demonstrations.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ra_hmd.core.config import choose
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.retrieval.knn import search

DemonstrationKind = Literal["retrieved", "random"]


@dataclass(frozen=True)
class DemonstrationSettings:
    """How demonstrations are chosen.

    Attributes:
        shots: How many; 0: none.
        kind: `retrieved`, the nearest by cosine, or `random`.
        per_class: So many of each class.
        seed: Of random ones; each query has a draw of its own, whatever other queries there are.
    """

    shots: int = 4
    kind: DemonstrationKind = "retrieved"
    per_class: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        choose("--demonstrations", self.kind, get_args(DemonstrationKind))
        if self.shots < 0:
            raise UserError(f"--shots is {self.shots}, it must be 0 or more.")


@dataclass(frozen=True)
class Candidates:
    """Memes, as the choice sees them.

    Attributes:
        ids: N ids.
        labels: int64 [N], class indices.
        embedding: [N, D], for `retrieved`.
        image_hashes: uint64 [N], perceptual hashes (0: of one colour, alike to none), or None where not known.
    """

    ids: Sequence[str]
    labels: np.ndarray
    embedding: np.ndarray | None = None
    image_hashes: np.ndarray | None = None


@dataclass(frozen=True)
class Demonstrations:
    """The choice, in the order in which they are shown: of retrieved ones the nearest last, next to the question.

    Attributes:
        rows: int64 [Q, K], rows of the examples.
        similarity: float32 [Q, K], or None of random ones.
        left_out: Pairs of query and example that were not considered: the same id, or the same picture.
    """

    rows: np.ndarray
    similarity: np.ndarray | None
    left_out: int


def choose_demonstrations(
    queries: Candidates, examples: Candidates, choice: DemonstrationSettings, classes: int
) -> Demonstrations:
    """Choose for every query. Neither the query itself nor its picture under another id is shown.

    Args:
        queries: Labels play no part.
        examples: All labelled.
        choice: How.
        classes: C, for `per_class`.

    Raises:
        UserError: a class, or the examples, with too few rows for some query; no embeddings where they are needed.
    """
    forbidden = _forbidden(queries, examples)
    everything = np.arange(len(examples.ids))
    groups = [everything[examples.labels == c] for c in range(classes)] if choice.per_class else [everything]
    if choice.shots == 0:
        return Demonstrations(np.zeros((len(queries.ids), 0), dtype=np.int64), None, 0)
    _check_enough(queries, groups, forbidden, choice)
    left_out = sum(map(len, forbidden))
    if choice.kind == "random":
        rows = np.stack([_draw(name, groups, barred, choice)
                         for name, barred in zip(queries.ids, forbidden, strict=True)])  # fmt: skip
        return Demonstrations(rows, None, left_out)
    if queries.embedding is None or examples.embedding is None:
        raise UserError("Retrieved demonstrations need features of queries and examples.")
    found = [_nearest(queries.embedding, examples.embedding, group, forbidden, choice.shots) for group in groups]
    rows, similarity = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    order = np.lexsort((rows, -similarity), axis=1)[:, ::-1]
    return Demonstrations(np.take_along_axis(rows, order, 1), np.take_along_axis(similarity, order, 1), left_out)


def _forbidden(queries: Candidates, examples: Candidates) -> list[set[int]]:
    """Per query the examples with its id or its picture."""
    by_id: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(examples.ids):
        by_id[name].append(row)
    found = [set(by_id.get(name, ())) for name in queries.ids]
    if queries.image_hashes is not None and examples.image_hashes is not None:
        by_hash: dict[int, list[int]] = defaultdict(list)
        for row, value in enumerate(examples.image_hashes.tolist()):
            by_hash[value].append(row)
        for barred, value in zip(found, queries.image_hashes.tolist(), strict=True):
            if value:
                barred.update(by_hash.get(value, ()))
    return found


def _check_enough(
    queries: Candidates, groups: list[np.ndarray], forbidden: list[set[int]], choice: DemonstrationSettings
) -> None:
    problems = []
    for c, group in enumerate(groups):
        members = set(group.tolist())
        of = f" of class {c}" if choice.per_class else ""
        for name, barred in zip(queries.ids, forbidden, strict=True):
            free = len(members) - len(members & barred)
            if free < choice.shots:
                problems.append(f"for {name!r} there are {free} examples{of}, {choice.shots} are asked for")
    raise_all(problems, "Too few examples; take fewer --shots, or another --examples")


def _draw(name: str, groups: list[np.ndarray], barred: set[int], choice: DemonstrationSettings) -> np.ndarray:
    own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    rng = np.random.default_rng([choice.seed, own])
    free = [group[~np.isin(group, list(barred))] for group in groups]
    return rng.permutation(np.concatenate([rng.choice(group, choice.shots, replace=False) for group in free]))


def _nearest(
    queries: np.ndarray, examples: np.ndarray, group: np.ndarray, forbidden: list[set[int]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and similarity [Q, K] of the nearest of a group, nearest first."""
    deeper = k + max(map(len, forbidden), default=0)
    found = search(queries, examples[group], deeper, index="flat")  # exact: a missing one would be another row
    rows = np.where(found.present, group[found.rows], -1)
    keep = found.present & ~np.array(
        [np.isin(line, list(barred)) for line, barred in zip(rows, forbidden, strict=True)]
    )
    order = np.argsort(~keep, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(found.similarity, order, 1)
