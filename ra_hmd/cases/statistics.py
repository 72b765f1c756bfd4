"""Figures of a team: what waits, who decides how much, how people and the model agree, and how the memes drift.

Misses and false alarms are estimated from the random audit alone: cases that a policy chose for being unsure say
nothing about the others.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Text, cast, exists, func, select
from sqlalchemy.orm import Session, aliased

from ra_hmd.cases.database import Database
from ra_hmd.cases.tables import Case, Opinion

_CONFIDENCE = 0.95
_LEAST_SIMILAR = 0.1
_NEVER = -2.0
"""Less than any similarity."""


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
    kinds = (Case.source, Case.corrected)
    counted = select(*kinds, func.count(), *_similar(far_below)).where(Case.created >= since).group_by(*kinds)
    with database.read() as session:
        waiting = dict(session.execute(open_cases).tuples().all())
        found = session.execute(counted).tuples().all()
    rows: dict[str, list[_OfSource]] = {source: [] for source in waiting}
    for source, *values in found:
        rows.setdefault(source, []).append(_OfSource(*values))
    figures = [
        SourceFigures(
            source,
            sum(one.number for one in counts),
            waiting.get(source, 0),
            _corrected({one.corrected: one.number for one in counts}),
            _far(sum(one.far for one in counts), sum(one.similar for one in counts), far_below),
        )
        for source, counts in rows.items()
    ]
    return sorted(figures, key=lambda one: (-one.added, one.source))


class _OfSource(NamedTuple):
    """Number of cases of a source that were corrected, or not."""

    corrected: bool | None
    number: int
    similar: int
    far: int


def _similar(limit: float | None) -> tuple[Any, Any]:
    """Columns: number of cases with a similarity, and of those whose similarity is below a limit."""
    return func.count(Case.similarity), func.count().filter(Case.similarity < (_NEVER if limit is None else limit))


def _corrected(counts: Mapping[bool | None, int]) -> Share:
    return Share.at(counts.get(True, 0), counts.get(True, 0) + counts.get(False, 0))


def _far(count: int, of: int, limit: float | None) -> Share:
    return Share.at(0, 0) if limit is None else Share.at(count, of)


def people(database: Database, since: datetime) -> list[PersonFigures]:
    """Figures of each person since a time, the most decisions first."""
    kinds = (Opinion.person, Opinion.state, Opinion.action, cast(Opinion.label, Text), Case.judged)
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
            select(Case.judged, Case.label, Case.state).where(Case.audited, Case.created >= since)
        ).tuples().all()  # fmt: skip
    decided = [(json.loads(judged or "null"), label) for judged, label, state in found if state == "decided"]
    judged = [pair for pair in decided if pair[0] is not None]
    negatives = [verdict for verdict, label in judged if label == 0]
    positives = [verdict for verdict, label in judged if label == 1]
    return AuditEstimate(
        decided=len(decided),
        waiting=len(found) - len(decided),
        wrong=Share.at(sum(verdict != label for verdict, label in judged), len(judged)),
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
    days = [start + timedelta(days=number) for number in range(count)]
    with database.read() as session:
        drawn = Case.audited, Case.created >= start
        random = session.scalars(select(Case.id).where(*drawn).limit(1)).first() is not None
        shown: list[ColumnElement[bool]] = [Case.audited.is_(True)] if random else []
        if far_below is None:
            far_below = _least_similar(session, Case.created >= start, *shown)
        figures = [_figures_of(session, day, far_below, shown) for day in days]
    return Development(figures, far_below, random)


def _least_similar(session: Session, *conditions: ColumnElement[bool]) -> float | None:
    """The similarity below which the least similar tenth of cases is; None where no case has any."""
    known = *conditions, Case.similarity.is_not(None)
    count = session.scalar(select(func.count()).select_from(Case).where(*known)) or 0
    ordered = select(Case.similarity).where(*known).order_by(Case.similarity)
    return session.scalars(ordered.offset(int(_LEAST_SIMILAR * count)).limit(1)).first()


def _figures_of(
    session: Session, day: datetime, far_below: float | None, shown: Sequence[ColumnElement[bool]]
) -> DayFigures:
    """Figures of a day; classes and similarities are those of the shown cases alone."""
    within = Case.created >= day, Case.created < day + timedelta(days=1)
    ended = Case.state == "decided", Case.changed >= day, Case.changed < day + timedelta(days=1)
    added, decided = (
        session.scalar(select(func.count()).select_from(Case).where(*one)) or 0 for one in (within, ended)
    )
    columns = (Case.judged, func.count(), *_similar(far_below))
    rows = (
        session.execute(select(*columns).where(*within, *shown).group_by(Case.judged)).tuples().all() if added else []
    )
    classes: Counter[str] = Counter()
    for judged, number, *_ in rows:
        classes["none" if judged is None else str(json.loads(judged))] += number
    far = _far(sum(row[3] for row in rows), sum(row[2] for row in rows), far_below)
    return DayFigures(day.date().isoformat(), added, decided, dict(sorted(classes.items())), far)


def first_day(count: int, now: datetime | None = None) -> datetime:
    """The beginning of the first of the last `count` days, today included."""
    today = (now or datetime.now(UTC)).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=count - 1)
