"""The team page: its figures are those of the database, and each chart has a table."""

import time
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from desks import MakeDesk, ServedDesk
from sqlalchemy import select, update

from ra_hmd.cases.policy import CasePolicy
from ra_hmd.cases.store import Decision
from ra_hmd.cases.tables import Case, Delivery
from ra_hmd.desk.charts import BOTTOM, LEFT, RIGHT, TOP, Chart, Series
from ra_hmd.serve.auth import KeyRing, make_key
from ra_hmd.serve.case_opening import open_cases
from ra_hmd.serve.case_settings import CaseSettings


class _Tables(HTMLParser):
    """The cells of each table, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.tables[-1][-1][-1] = " ".join(f"{self.tables[-1][-1][-1]} {data}".split())


def tables(page: str) -> list[list[list[str]]]:
    parser = _Tables()
    parser.feed(page)
    return parser.tables


def give(served: ServedDesk, case_id: str, person: str, label: int) -> None:
    store = served.cases.store
    store.finish(store.begin(case_id, person, Decision("label", label, "why")).id)


def change(served: ServedDesk, case_id: str, **values: object) -> None:
    with served.cases.store.database.write() as session:
        session.execute(update(Case).where(Case.id == case_id).values(**values))


def test_the_figures_of_the_page_are_those_of_the_cases(desk: MakeDesk) -> None:
    with desk(bank=None) as served:
        first, second, third = served.add(3, queue="night", source="<forum>", opinions_needed=2)
        verdict = {name: served.cases.store.get(name).verdict["verdict"] for name in (first, second, third)}
        for case_id in (first, second, third):
            give(served, case_id, "ann", verdict[case_id])
        for case_id in (first, second):
            give(served, case_id, "bob", verdict[case_id])
        give(served, third, "bob", 1 - verdict[third])
        change(served, first, audited=True, created=datetime.now(UTC) - timedelta(days=1))
        page = served.client.get("/console/team?days=7").text
        waiting, added, _, people, agreement, sources = tables(page)
        assert waiting[1:] == [["night", "1", "0", "1", "0 min"]]
        assert added[0] == ["Day", "came in", "decided"]
        assert [row[1:] for row in added[1:3]] == [["2", "2"], ["1", "0"]]
        assert len(added) == 8
        assert [row[:2] for row in people[1:]] == [["ann", "3"], ["bob", "3"]]
        assert people[1][4].startswith("100 % 44 to 100 %, 3 of 3")
        assert agreement[1][:2] == ["ann, bob", "3"]
        assert sources[1][:4] == ["<forum>", "3", "1", "0 % 0 to 66 %, 0 of 2"]
        assert "Audited memes: 1 decided, 0 waiting." in page
        assert "<forum>" not in page


def test_an_empty_team_page_says_what_to_do(desk: MakeDesk, tmp_path: Path) -> None:
    key = make_key(tmp_path / "keys.json", "rea", "reader")
    with desk(KeyRing.open(tmp_path / "keys.json"), bank=None) as served, served.logged_in("rea", key) as reader:
        page = reader.get("/console/team?days=many").text
        assert tables(page) == []
        assert all(
            option in page
            for option in ("--audit-rate 0.01", "--alert-waiting 500", "--opinions 0.05", "POST /v1/cases")
        )
        assert page.count("Nothing in these days.") == 3


def test_the_limit_of_the_policy_is_that_of_the_drift(desk: MakeDesk) -> None:
    with desk(policy=CasePolicy(below_similarity=0.6)) as served:
        near, far = served.add(2)
        change(served, near, similarity=0.9)
        change(served, far, similarity=0.5)
        page = served.client.get("/console/team").text
        assert "less similar than 60 %" in page
        assert tables(page)[3][1][1].startswith("50 % (9 %, 91 %)")


def test_an_alert_of_a_running_service_stands_on_the_page(desk: MakeDesk, tmp_path: Path) -> None:
    with desk(bank=None, cases=3) as served:
        url, secret = "http://127.0.0.1:1/alerts", tmp_path / "secret"
        settings = CaseSettings(
            cases=str(tmp_path / "cases.sqlite"), alert_waiting=2, alert_url=url, webhook_secret=secret
        )
        running = open_cases(settings, CasePolicy(), served.cases.service, None)
        assert running is not None
        served.cases.settings = settings
        assert tables(served.client.get("/console/team").text)[1][1] == ["Cases that wait", "2", "3", "none"]
        running.start()
        try:
            deadline = time.monotonic() + 20
            while "raised 0 min ago" not in (page := served.client.get("/console/team").text):
                assert time.monotonic() < deadline, page
                time.sleep(0.1)
            with served.cases.store.database.read() as session:
                assert session.scalars(select(Delivery.url)).all() == [url]
        finally:
            running.close()


def test_bars_stand_within_the_chart_and_are_as_high_as_their_values() -> None:
    days = ["2026-01-01", "2026-01-02", "2026-01-03"]
    chart = Chart("t", days, [Series("a", [40, 0, 10]), Series("b", [20, 5, None])])
    assert (chart.top, [words for _, words in chart.ticks]) == (50, ["0", "25", "50"])
    heights = {bar.words: bar.height for bar in chart.bars}
    assert heights["2026-01-01, a: 40"] == pytest.approx(2 * heights["2026-01-01, b: 20"])
    assert heights["2026-01-01, a: 40"] == pytest.approx(0.8 * (BOTTOM - TOP))
    assert len(heights) == 4
    assert all(bar.x >= LEFT and bar.x + bar.width <= RIGHT and bar.y + bar.height == BOTTOM for bar in chart.bars)
    edges = sorted((bar.x, bar.x + bar.width) for bar in chart.bars)
    assert all(end <= start + 0.02 for (_, end), (start, _) in pairwise(edges))


def test_shares_of_a_day_stand_on_each_other_up_to_the_top() -> None:
    chart = Chart("t", ["2026-01-01"], [Series("a", [0.25]), Series("b", [0.75])], percent=True, stacked=True)
    first, second = chart.bars
    assert (first.y + first.height, second.y) == (BOTTOM, TOP)
    assert second.y + second.height == pytest.approx(first.y)
    assert first.words == "2026-01-01, a: 25 %"


def test_an_interval_fits_into_the_chart_and_nothing_at_all_is_said() -> None:
    chart = Chart("t", ["2026-01-01"], [Series("a", [0.1], [(0.05, 0.45)])], percent=True)
    (whisker,) = chart.whiskers
    assert chart.top == 0.5
    assert TOP < whisker.top < chart.bars[0].y < whisker.bottom < BOTTOM
    assert Chart("t", ["2026-01-01"], [Series("a", [None]), Series("b", [0])]).empty
    assert chart.words(None) == "–"
