"""Attacks on a bank: rows that someone slips in, and the verdicts that they flip. The bank itself is not changed.

Flipped near-duplicates: copies of one query with another label, aimed at this query alone. Flood: near-duplicates of
one labelled meme with its own label, and what becomes of all queries.

Shapes: Q queries, N rows of the bank, C outputs of the problem.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ra_hmd.attacks.bank_settings import BankAttackSettings
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import BANK_HEADS, Head, decide
from ra_hmd.core.problem import Problem
from ra_hmd.core.progress import track
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.knn import unit_rows
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.kernel_classifier import KernelClassifier
from ra_hmd.scoring.knn_classifier import knn_classify


@dataclass(frozen=True)
class BankUnderAttack:
    """A bank, and how its heads decide.

    Attributes:
        rows: The labelled rows, in memory.
        problem: What labels mean.
        voting: Settings of the vote.
        kernel: The kernel head of the rows. Its widths and weights stay as they are when rows are added.
        thresholds: Thresholds [C] of RKC and KRR.
    """

    rows: Embeddings
    problem: Problem
    voting: Voting
    kernel: KernelClassifier
    thresholds: Mapping[Head, np.ndarray]

    def verdicts(self, queries: Embeddings, added: Embeddings | None = None) -> dict[Head, np.ndarray]:
        """Verdicts [Q] of both heads, with rows added to the bank."""
        rows = self.rows if added is None else self.rows.plus(added)
        kernel = self.kernel if added is None else self.kernel.with_rows(rows)
        vote = knn_classify(queries, rows, self.voting, self.problem, self.thresholds["rkc"])
        scores = kernel.predict(queries, evidence=0).scores
        return {"rkc": vote.verdicts, "krr": decide(scores, self.thresholds["krr"], self.problem)}


def attack_bank(
    bank: BankUnderAttack, queries: Embeddings, settings: BankAttackSettings, *, show: bool = False
) -> dict[str, Any]:
    """How many rows flip a verdict of each head that was right.

    Args:
        bank: The bank.
        queries: Labelled queries, with the views of the kernel head.
        settings: Numbers of rows, and what they are.
        show: Show a progress bar.

    Returns:
        `flipped_duplicates`: per head the number of queries aimed at, and per size the share of them that is wrong with
        at most so many rows (`flipped`); `median`, the smallest size that flips half of them, or None.
        `flood`: per head, class and size the share of right verdicts on memes of other classes that became wrong, mean
        and highest over the memes whose near-duplicates were added.

    Raises:
        UserError: Labels are sets of classes, or there are no labelled queries.
    """
    if bank.problem.kind == "multi_label":
        raise UserError("Attacks on a bank flip one class per meme; this bank has sets of classes.")
    bank.problem.check(queries.labels, "The queries")
    clean = {head: found == queries.labels for head, found in bank.verdicts(queries).items()}
    generator = np.random.default_rng(settings.seed)
    aimed = generator.permutation(len(queries))[: settings.sample]
    steps = len(aimed) + settings.draws * bank.problem.classes
    done = track(_steps(bank, queries, clean, aimed, settings, generator), "Attacking", steps, "steps", show=show)
    smallest: dict[Head, list[float]] = {head: [] for head in BANK_HEADS}
    flood: list[dict[str, Any]] = []
    for found in done:
        if isinstance(found, list):
            flood += found
        else:
            for head, size in found.items():
                smallest[head].append(size)
    return {
        "queries": len(queries),
        "rows": len(bank.rows),
        **settings.model_dump(),
        "right": {head: float(right.mean()) for head, right in clean.items()},
        "flipped_duplicates": {head: _shares(sizes, settings.sizes) for head, sizes in smallest.items()},
        "flood": _summary(flood),
    }


def _steps(
    bank: BankUnderAttack,
    queries: Embeddings,
    clean: Mapping[Head, np.ndarray],
    aimed: Sequence[int] | np.ndarray,
    settings: BankAttackSettings,
    generator: np.random.Generator,
) -> Iterator[tuple[int, Any]]:
    """Steps for the progress bar: for each query that is aimed at the rows it takes, then the floods."""
    for row in aimed:
        right = [head for head in BANK_HEADS if clean[head][row]]
        yield 1, _smallest(bank, queries.select(np.array([row])), right, settings, generator)
    for label in range(bank.problem.classes):
        members = np.flatnonzero(bank.rows.labels == label)
        for draw in range(settings.draws):
            found = []
            if len(members):
                source = bank.rows.select(generator.choice(members, 1))
                found = _flood(bank, queries, clean, source, settings, generator)
            yield 1, [{"draw": draw, "class": label, **one} for one in found]


def _smallest(
    bank: BankUnderAttack,
    query: Embeddings,
    heads: Sequence[Head],
    settings: BankAttackSettings,
    generator: np.random.Generator,
) -> dict[Head, float]:
    """Head to the smallest of the sizes with which it is wrong about one query; infinite where none is enough."""
    wrong = (int(query.labels[0]) + 1) % bank.problem.classes
    copies = near_duplicates(query, wrong, settings.sizes[-1], settings.similarity, generator)
    found: dict[Head, float] = dict.fromkeys(heads, np.inf)
    for size in settings.sizes:
        if all(np.isfinite(known) for known in found.values()):
            break
        verdicts = bank.verdicts(query, copies.select(np.arange(size)))
        for head, known in found.items():
            if not np.isfinite(known) and verdicts[head][0] != query.labels[0]:
                found[head] = size
    return found


def _flood(
    bank: BankUnderAttack,
    queries: Embeddings,
    clean: Mapping[Head, np.ndarray],
    source: Embeddings,
    settings: BankAttackSettings,
    generator: np.random.Generator,
) -> list[dict[str, Any]]:
    """Head and size to the share of right verdicts on other classes that became wrong."""
    copies = near_duplicates(source, int(source.labels[0]), settings.sizes[-1], settings.similarity, generator)
    found = []
    for size in settings.sizes:
        verdicts = bank.verdicts(queries, copies.select(np.arange(size)))
        for head in BANK_HEADS:
            before = clean[head] & (queries.labels != source.labels[0])
            lost = before & (verdicts[head] != queries.labels)
            found.append({"head": head, "size": size, "share": float(lost.sum() / max(before.sum(), 1))})
    return found


def near_duplicates(
    meme: Embeddings, label: int, count: int, similarity: float, generator: np.random.Generator
) -> Embeddings:
    """Rows that copy one meme: each of its vectors is turned in a random direction.

    Args:
        meme: One row.
        label: Label of the copies.
        count: Number of copies.
        similarity: Cosine of a copy's vectors and the meme's.
        generator: Source of the directions.
    """

    def turned(vector: np.ndarray) -> np.ndarray:
        unit = unit_rows(vector)[0].astype(np.float64)
        away = generator.standard_normal((count, len(unit)))
        away -= (away @ unit)[:, None] * unit
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        return (similarity * unit + (1 - similarity**2) ** 0.5 * away).astype(np.float32)

    names = [f"slipped in {row}: {meme.ids[0]}" for row in range(count)]
    views = {name: turned(vectors) for name, vectors in meme.views.items()}
    return Embeddings(names, np.full(count, label, np.int64), turned(meme.embedding), views=views)


def _shares(smallest: Sequence[float], sizes: Sequence[int]) -> dict[str, Any]:
    flipped = {size: float(np.mean([known <= size for known in smallest])) if smallest else None for size in sizes}
    half = next((size for size, share in flipped.items() if share is not None and share >= 0.5), None)
    return {"aimed_at": len(smallest), "flipped": flipped, "median": half}


def _summary(flood: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    shares: dict[tuple[Any, ...], list[float]] = {}
    for one in flood:
        shares.setdefault((one["head"], one["class"], one["size"]), []).append(one["share"])
    return [
        {"head": head, "class": label, "size": size, "mean": float(np.mean(found)), "highest": max(found)}
        for (head, label, size), found in shares.items()
    ]


def print_bank_attack(result: Mapping[str, Any]) -> None:
    """Print the result of `attack_bank` as tables."""
    from rich.console import Console
    from rich.table import Table

    table = Table("head", "attack", *map(str, result["sizes"]))
    for head, found in result["flipped_duplicates"].items():
        cells = ("–" if share is None else f"{share:.2f}" for share in found["flipped"].values())
        table.add_row(head.upper(), "flipped copies", *cells)
    for head in BANK_HEADS:
        for label in dict.fromkeys(one["class"] for one in result["flood"]):
            of_head = [one for one in result["flood"] if (one["head"], one["class"]) == (head, label)]
            table.add_row(head.upper(), f"flood of {label}", *(f"{one['highest']:.2f}" for one in of_head))
    Console().print(table)
    aimed = ", ".join(f"{head.upper()} {one['aimed_at']}" for head, one in result["flipped_duplicates"].items())
    print(f"Rows added to {result['rows']}, and the share of right verdicts that they make wrong.")
    print(f"Flipped copies: of the queries that they copy ({aimed}). Flood: of {result['queries']} queries, those of")
    print("other classes; the worst of the floods.")
