"""The pages of the example bank: rows, the history of one, versions and what differs, restoring and taking back."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from desks import MakeDesk, ServedDesk

from ra_hmd.bank.bank import Bank
from ra_hmd.cases.history import events
from ra_hmd.cases.store import Decision
from ra_hmd.serve.auth import KeyRing, make_key

WHY = "It is a recipe"


@pytest.fixture
def alone(desk: MakeDesk) -> Iterator[ServedDesk]:
    with desk() as served:
        yield served


def get(client: httpx.Client, path: str, status: int = 200, **query: Any) -> str:
    page = client.get(f"/console/{path}", params=query)
    assert page.status_code == status, page.text
    return page.text


def post(client: httpx.Client, path: str, **form: object) -> httpx.Response:
    return client.post(f"/console/{path}", data=form)


def listed(page: str) -> list[str]:
    return re.findall(r'<a(?: class="id")? href="/console/bank/row\?id=([^"]+)"', page)


def relabelled(served: ServedDesk, count: int = 2) -> tuple[list[str], dict[str, int]]:
    """Rows that version 2 of the bank labels anew, and their labels before."""
    bank = served.cases.bank_service
    names = bank.bank.ids[:count]
    before = bank.labels(names)
    bank.relabel({name: 1 - before[name] for name in names}, author="bob", reason="a slip", relabel_identical=True)
    return names, before


def test_rows_are_listed_filtered_and_lead_to_their_history(alone, clip_bank):
    bank = Bank.open(clip_bank)
    page = get(alone.client, "bank")
    assert f"Rows: {len(bank)}" in page
    assert listed(page) == bank.ids[::-1][:50]
    name = bank.ids[3]
    assert name in listed(get(alone.client, "bank", words=name.upper()))
    ones = sum(int(label) == 1 for label in bank.labels)
    assert f"Rows: {ones} " in get(alone.client, "bank", label=1)
    folder = str(bank.row(0)["source"])
    assert folder.startswith("/")
    assert folder not in page, "no path of the machine"
    assert listed(get(alone.client, "bank", source=Path(folder).name)) == listed(page)
    assert folder not in get(alone.client, "bank/row", id=name)
    names, _ = relabelled(alone)
    assert "the newest is 2" in get(alone.client, "bank", version=1)
    row = get(alone.client, "bank/row", id=names[0])
    assert "a slip" in row
    assert "Labelled anew" in row
    assert "/console/bank/picture?id=" in row
    assert "No row is like that" in get(alone.client, "bank", words="nobody")


def test_one_row_of_a_change_is_taken_back(alone):
    (first, second), before = relabelled(alone)
    page = get(alone.client, "bank/row", id=first)
    assert re.findall(r'name="version" value="(\d+)"', page) == ["2"]
    assert post(alone.client, "bank/row/undo", id=first, version="2", why=" ").status_code == 422
    done = post(alone.client, "bank/row/undo", id=first, version="2", why="It was right")
    assert done.status_code == 303
    assert "is taken back" in alone.client.get(done.headers["location"]).text
    bank = alone.cases.bank_service
    assert bank.labels([first, second]) == {first: before[first], second: 1 - before[second]}
    (event,) = events(alone.cases.store.database, row=first)
    assert (event.person, event.kind, event.details["after"]) == ("ana", "row changed back", before[first])
    again = post(alone.client, "bank/row/undo", id=first, version="2", why="It was right")
    assert (again.status_code, "again in version 3" in again.text) == (422, True)
    assert bank.version() == 3


def test_versions_and_what_differs_between_two(alone):
    names, _ = relabelled(alone)
    versions = get(alone.client, "bank/versions")
    assert "a slip" in versions
    assert re.findall(r"/bank/restore\?version=(\d+)", versions) == ["1"]
    for page in (get(alone.client, "bank/diff"), get(alone.client, "bank/diff", **{"from": "2", "to": "1"})):
        assert set(listed(page)) == set(names)
        assert f"Rows that differ: {len(names)}" in page
    assert "have the same rows" in get(alone.client, "bank/diff", **{"from": "2", "to": "2"})


def test_a_version_is_restored_after_a_look_at_the_effect(alone):
    names, before = relabelled(alone)
    page = get(alone.client, "bank/restore", version=1)
    assert set(listed(page)) == set(names)
    assert "verdict" in page.split('<section class="panel"')[1]
    (seen,) = re.findall(r'name="seen" value="(\d+)"', page)
    bank = alone.cases.bank_service
    bank.remove([bank.bank.ids[-1]], author="bob", reason="spam")
    late = post(alone.client, "bank/restore", version="1", seen=seen, why=WHY)
    assert (late.status_code, "has version 3 by now" in late.text) == (409, True)
    assert post(alone.client, "bank/restore", version="2", seen="3", why="").status_code == 422
    done = post(alone.client, "bank/restore", version="1", seen="3", why=WHY)
    assert done.status_code == 303
    assert "has the content of the earlier version" in alone.client.get(done.headers["location"]).text
    assert bank.labels(names) == before
    assert [event.details["restores"] for event in events(alone.cases.store.database) if event.kind == "bank restored"
            ] == [1]  # fmt: skip
    assert "has the content of this version already" in get(alone.client, "bank/restore", version=1)


def test_a_row_that_a_case_became_leads_to_the_case(alone):
    (case_id,) = alone.add()
    other = 1 - int(alone.cases.store.get(case_id).verdict["verdict"])
    alone.cases.decide(case_id, "ana", Decision("label", other, WHY))
    page = get(alone.client, "bank/row", id=case_id)
    assert f'href="/console/cases/{case_id}"' in page
    assert WHY in page


def test_what_is_not_there_is_said_in_words(alone, clip_bank):
    for path, query in (("bank/row", {"id": "nobody"}), ("bank/row", {}), ("bank", {"version": "99"}),
                        ("bank/diff", {"to": "99"}), ("bank/restore", {"version": "99"})):  # fmt: skip
        page = get(alone.client, path, 404, **query)
        assert str(clip_bank) not in page
    for query in ({"page": "x"}, {"page": "-1"}, {"label": "x"}, {"version": "0"}, {"label": "99"}):
        get(alone.client, "bank", **query)
    assert post(alone.client, "bank/row/undo", id="nobody", version="2", why="x").status_code == 404


def test_a_desk_without_a_bank_says_so(desk: MakeDesk):
    with desk(bank=None) as served:
        for path in ("bank", "bank/versions", "bank/diff", "bank/restore", "bank/row"):
            assert "No example bank is open" in get(served.client, path, 404)
        assert post(served.client, "bank/restore", version="1", seen="1", why="x").status_code == 404


def test_readers_look_only(desk: MakeDesk, tmp_path: Path):
    key = make_key(tmp_path / "keys.json", "eve", "reader")
    with desk(KeyRing.open(tmp_path / "keys.json")) as served, served.logged_in("eve", key) as client:
        names, _ = relabelled(served)
        for path, query in (("bank", {}), ("bank/row", {"id": names[0]}), ("bank/versions", {}), ("bank/diff", {}),
                            ("bank/restore", {"version": "1"})):  # fmt: skip
            page = get(client, path, **query)
            assert 'method="post" action="/console/bank' not in page
        assert post(client, "bank/row/undo", id=names[0], version="2", why="x").status_code == 409
        assert post(client, "bank/restore", version="1", seen="2", why="x").status_code == 409
        assert served.cases.bank_service.version() == 2
