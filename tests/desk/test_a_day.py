"""A day at the desk: two people at keyboards, programs that send cases, a killed server, and sums that add up."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from servers import encoded, in_process
from sqlalchemy import select

from ra_hmd.bank.bank import Bank
from ra_hmd.cases.database import Database
from ra_hmd.cases.outcome import OPEN, outcome
from ra_hmd.cases.tables import Case, Event, Opinion
from ra_hmd.serve.auth import make_key

pytestmark = pytest.mark.slow

PEOPLE = ("ann", "bob")
CASES, TWICE, COPIES = 200, 6, 5
SETTLED_MS = 430
"""From then on keys work for a case that has come on the screen."""

Said = tuple[str, str, int | None]
"""Person, action, label."""


@dataclass
class Moderator:
    """Somebody at a keyboard, with a record of what they decided.

    Attributes:
        name: Name.
        page: The review page.
        ledger: Case to what stands of people's decisions, which all moderators share.
        last: Cases that this person decided on, the last one at the end.
    """

    name: str
    page: Any
    ledger: dict[str, list[Said]]
    last: list[str] = field(default_factory=list)

    @property
    def case(self) -> str:
        """The case on the screen; empty where there is none."""
        return self.page.get_attribute("#case", "data-case")

    @property
    def verdict(self) -> int:
        """The label of its verdict."""
        return int(self.page.get_attribute("#case", "data-label"))

    def press(self, how: str) -> None:
        """Press the keys of an action, and note what they mean; the next case is not waited for."""
        case, verdict = self.case, self.verdict
        if how == "undo":
            case = self.last.pop()
            self.ledger[case].remove(next(one for one in self.ledger[case] if one[0] == self.name))
            self.page.keyboard.press("u")
            return
        if how == "skip":
            self.page.keyboard.press("s")
            return
        label = {"agree": verdict, "label": 1 - verdict, "escalate": None}[how]
        for key in {"agree": [verdict + 1], "label": [2 - verdict, 1], "escalate": ["e"]}[how]:
            self.page.keyboard.press(str(key))
        self.ledger[case].append((self.name, how, label))
        self.last.append(case)

    def shown(self, before: str) -> None:
        """Wait until another case is on the screen."""
        self.page.wait_for_selector(f"#case:not([data-case='{before}'])")
        assert self.page.locator("#case .problem").count() == 0, self.page.inner_text("#case .line")


def play(moderators: list[Moderator], *turns: str) -> None:
    """Each moderator does an action, all at once; then all wait for their next cases."""
    before = [one.case for one in moderators]
    for one, how in zip(moderators, turns, strict=True):
        one.press(how)
    for one, case in zip(moderators, before, strict=True):
        one.shown(case)
    moderators[0].page.wait_for_timeout(SETTLED_MS)


def picture(number: int, light: int = 0) -> str:
    """A picture of coloured squares, another for each number; `light` makes a near copy."""
    squares = np.random.default_rng(number).integers(0, 200, (8, 8, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(squares + np.uint8(light)).resize((64, 64), Image.Resampling.NEAREST).save(file, "PNG")
    return encoded(file.getvalue())


def send(client: httpx.Client, key: str) -> dict[str, str]:
    """Send all cases, one part of them twice; returns the id of each case by the name of its meme."""
    cases = [{"id": f"two-{n}", "image": picture(n), "text": f"cake {n}", "opinions_needed": 2, "priority": 9}
             for n in range(TWICE)]  # fmt: skip
    cases += [{"id": f"copy-{n}", "image": picture(TWICE, n), "text": "copied cake", "priority": -9}
              for n in range(COPIES)]  # fmt: skip
    cases += [{"id": f"one-{n}", "image": picture(n), "text": f"tea {n}"} for n in range(len(cases), CASES)]
    found: dict[str, str] = {}
    for start in [*range(0, CASES, 20), 40]:
        part = cases[start : start + 20]
        answer = client.post("/v1/cases", json={"cases": part}, timeout=120,
                             headers={"X-API-Key": key, "Idempotency-Key": f"part-{start}"})  # fmt: skip
        again = part[0]["id"] in found
        assert answer.status_code == (200 if again else 201), answer.text
        for taken in answer.json()["results"]:
            assert found.setdefault(taken["id"], taken["case"]) == taken["case"]
    return found


@dataclass
class Day:
    """What the parts of a day share."""

    folder: Path
    words: tuple[Any, ...]
    secrets: dict[str, str]
    ledger: dict[str, list[Said]] = field(default_factory=lambda: defaultdict(list))
    cases: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def server(self, name: str) -> Iterator[tuple[Any, httpx.Client]]:
        """The console in a process of its own."""
        with in_process(*self.words, log=self.folder / name) as (server, client):
            client.base_url = str(client.base_url).removesuffix("/").removesuffix("/console")
            client.headers["X-API-Key"] = self.secrets["program"]
            yield server, client
            assert "Traceback" not in (self.folder / name).read_text()

    def named(self, case: str) -> str:
        """Name of the meme of a case."""
        return next(name for name, one in self.cases.items() if one == case)


@pytest.fixture
def day(served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path) -> Day:
    roles = {"ann": "moderator", "bob": "moderator", "program": "reader"}
    secrets = {name: make_key(tmp_path / "keys.json", name, role) for name, role in roles.items()}  # type: ignore[arg-type]
    words = ("console", served_clip / "head", "--bank", clip_bank, "--keys", tmp_path / "keys.json", "--cases",
             tmp_path / "cases.sqlite", "--memes", memes / "a")  # fmt: skip
    return Day(tmp_path, words, secrets)


def log_in(browser: Any, address: Any, day: Day) -> list[Moderator]:
    """Both moderators at the review page."""
    found = []
    for name in PEOPLE:
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        page.goto(f"{address}/console/login")
        page.keyboard.press("Tab")
        page.focus("[name=name]")
        page.keyboard.type(name)
        page.keyboard.press("Tab")
        page.keyboard.type(day.secrets[name])
        page.keyboard.press("Enter")
        page.wait_for_selector("#case")
        found.append(Moderator(name, page, day.ledger))
    found[0].page.wait_for_timeout(SETTLED_MS)
    return found


def morning(moderators: list[Moderator], day: Day) -> None:
    """Second opinions first, one of which is a conflict; then a mix of all that keys do."""
    bob = moderators[1]
    while any(day.named(one.case).startswith("two-") for one in moderators):
        differs = day.named(bob.case) == "two-0"
        play(moderators, "agree", "label" if differs else "agree")
    mixed = ["agree", "label", "escalate", "agree", "undo", "label", "skip", "label", "undo", "agree"]
    chance = random.Random(0)
    for how in mixed:
        play(moderators, how, chance.choice(["agree", "label"]))
    while any(len(said) == 1 and said[0][1] == "escalate" for said in day.ledger.values()):
        play(moderators, "agree", "agree")  # what one has passed on comes to the other


def reload_keeps_the_case(moderator: Moderator) -> None:
    """A reload shows the case that was on the screen."""
    case = moderator.case
    moderator.page.reload()
    assert moderator.case == case
    moderator.page.wait_for_timeout(SETTLED_MS)


def look_again(moderators: list[Moderator], address: Any) -> None:
    """Open the review page of another server; nobody has to log in again."""
    for one in moderators:
        one.page.goto(f"{address}/console/review")
        one.page.wait_for_selector("#case:not([data-case=''])")
    moderators[0].page.wait_for_timeout(SETTLED_MS)


def appeal(client: httpx.Client, moderators: list[Moderator], day: Day) -> str:
    """A case that ann corrected is appealed, and bob decides otherwise; returns it."""
    case = next(case for case, said in day.ledger.items() if said == [("ann", "label", said[0][2])])
    answer = client.post(f"/v1/cases/{case}/appeal", json={"reason": "It quotes a sign", "priority": 99})
    assert answer.status_code == 200, answer.text
    bob = moderators[1]
    play(moderators, "agree", "agree")
    assert bob.case == case
    day.ledger[case].clear()
    play(moderators, "agree", "agree")
    return case


def decide_copies(moderator: Moderator, address: Any, day: Day) -> None:
    """One decision on the near copies of a case, all of which are shown before."""
    copies = [day.cases[f"copy-{n}"] for n in range(COPIES)]
    page = moderator.page
    page.goto(f"{address}/console/cases/{copies[0]}/near")
    assert sorted(one.get_attribute("value") for one in page.locator("[name=case]:checked").all()) == sorted(copies)
    page.focus("[name=reason] >> nth=0")
    page.keyboard.press("Space")
    page.focus("button[name=label][value='1']")
    page.keyboard.press("Enter")
    page.wait_for_selector(".said")
    for case in copies:
        verdict = page.request.get(f"{address}/v1/cases/{case}", headers={"X-API-Key": day.secrets["program"]}).json()
        day.ledger[case].append((moderator.name, "agree" if verdict["verdict"] == 1 else "label", 1))


def test_every_case_is_decided_once_or_waits_and_all_sums_add_up(day: Day, browser: Any, clip_bank: Path) -> None:
    start = labels_of(clip_bank)
    with day.server("log") as (server, client):
        day.cases = send(client, day.secrets["program"])
        moderators = log_in(browser, client.base_url, day)
        morning(moderators, day)
        reload_keeps_the_case(moderators[0])
        interrupted = [one.case for one in moderators]
        for one in moderators:
            one.press("label")
        server.kill()
        server.wait(30)
    with day.server("log2") as (server, client):
        look_again(moderators, client.base_url)
        for case in interrupted:  # each was decided, or waits: what the server has is what holds
            if client.get(f"/v1/cases/{case}").json()["state"] != "decided":
                del day.ledger[case]
        play(moderators, "label", "agree")
        appealed = appeal(client, moderators, day)
        decide_copies(moderators[0], client.base_url, day)
        server.terminate()
        assert server.wait(60) == 0
    check_cases(day, appealed)
    check_bank(day, start, labels_of(clip_bank))


def labels_of(bank: Path) -> dict[str, int]:
    """Id of each row to its label."""
    opened = Bank.open(bank)
    return dict(zip(opened.ids, opened.labels.tolist(), strict=True))


def check_cases(day: Day, appealed: str) -> None:
    """Cases, opinions and the audit log agree with each other and with what people pressed."""
    database = Database(day.folder / "cases.sqlite")
    with database.read() as session:
        cases = {case.id: case for case in session.scalars(select(Case))}
        opinions = list(session.scalars(select(Opinion).order_by(Opinion.id)))
        log = list(session.scalars(select(Event).order_by(Event.id)))
    database.close()
    assert set(cases) == set(day.cases.values())
    assert {one.state for one in opinions} == {"standing", "undone"}
    standing: dict[str, list[Opinion]] = defaultdict(list)
    for one in opinions:
        if one.state == "standing" and one.round == cases[one.case_id].round:
            standing[one.case_id].append(one)
    assert {case: [(one.person, one.action, one.label) for one in said] for case, said in standing.items()} == {
        case: said for case, said in day.ledger.items() if said
    }
    for name, case in cases.items():
        result = outcome(standing[name], case.opinions_needed)
        assert (case.state, case.label) == (result.state, result.label)
        assert case.open == (case.state in OPEN)
        votes = [one for one in standing[name] if one.action != "escalate"]
        assert len({one.person for one in votes}) == len(votes), "nobody decides twice"
        if case.state == "decided":
            assert len(votes) == case.opinions_needed
    assert cases[appealed].round == 2
    states = Counter(case.state for case in cases.values())
    assert states["conflict"] == 1
    assert states["decided"] >= 30
    kinds = Counter(event.kind for event in log)
    assert kinds["case added"] == CASES
    assert kinds["appealed"] == 1
    assert kinds["decided"] == len(opinions)
    assert kinds["undone"] == sum(one.state == "undone" for one in opinions) > 0


def check_bank(day: Day, start: dict[str, int], end: dict[str, int]) -> None:
    """The bank has its first rows, and one for each case on which people decided against the verdict; the audit log
    tells each change of a row.
    """
    database = Database(day.folder / "cases.sqlite")
    with database.read() as session:
        cases = list(session.scalars(select(Case)))
        log = list(session.scalars(select(Event).where(Event.row.is_not(None)).order_by(Event.id)))
    database.close()
    taught = {case.id: case.label for case in cases
              if case.state == "decided" and (case.round > 1 or case.label != case.verdict["verdict"])}  # fmt: skip
    assert len(taught) > 3
    assert end == start | taught
    logged: dict[str, Any] = dict(start)
    for event in log:
        assert logged.get(str(event.row)) == event.details["before"]
        logged[str(event.row)] = event.details["after"]
    assert end == {row: label for row, label in logged.items() if label is not None}
