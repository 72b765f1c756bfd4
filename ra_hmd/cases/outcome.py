"""What the opinions on a case come to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

State = Literal["waiting", "escalated", "conflict", "decided"]
"""`waiting`: for a first or a further opinion; `escalated`: somebody asked a colleague; `conflict`: people disagree."""
OPEN: tuple[State, ...] = ("escalated", "conflict", "waiting")
"""The states of cases that somebody has to look at, the most pressing first."""

Action = Literal["agree", "label", "escalate"]


class OpinionLike(Protocol):
    """An opinion, as far as the outcome depends on it."""

    person: str
    action: str
    label: Any


@dataclass(frozen=True)
class Outcome:
    """State of a case, and its label where it is decided."""

    state: State
    label: Any | None = None


def outcome(opinions: Sequence[OpinionLike], needed: int) -> Outcome:
    """What the standing opinions of a round come to, in the order of time.

    A label is decided once `needed` people have given it. Different labels are a conflict until one of them is. A case
    that was escalated and has no later opinion waits for a colleague of whoever escalated it.
    """
    votes: dict[str, list[Any]] = {}
    for opinion in opinions:
        if opinion.action != "escalate":
            votes.setdefault(repr(opinion.label), []).append(opinion.label)
    for labels in votes.values():
        if len(labels) >= needed:
            return Outcome("decided", labels[0])
    if opinions and opinions[-1].action == "escalate":
        return Outcome("escalated")
    return Outcome("conflict" if len(votes) > 1 else "waiting")
