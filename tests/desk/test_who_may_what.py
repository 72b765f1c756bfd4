"""The desk against those who may not: readers, other sites, presses that come twice; and what many at once do."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from desks import MakeDesk, ServedDesk
from fastapi.routing import APIRoute
from servers import drawn
from sqlalchemy import func, select

from ra_hmd.bank.bank import Bank
from ra_hmd.cases.tables import Case, Event, Opinion
from ra_hmd.desk.routes import desk_routes
from ra_hmd.serve.auth import KeyRing, make_key

FOREIGN = (
    {"Origin": "https://example.org"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
)


def actions(served: ServedDesk, case_id: str) -> list[tuple[str, dict[str, str]]]:
    """Every form of the desk that changes something: found among its routes, with values that would do it."""
    values = {"label": "1", "reason": "The verdict is wrong", "words": "so", "why": "so", "version": "1", "id": case_id}
    routes = [route for route in desk_routes(served.desk).routes if isinstance(route, APIRoute)]
    paths = {route.path for route in routes if "POST" in route.methods} - {"/console/login", "/console/logout"}
    assert len(paths) > 4
    return [(re.sub(r"{\w+}", case_id, path), values) for path in sorted(paths)]


def state(served: ServedDesk, bank: Path) -> tuple[object, ...]:
    """What only a moderator may change."""
    with served.cases.store.database.read() as session:
        counts = [session.scalar(select(func.count()).select_from(table)) for table in (Case, Event, Opinion)]
    return (*counts, Bank.open(bank).version)


def test_a_reader_may_look_and_change_nothing_by_any_form(desk: MakeDesk, clip_bank: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path / "keys.json", "rea", "reader")
    with desk(KeyRing.open(tmp_path / "keys.json"), cases=2) as served, served.logged_in("rea", key) as client:
        (case_id, *_) = served.add(1)
        before = state(served, clip_bank)
        assert "Your key is a reader" in client.get("/console/review").text
        for path, form in actions(served, case_id):
            if path != "/console/settings":  # one's own eyes and hands
                assert client.post(path, data=form).status_code < 500, path
            assert state(served, clip_bank) == before, path


def test_a_page_of_another_site_does_nothing(desk: MakeDesk, clip_bank: Path) -> None:
    with desk() as served:
        (case_id,) = served.add(1)
        before = state(served, clip_bank)
        for asked in FOREIGN:
            for path, form in [*actions(served, case_id), ("/console/login", {"name": "ana", "key": "x"})]:
                assert served.client.post(path, data=form, headers=asked).status_code == 403, (path, asked)
        assert state(served, clip_bank) == before
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert served.client.get("/console/review", headers=link).status_code == 200, "following a link to the desk"
        own = {"Origin": str(served.client.base_url).rstrip("/")}
        path = f"/console/cases/{case_id}/note"
        assert served.client.post(path, data={"words": "mine"}, headers=own).status_code == 303


@pytest.mark.parametrize(
    "send",
    [
        lambda client, path: client.post(path, content=b"\xff\xfe" * 50),
        lambda client, path: client.post(path, data={"label": "9" * 5000, "reason": "x" * 100_000}),
        lambda client, path: client.post(path, files={"label": ("a.svg", b"<svg/>", "image/svg+xml")}),
        lambda client, path: client.post(path, files=[("picture", (f"{n}.png", drawn())) for n in range(3)]),
        lambda client, path: client.post(path, files={"picture": ("../../etc/x", b"no picture")}),
        lambda client, path: client.post(path, data={f"field{n}": "x" for n in range(500)}),
        lambda client, path: client.post(path, headers={"Content-Type": "multipart/form-data"}, content=b"x"),
    ],
)
def test_hostile_forms_are_refused_without_an_error_of_the_service(
    desk: MakeDesk, clip_bank: Path, send: Callable[[httpx.Client, str], httpx.Response]
) -> None:
    with desk() as served:
        (case_id,) = served.add(1)
        for path, _ in actions(served, case_id):
            assert send(served.client, path).status_code < 500, path
        for path in ("/console/cases/%00/picture", "/console/bank/picture?id=%00", "/console/review?queue=%00",
                     "/console/cases/x'--/picture", "/console/static/..%2f..%2fdesk.py"):  # fmt: skip
            assert served.client.get(path).status_code < 500, path
        assert Bank.open(clip_bank).version == 1


def test_many_presses_at_once_decide_once(desk: MakeDesk, clip_bank: Path) -> None:
    with desk() as served, ThreadPoolExecutor(6) as threads:
        (case_id,) = served.add(1)
        other = 1 - int(served.cases.store.get(case_id).verdict["verdict"])
        form = {"label": str(other), "reason": "The verdict is wrong"}
        answers = [threads.submit(served.client.post, f"/console/cases/{case_id}/decide", data=form) for _ in range(6)]
        assert all(answer.result().status_code in (200, 303) for answer in answers)
        assert len(served.cases.store.opinions_of("ana")) == 1
    assert Bank.open(clip_bank).version == 2


def test_replicas_show_a_case_to_one_person_and_know_who_is_logged_in(desk: MakeDesk, tmp_path: Path) -> None:
    names = ("ann", "bob")
    keys = {name: make_key(tmp_path / "keys.json", name, "moderator") for name in names}
    ring = KeyRing.open(tmp_path / "keys.json")

    def shown(client: httpx.Client) -> str:
        (case_id,) = re.findall(r'data-case="(\w+)"', client.get("/console/review").text)
        return case_id

    with ExitStack() as stack:
        first, second = (stack.enter_context(desk(ring)) for _ in range(2))
        first.add(3)
        ann = stack.enter_context(first.logged_in("ann", keys["ann"]))
        bob = stack.enter_context(second.logged_in("bob", keys["bob"]))
        mine = shown(ann)
        assert shown(bob) != mine
        assert shown(ann) == mine, "the page was loaded again"
        ann.base_url = second.client.base_url  # a proxy sent the browser to the other replica
        assert shown(ann) == mine
        form = {"label": str(first.cases.store.get(mine).verdict["verdict"])}
        assert ann.post(f"/console/cases/{mine}/decide", data=form).status_code == 303
        assert first.cases.store.get(mine).state == "decided"


def test_the_cookie_is_for_the_desk_alone_and_dies_with_the_key(desk: MakeDesk, tmp_path: Path) -> None:
    key = make_key(tmp_path / "keys.json", "ann", "moderator")
    ring = KeyRing.open(tmp_path / "keys.json")
    with desk(ring, root_path="/memes") as served:
        sent = served.client.post("/console/login", data={"name": "ann", "key": f" {key} "})
        given = sent.headers["set-cookie"]
        assert all(word in given for word in ("HttpOnly", "SameSite=strict", "Path=/memes/console"))
        cookie = {"Cookie": given.split(";")[0]}
        assert served.client.get("/console/review", headers=cookie).status_code == 200
        assert served.client.get("/v1/info", headers=cookie).status_code == 401
        ring.keys.clear()
        assert served.client.get("/console/review", headers=cookie).status_code == 303


def test_the_page_loads_nothing_from_elsewhere(desk: MakeDesk) -> None:
    with desk(cases=1) as served:
        page = served.client.get("/console/review")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert re.findall(r"https?://[^\"' )]+", page.text) == []
        assert "<script>" not in page.text
        assert " style=" not in page.text
        assert page.headers["content-encoding"] == "gzip"
