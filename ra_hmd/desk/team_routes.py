"""Routes of the team page: what waits, who decides how much, how people and the model agree, how the memes change."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends
from fastapi.responses import Response

from ra_hmd.cases import statistics
from ra_hmd.cases.alerts import Alerts
from ra_hmd.cases.statistics import DayFigures, Development, Share
from ra_hmd.desk.charts import Chart, Series
from ra_hmd.desk.desk import Desk
from ra_hmd.desk.verdict_view import VerdictWords
from ra_hmd.desk.visits import Visit, visits

PERIODS = (7, 14, 30, 90)
"""Days that may be looked at."""
RULES = {
    "waiting": ("Cases that wait", 1, ""),
    "minutes": ("Minutes that a case waits", 1, ""),
    "unlike": ("Memes of the last 24 hours unlike the bank", 100, "\u00a0%"),
}
"""Rule of alerts to its name on the page, and factor and unit of its values."""
_CLASSES_SHOWN = 5


def add_team_routes(router: APIRouter, desk: Desk) -> None:
    """Add the team page."""
    visit = visits(desk)
    Visited = Annotated[Visit, Depends(visit)]

    @router.get("/team")
    async def team(visit: Visited, days: str = "14") -> Response:
        count = int(days) if days in map(str, PERIODS) else 14
        words = VerdictWords(desk.names, visit.viewer.text)
        return visit.page("team.html", **await run_sync(partial(team_values, desk, words, count)))


def team_values(desk: Desk, words: VerdictWords, count: int) -> dict[str, Any]:
    """The values of the team page for the last days."""
    database, now = desk.cases.store.database, datetime.now(UTC)
    since = statistics.first_day(count, now)
    limit = None if desk.cases.draw is None else desk.cases.draw.policy.below_similarity
    found = statistics.development(database, count, limit, now)
    return {
        "days": count,
        "periods": PERIODS,
        "now": now,
        "queues": statistics.waiting(database),
        "sources": statistics.sources(database, since, found.far_below),
        "people": statistics.people(database, since),
        "agreements": statistics.agreements(database, since),
        "audit": statistics.audit(database, since),
        "development": found,
        "alerts": Alerts(database, desk.cases.settings).states(now),
        "rules": RULES,
        "charts": _charts(found, words),
        "binary": words.problem.kind == "binary",
        "names": [words.text(name) for name in desk.names.names],
        "age": partial(_age, now),
        "between": partial(_between, words),
    }


def _charts(found: Development, words: VerdictWords) -> list[Chart]:
    text, days = words.text, found.days
    names = [day.day for day in days]
    counts = [
        Series(text("came in"), [day.added for day in days]),
        Series(text("decided"), [day.decided for day in days]),
    ]
    far = Series(text("unlike the bank"), [day.far.value for day in days], [_interval(day.far) for day in days])
    return [
        Chart(text("Cases a day"), names, counts),
        Chart(text("Verdicts a day"), names, _classes(days, words), percent=True, stacked=True),
        Chart(text("Memes unlike the bank"), names, [far], percent=True),
    ]


def _classes(days: list[DayFigures], words: VerdictWords) -> list[Series]:
    """Shares of the verdicts of each day: the most frequent ones, and all others together."""
    totals: Counter[str] = Counter()
    for day in days:
        totals.update(day.classes)
    frequent = sorted(name for name, _ in totals.most_common(_CLASSES_SHOWN))
    sums = [sum(day.classes.values()) for day in days]

    def shares(names: list[str]) -> list[float | None]:
        found = (sum(day.classes.get(name, 0) for name in names) for day in days)
        return [count / total if total else None for count, total in zip(found, sums, strict=True)]

    series = [Series(_class_name(name, words), shares([name])) for name in frequent]
    rest = sorted(set(totals) - set(frequent))
    return [*series, Series(words.text("others"), shares(rest))] if rest else series


def _class_name(key: str, words: VerdictWords) -> str:
    return words.label(None if key == "none" else json.loads(key))


def _interval(share: Share) -> tuple[float, float] | None:
    return None if share.low is None or share.high is None else (share.low, share.high)


def _between(words: VerdictWords, share: Share) -> str:
    """The interval of a share, and what it is a share of, in words."""
    if share.low is None or share.high is None:
        return ""
    low, high = round(100 * share.low), round(100 * share.high)
    return words.text("{low} to {high} %, {count} of {of}", low=low, high=high, count=share.count, of=share.of)


def _age(now: datetime, time: datetime) -> str:
    """How long ago a time is: days, hours and minutes."""
    minutes = max(now - time, timedelta()) // timedelta(minutes=1)
    days, hours = minutes // 1440, minutes % 1440 // 60
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
