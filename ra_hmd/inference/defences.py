"""Defences of the detector against disguised memes, each off by default (docs/robustness.md)."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ra_hmd.core.config import Settings
from ra_hmd.core.heads import BANK_HEADS, Head
from ra_hmd.data.benign_transforms import MOST_COPIES
from ra_hmd.data.caption_agreement import caption_agreement
from ra_hmd.inference.types import CaptionCheck, Verdict

if TYPE_CHECKING:
    from ra_hmd.scoring.scores import ScoredSet


class Defences(Settings):
    """Defences of the detector. Nothing is changed, and no time spent, where all are off."""

    TITLE: ClassVar[str] = "defence"

    fold_captions: bool = Field(
        default=False,
        description="Fold captions for the model: one spelling for look-alikes, nothing invisible "
        "(docs/robustness.md).",
    )
    check_captions: Literal["flag", "abstain"] | None = Field(
        default=None,
        description="Compare each given caption with the words read from its picture (extra ocr): flag says in the "
        "verdict how far they agree, abstain also leaves memes to a person where they do not.",
    )
    min_agreement: float = Field(
        default=0.5, ge=0, le=1, description="With --check-captions: share of letters from which on two captions agree."
    )
    transforms: int = Field(
        default=0,
        ge=0,
        le=MOST_COPIES,
        description="Scores are means over the picture and this many harmless changes of it (recompressed, rescaled, "
        "cropped, blurred, brighter); 0: the picture alone.",
    )

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self.check_captions is None and self.min_agreement != Defences.model_fields["min_agreement"].default:
            yield "--min-agreement goes with --check-captions; give flag or abstain."

    def described(self) -> dict[str, Any]:
        """The defences that are on, for manifests; empty without any."""
        fields = Defences.model_fields
        given = {name: getattr(self, name) for name in fields if getattr(self, name) != fields[name].default}
        return given | ({"min_agreement": self.min_agreement} if self.check_captions else {})

    def check(self, caption: str, read: str) -> CaptionCheck:
        """Compare a caption with the words that were read from its picture."""
        agreement = round(caption_agreement(caption, read), 4)
        return CaptionCheck(read, agreement, agreement >= self.min_agreement)

    def apply(self, verdict: Verdict, check: CaptionCheck | None) -> Verdict:
        """The verdict with the check of its caption; left to a person where that is asked for and nobody labelled this
        very meme.
        """
        if check is None:
            return verdict
        left = self.check_captions == "abstain" and not check.agrees and verdict.identical is None
        return replace(verdict, verdict=None if left else verdict.verdict, caption_check=asdict(check))


OFF = Defences()


def mean_over_copies(scored: "ScoredSet", copies: "Sequence[ScoredSet]") -> "ScoredSet":
    """The scores of memes as means over their pictures and changed copies of these.

    Neighbours and embeddings are those of the pictures. A copy on which the vote abstains does not count for the heads
    that read the bank, and the vote abstains on memes of which it abstains on every copy.

    Args:
        scored: Scores of Q memes.
        copies: Scores of the same memes with changed pictures, one set for each change.
    """
    sets = [scored, *copies]
    votes = np.stack([~one.abstained for one in sets])[..., None].astype(np.float64)  # [1 + N, Q, 1]
    counted = np.where(votes.any(axis=0), votes, 1.0)

    def mean(head: Head) -> np.ndarray:
        values = np.stack([one.scores[head] for one in sets])
        weights = counted if head in BANK_HEADS else np.ones_like(counted)
        return (values * weights).sum(axis=0) / weights.sum(axis=0)

    abstained = np.logical_and.reduce([one.abstained for one in sets])
    return replace(scored, scores={head: mean(head) for head in scored.scores}, abstained=abstained)
