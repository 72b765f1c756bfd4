"""Figures of a team: what waits, who decides how much, how people and the model agree, and how the memes drift.

Misses and false alarms are estimated from the random audit alone: cases that a policy chose for being unsure say
nothing about the others.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select

from ra_hmd.cases.database import Database
from ra_hmd.cases.outcome import OPEN
from ra_hmd.cases.tables import Case, Opinion

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """A share of cases with its 95 % interval by Wilson; `of` is how many cases it is a share of.

    With no case at all `value`, `low` and `high` are None.
    """

    count: int
    of: int
    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def at(cls, count: int, of: int) -> "Share":
        """The share of `count` among `of` cases."""
        if not of:
            return cls(0, 0, None, None, None)
        from scipy.stats import binomtest

        interval = binomtest(count, of).proportion_ci(_CONFIDENCE, method="wilson")
        return cls(count, of, count / of, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class PersonFigures:
    """Decisions of a person in the time that is looked at.

    Attributes:
        person: Name.
        decided: Opinions that stand, without escalations.
        undone: Opinions that the person took back.
        escalated: Cases passed to colleagues.
        with_model: Share of the opinions that agree with the verdict.
    """

    person: str
    decided: int
    undone: int
    escalated: int
    with_model: Share


@dataclass(frozen=True)
class Agreement:
    """Agreement of two people on the cases that both decided on.

    Attributes:
        first: A person.
        second: Another one.
        cases: Number of cases.
        kappa: Cohen's kappa; None where chance alone would agree always, as with one class.
    """

    first: str
    second: str
    cases: int
    kappa: float | None


@dataclass(frozen=True)
class DayFigures:
    """What came in on a day (UTC).

    Attributes:
        day: `YYYY-MM-DD`.
        added: Cases that came in.
        decided: Cases whose last change of that day was a decision.
        classes: Verdict to the number of cases.
        far: Share of cases whose nearest row of the bank is less similar than the limit.
    """

    day: str
    added: int
    decided: int
    classes: dict[str, int]
    far: Share


def waiting_by_source(database: Database) -> dict[str, int]:
    """Source to the number of open cases."""
    with database.read() as session:
        found = session.execute(select(Case.source, func.count()).where(Case.state.in_(OPEN)).group_by(Case.source))
        return dict(found.tuples().all())


def people(database: Database, since: datetime) -> list[PersonFigures]:
    """Figures of each person since a time, the most decisions first."""
    with database.read() as session:
        found = session.execute(select(Opinion, Case.verdict).join(Case).where(Opinion.time >= since)).tuples().all()
    rows: dict[str, list[tuple[Opinion, Any]]] = defaultdict(list)
    for opinion, verdict in found:
        rows[opinion.person].append((opinion, verdict.get("verdict")))
    return sorted((_figures(name, opinions) for name, opinions in rows.items()),
                  key=lambda one: (-one.decided, one.person))  # fmt: skip


def _figures(name: str, opinions: Sequence[tuple[Opinion, Any]]) -> PersonFigures:
    standing = [(one, verdict) for one, verdict in opinions if one.state == "standing"]
    labelled = [(one.label, verdict) for one, verdict in standing if one.action != "escalate"]
    judged = [(label, verdict) for label, verdict in labelled if verdict is not None]
    agreed = sum(label == verdict for label, verdict in judged)
    undone = sum(one.state == "undone" for one, _ in opinions)
    return PersonFigures(name, len(labelled), undone, len(standing) - len(labelled), Share.at(agreed, len(judged)))


def agreements(database: Database, since: datetime) -> list[Agreement]:
    """Agreement of each two people on the cases that both decided on, the most cases first."""
    with database.read() as session:
        found = session.scalars(
            select(Opinion)
            .where(Opinion.time >= since, Opinion.state == "standing", Opinion.action != "escalate")
            .order_by(Opinion.id)
        ).all()
    by_round: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for one in found:
        by_round[one.case_id, one.round][one.person] = repr(one.label)
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for labels in by_round.values():
        names = sorted(labels)
        for place, first in enumerate(names):
            for second in names[place + 1 :]:
                pairs[first, second].append((labels[first], labels[second]))
    result = [Agreement(first, second, len(both), kappa(both)) for (first, second), both in pairs.items()]
    return sorted(result, key=lambda one: (-one.cases, one.first, one.second))


def kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa of pairs of labels; None where chance alone would agree always."""
    total = len(pairs)
    if not total:
        return None
    first, second = (Counter(pair[place] for pair in pairs) for place in (0, 1))
    chance = sum(first[label] * second[label] for label in first) / total**2
    if chance >= 1:
        return None
    observed = sum(one == other for one, other in pairs) / total
    return (observed - chance) / (1 - chance)


@dataclass(frozen=True)
class AuditEstimate:
    """Errors of the detector, estimated from decided cases of the random audit, for a task of two classes.

    Attributes:
        decided: Audited cases that are decided.
        waiting: Audited cases that are not.
        false_alarms: Among decided memes of class 0, those whose verdict was 1.
        misses: Among decided memes of class 1, those whose verdict was 0.
        abstained: Among decided memes, those that the detector left to a person.
    """

    decided: int
    waiting: int
    false_alarms: Share
    misses: Share
    abstained: Share


def audit(database: Database, since: datetime) -> AuditEstimate:
    """Estimate the detector's errors from the random audit since a time."""
    with database.read() as session:
        found = session.execute(
            select(Case.verdict, Case.label, Case.state).where(Case.audited, Case.created >= since)
        ).tuples().all()  # fmt: skip
    decided = [(verdict.get("verdict"), label) for verdict, label, state in found if state == "decided"]
    judged = [pair for pair in decided if pair[0] is not None]
    negatives = [verdict for verdict, label in judged if label == 0]
    positives = [verdict for verdict, label in judged if label == 1]
    return AuditEstimate(
        decided=len(decided),
        waiting=len(found) - len(decided),
        false_alarms=Share.at(sum(verdict == 1 for verdict in negatives), len(negatives)),
        misses=Share.at(sum(verdict == 0 for verdict in positives), len(positives)),
        abstained=Share.at(len(decided) - len(judged), len(decided)),
    )


def days(database: Database, count: int, far_below: float, now: datetime | None = None) -> list[DayFigures]:
    """Figures of the last days, oldest first, days without a case included.

    Args:
        database: The database.
        count: Number of days, today included.
        far_below: Similarity to the bank below which a meme counts as far from it.
        now: The present time; by default what the clock says.
    """
    today = (now or datetime.now(UTC)).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    start = today - timedelta(days=count - 1)
    with database.read() as session:
        added = session.execute(
            select(Case.created, Case.verdict, Case.similarity).where(Case.created >= start)
        ).tuples().all()  # fmt: skip
        decided = session.scalars(select(Case.changed).where(Case.state == "decided", Case.changed >= start)).all()
    per_day: dict[str, list[tuple[Any, float | None]]] = defaultdict(list)
    for time, verdict, similarity in added:
        per_day[_day(time)].append((verdict.get("verdict"), similarity))
    done = Counter(map(_day, decided))
    figures = []
    for number in range(count):
        day = _day(start + timedelta(days=number))
        known = [similarity for _, similarity in per_day[day] if similarity is not None]
        classes = Counter("none" if verdict is None else str(verdict) for verdict, _ in per_day[day])
        far = Share.at(sum(similarity < far_below for similarity in known), len(known))
        figures.append(DayFigures(day, len(per_day[day]), done[day], dict(sorted(classes.items())), far))
    return figures


def _day(time: datetime) -> str:
    return time.astimezone(UTC).date().isoformat()
