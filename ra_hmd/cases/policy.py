"""Which verdicts become cases by themselves."""

import random
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from ra_hmd.core.config import Settings

Why = Literal["requested", "file", "abstained", "unsure", "disagreement", "unlike-the-bank", "audit", "appeal"]
"""Why a person looks at a case; the policy gives those from `abstained` to `audit`."""


class CasePolicy(Settings):
    """Verdicts that a person is asked about. By default there are none."""

    TITLE = "case policy"

    margin: float = Field(
        default=0.0, ge=0, le=1, description="Verdicts at most so far, in probability, from another one."
    )
    abstained: bool = Field(default=False, description="Memes that the detector leaves to a person.")
    disagreement: bool = Field(default=False, description="Memes on which the heads come to different verdicts.")
    min_similarity: float | None = Field(
        default=None, ge=-1, le=1, description="Memes whose nearest row of the bank is less similar than this."
    )
    audit_rate: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of all memes, drawn at random; from it misses and false alarms are estimated.",
    )
    audit_seed: int | None = Field(default=None, description="Seed of the draw; none: another one at each start.")

    @property
    def active(self) -> bool:
        """Whether any verdict becomes a case."""
        chosen = self.margin > 0 or self.abstained or self.disagreement
        return chosen or self.min_similarity is not None or self.audit_rate > 0


@dataclass(frozen=True)
class VerdictFacts:
    """What the policy looks at.

    Attributes:
        margin: Distance to another verdict, in probability.
        abstained: Whether the detector left the meme to a person.
        disagreement: Whether its heads come to different verdicts.
        similarity: Similarity of the nearest row of the bank, where one voted.
    """

    margin: float
    abstained: bool
    disagreement: bool
    similarity: float | None


class PolicyDraw:
    """Applies a policy to one verdict after another.

    Args:
        policy: The policy.
    """

    def __init__(self, policy: CasePolicy) -> None:
        self.policy, self._random = policy, random.Random(policy.audit_seed)

    def __call__(self, facts: VerdictFacts) -> tuple[Why | None, bool]:
        """Why a verdict becomes a case (None: it does not), and whether it was drawn for the audit.

        The draw is made first and for every verdict alike: otherwise the audit would not be a random share.
        """
        policy = self.policy
        audited = self._random.random() < policy.audit_rate
        if policy.abstained and facts.abstained:
            return "abstained", audited
        if policy.disagreement and facts.disagreement:
            return "disagreement", audited
        if facts.margin <= policy.margin and policy.margin > 0:
            return "unsure", audited
        far = policy.min_similarity is not None and facts.similarity is not None
        if far and facts.similarity < policy.min_similarity:  # type: ignore[operator]
            return "unlike-the-bank", audited
        return ("audit" if audited else None), audited
