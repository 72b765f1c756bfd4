"""Verdicts on memes that a `Scorer` has scored.

Shapes: Q memes, C outputs of the problem.
"""

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from ra_hmd.core.heads import BANK_HEADS, Head
from ra_hmd.inference.types import Verdict
from ra_hmd.scoring.evidence import kernel_evidence, plain_score, vote_evidence
from ra_hmd.scoring.scorer import Scorer
from ra_hmd.scoring.scores import ScoredSet


def verdicts_of(
    scored: ScoredSet,
    scorer: Scorer,
    head: Head,
    captions: Sequence[tuple[str, str]],
    *,
    abstain: float = 0.0,
    provenance: bool = False,
) -> Iterator[Verdict]:
    """Yield the verdicts on Q memes, in their order.

    Args:
        scored: Scores of the memes; `head` must be among the scored heads.
        scorer: The scorer that made them, with the bank as it was then.
        head: The head that decides.
        captions: Caption and `text_source` of each meme.
        abstain: See `Detector`.
        provenance: Add `source`, `note` and `time` to each neighbour of an example bank.
    """
    problem = scored.problem
    verdicts = {name: scored.verdicts(name) for name in scored.scores}
    probabilities = {name: scored.probabilities(name) for name in scored.scores}
    uncertain = _uncertain(scored, head, probabilities[head], abstain)
    single = problem.kind == "single_label"
    threshold = None if single else plain_score(scored.rules[head].thresholds, problem)
    rows = zip(scored.queries.ids, captions, _neighbours(scored, scorer, provenance), _contributions(scored, scorer),
               scorer.decided_rows(scored), strict=False)  # fmt: skip
    for row, (name, (text, source), neighbours, (contributions, rest), identical) in enumerate(rows):
        decided: dict[Head, Any] = {one: values[row].tolist() for one, values in verdicts.items()}
        if scored.abstained[row]:
            decided |= {one: None for one in BANK_HEADS if one in decided}
        verdict = None if uncertain[row] else decided[head]
        yield Verdict(
            id=name,
            text=text,
            text_source=source,
            scores={one: plain_score(values[row], problem) for one, values in scored.scores.items()},
            probabilities={one: plain_score(values[row], problem) for one, values in probabilities.items()},
            verdicts=decided,
            head=head,
            verdict=verdict if identical is None else identical["label"],
            threshold=threshold,
            neighbours=neighbours,
            identical=identical,
            contributions=contributions,
            contributions_rest=rest,
        )


def _uncertain(scored: ScoredSet, head: Head, probabilities: np.ndarray, abstain: float) -> np.ndarray:
    """bool [Q], memes whose probability lies in the band around the threshold's probability."""
    if not abstain:
        return np.zeros(len(scored), dtype=bool)
    rule = scored.rules[head]
    limit = rule.calibration.apply(rule.thresholds[None, :], head, scored.problem)
    return np.abs(probabilities - limit)[:, 0] < abstain


def _contributions(scored: ScoredSet, scorer: Scorer) -> Iterator[tuple[list[dict[str, Any]] | None, Any]]:
    if scorer.reference_set is None or scored.kernel is None:
        return repeat((None, None))
    return kernel_evidence(scored, scorer.reference_set.rows)


def _neighbours(scored: ScoredSet, scorer: Scorer, provenance: bool) -> Iterator[list[dict[str, Any]] | None]:
    if scorer.reference_set is None:
        yield from repeat(None)
        return
    bank = scorer.bank if provenance else None
    for evidence, rows in zip(vote_evidence(scored, scorer.reference_set.rows), scored.neighbours.rows, strict=True):
        if bank is not None:
            known = [bank.row(int(row)) for row in rows[rows >= 0]]
            for neighbour, stored in zip(evidence, known, strict=True):
                neighbour |= {name: stored[name] for name in ("source", "note", "time")}
        yield evidence
