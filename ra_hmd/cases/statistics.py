"""Figures of a team: what waits, who decides how much, how people and the model agree, and how the memes drift.

Misses and false alarms are estimated from the random audit alone: cases that a policy chose for being unsure say
nothing about the others.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Text, cast, exists, func, select
from sqlalchemy.orm import aliased

from ra_hmd.cases.database import Database
from ra_hmd.cases.tables import Case, Opinion

_CONFIDENCE = 0.95
_LEAST_SIMILAR = 0.1
_VERDICT = Case.verdict["verdict"]


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


@dataclass(frozen=True)
class QueueFigures:
    """Open cases of a queue.

    Attributes:
        queue: Name.
        states: State to the number of open cases.
        oldest: Time of the intake of the oldest open case.
    """

    queue: str
    states: dict[str, int]
    oldest: datetime

    @property
    def count(self) -> int:
        """Number of open cases."""
        return sum(self.states.values())


def waiting(database: Database) -> list[QueueFigures]:
    """Open cases of each queue, the most first."""
    statement = select(Case.queue, Case.state, func.count(), func.min(Case.created)).where(Case.open)
    with database.read() as session:
        found = session.execute(statement.group_by(Case.queue, Case.state)).tuples().all()
    queues: dict[str, dict[str, tuple[int, datetime]]] = defaultdict(dict)
    for queue, state, count, oldest in found:
        queues[queue][state] = (count, oldest)
    figures = [
        QueueFigures(queue, {state: count for state, (count, _) in states.items()},
                     min(oldest for _, oldest in states.values()))
        for queue, states in queues.items()
    ]  # fmt: skip
    return sorted(figures, key=lambda one: (-one.count, one.queue))


@dataclass(frozen=True)
class SourceFigures:
    """Cases of a source in the time that is looked at.

    Attributes:
        source: Name; empty: unknown.
        added: Cases that came in.
        waiting: Its open cases, older ones too.
        corrected: Share of the decided ones whose label is not the verdict; those without a verdict are left out.
        far: Share whose nearest row of the bank is less similar than the limit.
    """

    source: str
    added: int
    waiting: int
    corrected: Share
    far: Share


def sources(database: Database, since: datetime, far_below: float | None) -> list[SourceFigures]:
    """Figures of each source since a time, and of those whose older cases are open, the most cases first."""
    open_cases = select(Case.source, func.count()).where(Case.open).group_by(Case.source)
    columns = (Case.source, Case.open, Case.label, _VERDICT, Case.similarity)
    with database.read() as session:
        waiting = dict(session.execute(open_cases).tuples().all())
        found = session.execute(select(*columns).where(Case.created >= since)).tuples().all()
    rows: dict[str, list[tuple[bool, Any, Any, float | None]]] = {source: [] for source in waiting}
    for source, *values in found:
        rows.setdefault(source, []).append(tuple(values))
    figures = [
        SourceFigures(
            source,
            len(cases),
            waiting.get(source, 0),
            _corrected([(verdict, label) for is_open, label, verdict, _ in cases if not is_open]),
            _far([similarity for _, _, _, similarity in cases], far_below),
        )
        for source, cases in rows.items()
    ]
    return sorted(figures, key=lambda one: (-one.added, one.source))


def _corrected(decided: Sequence[tuple[Any, Any]]) -> Share:
    judged = [pair for pair in decided if pair[0] is not None]
    return Share.at(sum(verdict != label for verdict, label in judged), len(judged))


def _far(similarities: Sequence[float | None], limit: float | None) -> Share:
    known = [one for one in similarities if one is not None]
    return Share.at(0, 0) if limit is None else Share.at(sum(one < limit for one in known), len(known))


def people(database: Database, since: datetime) -> list[PersonFigures]:
    """Figures of each person since a time, the most decisions first."""
    kinds = (Opinion.person, Opinion.state, Opinion.action, cast(Opinion.label, Text), cast(_VERDICT, Text))
    counted = select(*kinds, func.count()).join(Case).where(Opinion.time >= since).group_by(*kinds)
    with database.read() as session:
        found = session.execute(counted).tuples().all()
    rows: dict[str, list[_Counted]] = defaultdict(list)
    for person, state, action, label, verdict, count in found:
        rows[person].append(_Counted(state, action, json.loads(label or "null"), json.loads(verdict or "null"), count))
    return sorted((_figures(name, counts) for name, counts in rows.items()),
                  key=lambda one: (-one.decided, one.person))  # fmt: skip


class _Counted(NamedTuple):
    """Number of opinions of one kind."""

    state: str
    action: str
    label: Any
    verdict: Any
    number: int


def _figures(name: str, counts: Sequence[_Counted]) -> PersonFigures:
    standing = [one for one in counts if one.state == "standing"]
    labelled = [one for one in standing if one.action != "escalate"]
    judged = [one for one in labelled if one.verdict is not None]
    agreed = _total([one for one in judged if one.label == one.verdict])
    decided, undone = _total(labelled), _total([one for one in counts if one.state == "undone"])
    return PersonFigures(name, decided, undone, _total(standing) - decided, Share.at(agreed, _total(judged)))


def _total(counts: Sequence[_Counted]) -> int:
    return sum(one.number for one in counts)


def agreements(database: Database, since: datetime) -> list[Agreement]:
    """Agreement of each two people on the cases that both decided on, the most cases first."""
    given = (Opinion.time >= since, Opinion.state == "standing", Opinion.action != "escalate")
    other = aliased(Opinion)
    shared = exists().where(other.case_id == Opinion.case_id, other.round == Opinion.round,
                            other.person != Opinion.person, other.state == "standing")  # fmt: skip
    with database.read() as session:
        found = session.execute(
            select(Opinion.case_id, Opinion.round, Opinion.person, Opinion.label)
            .where(*given, shared).order_by(Opinion.id)
        ).tuples().all()  # fmt: skip
    by_round: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for case_id, number, person, label in found:
        by_round[case_id, number][person] = repr(label)
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
    """Errors of the detector, estimated from decided cases of the random audit.

    Attributes:
        decided: Audited cases that are decided.
        waiting: Audited cases that are not.
        wrong: Among decided memes with a verdict, those whose label is another one.
        false_alarms: Among decided memes of class 0, those whose verdict was 1; for a task of two classes.
        misses: Among decided memes of class 1, those whose verdict was 0; for a task of two classes.
        abstained: Among decided memes, those that the detector left to a person.
    """

    decided: int
    waiting: int
    wrong: Share
    false_alarms: Share
    misses: Share
    abstained: Share


def audit(database: Database, since: datetime) -> AuditEstimate:
    """Estimate the detector's errors from the random audit since a time."""
    with database.read() as session:
        found = session.execute(
            select(_VERDICT, Case.label, Case.state).where(Case.audited, Case.created >= since)
        ).tuples().all()  # fmt: skip
    decided = [(verdict, label) for verdict, label, state in found if state == "decided"]
    judged = [pair for pair in decided if pair[0] is not None]
    negatives = [verdict for verdict, label in judged if label == 0]
    positives = [verdict for verdict, label in judged if label == 1]
    return AuditEstimate(
        decided=len(decided),
        waiting=len(found) - len(decided),
        wrong=_corrected(decided),
        false_alarms=Share.at(sum(verdict == 1 for verdict in negatives), len(negatives)),
        misses=Share.at(sum(verdict == 0 for verdict in positives), len(positives)),
        abstained=Share.at(len(decided) - len(judged), len(decided)),
    )


@dataclass(frozen=True)
class Development:
    """Figures of the last days.

    Attributes:
        days: Figures of each day, oldest first, days without a case included.
        far_below: Similarity to the bank below which a meme counts as far from it; None where no case has any.
        random: Whether classes and similarities are those of the random audit alone. A policy chooses memes by them,
            so that those of all cases say less of the memes that come in.
    """

    days: list[DayFigures]
    far_below: float | None
    random: bool


def development(
    database: Database, count: int, far_below: float | None = None, now: datetime | None = None
) -> Development:
    """Figures of the last days.

    Args:
        database: The database.
        count: Number of days (UTC), today included.
        far_below: Similarity to the bank below which a meme counts as far from it; by default that of the least
            similar tenth of these days.
        now: The present time; by default what the clock says.
    """
    start = first_day(count, now)
    with database.read() as session:
        added = session.execute(
            select(Case.created, _VERDICT, Case.similarity, Case.audited).where(Case.created >= start)
        ).tuples().all()  # fmt: skip
        decided = session.scalars(select(Case.changed).where(Case.state == "decided", Case.changed >= start)).all()
    random = any(audited for *_, audited in added)
    per_day: dict[str, list[tuple[Any, float | None]]] = defaultdict(list)
    for time, verdict, similarity, audited in added:
        if audited or not random:
            per_day[_day(time)].append((verdict, similarity))
    known = sorted(one for rows in per_day.values() for _, one in rows if one is not None)
    if far_below is None and known:
        far_below = known[int(_LEAST_SIMILAR * len(known))]
    came, done = Counter(_day(time) for time, *_ in added), Counter(map(_day, decided))
    figures = []
    for number in range(count):
        day = _day(start + timedelta(days=number))
        classes = Counter("none" if verdict is None else str(verdict) for verdict, _ in per_day[day])
        far = _far([similarity for _, similarity in per_day[day]], far_below)
        figures.append(DayFigures(day, came[day], done[day], dict(sorted(classes.items())), far))
    return Development(figures, far_below, random)


def first_day(count: int, now: datetime | None = None) -> datetime:
    """The beginning of the first of the last `count` days, today included."""
    today = (now or datetime.now(UTC)).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=count - 1)


def _day(time: datetime) -> str:
    return time.astimezone(UTC).date().isoformat()
