"""Which verdicts become cases by themselves."""

import random
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ra_hmd.core.config import Settings
from ra_hmd.inference.options import Flag

Why = Literal["requested", "file", "abstained", "unsure", "disagreement", "unlike-the-bank", "audit", "appeal"]
"""Why a person looks at a case; the policy gives those from `abstained` to `audit`."""


class CasePolicy(Settings):
    """Verdicts that a person is asked about. By default there are none."""

    TITLE = "case policy"

    margin: Annotated[float, Flag("--review-margin")] = Field(
        default=0.0,
        ge=0,
        le=1,
        description="A person looks at verdicts that are at most so far, in probability, from another one.",
    )
    abstained: Annotated[bool, Flag("--review-abstained")] = Field(
        default=False, description="A person looks at memes that the detector leaves to people."
    )
    disagreement: Annotated[bool, Flag("--review-disagreement")] = Field(
        default=False, description="A person looks at memes on which the heads come to different verdicts."
    )
    below_similarity: Annotated[float | None, Flag("--review-below-similarity")] = Field(
        default=None,
        ge=-1,
        le=1,
        description="A person looks at memes whose nearest row of the bank is less similar than this.",
    )
    audit_rate: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of all memes, drawn at random, at which a person looks; from it misses and false alarms are "
        "estimated.",
    )
    audit_seed: int | None = Field(
        default=None, description="Seed of the draw for --audit-rate; default: another one at each start."
    )
    opinions: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the cases, drawn at random, that two people must agree on; agreement among people is "
        "measured on them.",
    )

    @property
    def active(self) -> bool:
        """Whether any verdict becomes a case."""
        chosen = self.margin > 0 or self.abstained or self.disagreement
        return chosen or self.below_similarity is not None or self.audit_rate > 0


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
        self._opinions = random.Random(None if policy.audit_seed is None else policy.audit_seed + 1)

    def opinions_needed(self) -> int:
        """How many people must agree on the next case."""
        return 2 if self._opinions.random() < self.policy.opinions else 1

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
        far = policy.below_similarity is not None and facts.similarity is not None
        if far and facts.similarity < policy.below_similarity:  # type: ignore[operator]
            return "unlike-the-bank", audited
        return ("audit" if audited else None), audited
