"""Alerts of a team: each is raised once when its limit is crossed, also where several processes look."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ra_hmd.cases.alert_rules import AlertRules
from ra_hmd.cases.database import Database
from ra_hmd.cases.store import SYSTEM
from ra_hmd.cases.tables import Alert, Case, Delivery, Event

_OVER = 0.9
"""An alert is over when its value has fallen to this part of the limit: one that hovers there is not raised again."""
_LEAST_MEMES = 20
"""Fewest memes of which a share says anything."""
SENTENCES = {
    "waiting": "Cases that wait: {value:.0f}, more than {limit:.0f}.",
    "minutes": "A case has waited for {value:.0f} minutes, longer than {limit:g}.",
    "unlike": "{value:.0%} of the memes of the last 24 hours are unlike the bank, more than {limit:.0%}.",
}
"""Rule to what is posted."""


@dataclass(frozen=True)
class AlertState:
    """A rule as it stands now.

    Attributes:
        rule: Name of the rule.
        limit: Its limit.
        value: The present value; None where there are too few memes for one.
        since: When the alert was raised; None where it is not.
    """

    rule: str
    limit: float
    value: float | None
    since: datetime | None


class Alerts:
    """Alerts of one case database.

    Args:
        database: The database.
        rules: The rules.
        url: Where alerts are posted, as signed webhooks; None: they stand on the team page and in the audit log alone.
    """

    def __init__(self, database: Database, rules: AlertRules, url: str | None = None) -> None:
        self._database, self._rules, self._url = database, rules, url

    def states(self, now: datetime | None = None) -> list[AlertState]:
        """Each rule as it stands now."""
        now = now or datetime.now(UTC)
        with self._database.read() as session:
            raised = {one.rule: one.since for one in session.scalars(select(Alert))}
            return [
                AlertState(rule, limit, self._value(session, rule, now), raised.get(rule))
                for rule, limit in self._rules.limits.items()
            ]

    def check(self, now: datetime | None = None) -> list[str]:
        """Raise and end alerts, and return the names of those that were raised."""
        now = now or datetime.now(UTC)
        crossed = [state for state in self.states(now) if _crosses(state)]
        if not crossed:
            return []
        with self._database.write() as session:
            return [state.rule for state in crossed if self._cross(session, state, now)]

    def _cross(self, session: Session, state: AlertState, now: datetime) -> bool:
        """Raise or end one alert, unless another process has just done so; returns whether it was raised here."""
        kept = session.get(Alert, state.rule, with_for_update=True)
        if (kept is None) != (state.since is None):
            return False
        details = {"rule": state.rule, "limit": state.limit, "value": state.value}
        if kept is not None:
            session.delete(kept)
            session.add(Event(time=now, person=SYSTEM, kind="alert over", details=details))
            return False
        session.add(Alert(rule=state.rule, since=now))
        session.add(Event(time=now, person=SYSTEM, kind="alert", details=details))
        if self._url is not None:
            text = SENTENCES[state.rule].format(value=state.value, limit=state.limit)
            body = {"type": "alert", "text": text, "time": now.isoformat(timespec="seconds"), **details}
            session.add(Delivery.of(self._url, body, now))
        return True

    def _value(self, session: Session, rule: str, now: datetime) -> float | None:
        if rule == "waiting":
            return float(session.scalar(select(func.count()).select_from(Case).where(Case.open)) or 0)
        if rule == "minutes":
            oldest = session.scalar(select(func.min(Case.changed)).where(Case.open))
            return 0.0 if oldest is None else max(now - oldest, timedelta()) / timedelta(minutes=1)
        memes = Case.similarity.is_not(None), Case.created >= now - timedelta(days=1)
        far = func.count().filter(Case.similarity < self._rules.alert_similarity)
        counted = select(Case.audited, func.count(), far).where(*memes).group_by(Case.audited)
        found = {audited: (count, unlike) for audited, count, unlike in session.execute(counted).tuples()}
        drawn = found.get(True, (0, 0))
        # A policy may choose memes for being unlike the bank; those that were drawn at random say more.
        counts = [drawn] if drawn[0] >= _LEAST_MEMES else list(found.values())
        total, unlike = sum(count for count, _ in counts), sum(count for _, count in counts)
        return unlike / total if total >= _LEAST_MEMES else None


def _crosses(state: AlertState) -> bool:
    """Whether an alert that is not raised should be, or one that is raised is over."""
    if state.value is None:
        return False
    if state.since is None:
        return state.value > state.limit
    return state.value <= _OVER * state.limit
