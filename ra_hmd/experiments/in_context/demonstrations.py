"""Selection of demonstrations: the labelled memes that are shown before a question.

Shapes: Q queries, N examples, D embedding, K demonstrations.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from ra_hmd.core.config import Settings
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.retrieval.knn import search

DemonstrationKind = Literal["retrieved", "random"]


class DemonstrationSettings(Settings):
    """Selection of demonstrations."""

    TITLE: ClassVar[str] = "demonstrations"

    shots: int = Field(default=4, ge=0, description="Demonstrations before the question; 0: none.")
    kind: DemonstrationKind = Field(
        default="retrieved", description="retrieved: the nearest examples by cosine; random: a sample for each query."
    )
    per_class: bool = Field(default=False, description="Show `shots` examples of each class.")
    seed: int = Field(default=0, description="Seed of random demonstrations.")


@dataclass(frozen=True)
class Candidates:
    """Memes with what the selection of demonstrations needs.

    Attributes:
        ids: N ids.
        labels: int64 [N], class indices.
        embedding: [N, D], for `retrieved`.
        image_hashes: uint64 [N], perceptual hashes, or None if unknown. An image of one colour has hash 0, which
            matches no other.
    """

    ids: Sequence[str]
    labels: np.ndarray
    embedding: np.ndarray | None = None
    image_hashes: np.ndarray | None = None


@dataclass(frozen=True)
class Demonstrations:
    """The selected demonstrations in display order: the nearest one comes last, next to the question.

    Attributes:
        rows: int64 [Q, K], row numbers of the examples.
        similarity: float32 [Q, K], or None for random demonstrations.
        left_out: Number of (query, example) pairs that were excluded for the same id or the same image.
    """

    rows: np.ndarray
    similarity: np.ndarray | None
    left_out: int


def choose_demonstrations(
    queries: Candidates, examples: Candidates, settings: DemonstrationSettings, classes: int
) -> Demonstrations:
    """Select demonstrations for every query, but neither the query itself nor its image under another id.

    Args:
        queries: Queries; their labels are not used.
        examples: Labelled examples.
        settings: Number and kind of the demonstrations.
        classes: C, for `per_class`.

    Raises:
        UserError: too few examples (of a class) for some query, or missing embeddings.
    """
    forbidden = _forbidden(queries, examples)
    everything = np.arange(len(examples.ids))
    groups = [everything[examples.labels == c] for c in range(classes)] if settings.per_class else [everything]
    if settings.shots == 0:
        return Demonstrations(np.zeros((len(queries.ids), 0), dtype=np.int64), None, 0)
    _check_enough(queries, groups, forbidden, settings)
    left_out = sum(map(len, forbidden))
    if settings.kind == "random":
        rows = np.stack([_draw(name, groups, barred, settings)
                         for name, barred in zip(queries.ids, forbidden, strict=True)])  # fmt: skip
        return Demonstrations(rows, None, left_out)
    if queries.embedding is None or examples.embedding is None:
        raise UserError("Retrieved demonstrations need features of queries and examples.")
    found = [_nearest(queries.embedding, examples.embedding, group, forbidden, settings.shots) for group in groups]
    rows, similarity = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    order = np.lexsort((rows, -similarity), axis=1)[:, ::-1]
    return Demonstrations(np.take_along_axis(rows, order, 1), np.take_along_axis(similarity, order, 1), left_out)


def _forbidden(queries: Candidates, examples: Candidates) -> list[set[int]]:
    """For each query, the rows of the examples with its id or its image."""
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
    queries: Candidates, groups: list[np.ndarray], forbidden: list[set[int]], settings: DemonstrationSettings
) -> None:
    problems = []
    for c, group in enumerate(groups):
        members = set(group.tolist())
        of = f" of class {c}" if settings.per_class else ""
        for name, barred in zip(queries.ids, forbidden, strict=True):
            free = len(members) - len(members & barred)
            if free < settings.shots:
                problems.append(f"for {name!r} there are {free} examples{of}, {settings.shots} are needed")
    raise_all(problems, "Too few examples; take fewer --shots, or another --examples")


def _draw(name: str, groups: list[np.ndarray], barred: set[int], settings: DemonstrationSettings) -> np.ndarray:
    own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    rng = np.random.default_rng([settings.seed, own])
    free = [group[~np.isin(group, list(barred))] for group in groups]
    return rng.permutation(np.concatenate([rng.choice(group, settings.shots, replace=False) for group in free]))


def _nearest(
    queries: np.ndarray, examples: np.ndarray, group: np.ndarray, forbidden: list[set[int]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and similarity [Q, K] of the nearest examples of a group, nearest first."""
    deeper = k + max(map(len, forbidden), default=0)
    found = search(
        queries, examples[group], deeper, index="flat"
    )  # exact search: an approximate index could miss a neighbour
    rows = np.where(found.present, group[found.rows], -1)
    keep = found.present & ~np.array(
        [np.isin(line, list(barred)) for line, barred in zip(rows, forbidden, strict=True)]
    )
    order = np.argsort(~keep, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(found.similarity, order, 1)
