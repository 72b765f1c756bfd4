"""The list of cases, the page of a case, and one decision for near copies of a picture."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from desks import MakeDesk, ServedDesk
from PIL import Image
from servers import drawn, queries

from ra_hmd.bank.bank import Bank
from ra_hmd.cases.history import events, history_of
from ra_hmd.cases.near import near_copies
from ra_hmd.cases.store import Decision
from ra_hmd.data.meme import Meme
from ra_hmd.serve.auth import KeyRing, make_key
from ra_hmd.serve.batching import wait_for_all
from ra_hmd.serve.case_service import Intake

WHY = "It is a recipe"


@pytest.fixture
def alone(desk: MakeDesk) -> Iterator[ServedDesk]:
    with desk() as served:
        yield served


@pytest.fixture
def people(desk: MakeDesk, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A served desk with clients of the moderators ann and bob, and of the reader eve."""
    roles = {"ann": "moderator", "bob": "moderator", "eve": "reader"}
    secrets = {name: make_key(tmp_path / "keys.json", name, role) for name, role in roles.items()}
    with ExitStack() as stack:
        served = stack.enter_context(desk(KeyRing.open(tmp_path / "keys.json")))
        clients = {name: stack.enter_context(served.logged_in(name, secret)) for name, secret in secrets.items()}
        yield SimpleNamespace(served=served, **clients)


def listed(client: httpx.Client, query: str = "") -> list[str]:
    """Ids of the cases in the list, in its order."""
    page = client.get(f"/console/cases{query}")
    assert page.status_code == 200
    return re.findall(r'<a href="/console/cases/(\w+)">', page.text)


def post(client: httpx.Client, path: str, **form: object) -> httpx.Response:
    return client.post(f"/console/{path}", data=form)


def add_copies(served: ServedDesk, captions: tuple[str, ...] = ("one cake", "one cake", "another cake")) -> list[str]:
    """Cases of one picture in three sizes, the last with another caption; all have the same verdict."""
    image = Image.open(queries(served.memes)[0].image).convert("RGB")
    sent = []
    for number, caption in enumerate(captions):
        file = BytesIO()
        image.resize((200 + 20 * number, 200)).save(file, "PNG")
        sent.append(Meme(f"copy-{number}", file.getvalue(), caption))
    judged = wait_for_all(served.cases.service.submit(sent), 60)
    alike = [replace(one, verdict=judged[0].verdict) for one in judged]
    return [name for name, _ in served.cases.add(alike, [Intake(source="forum")] * len(sent), "feed")]


# ------------------------------------------------------------------------------------------------ the list


def test_the_list_has_filters_orders_and_pages(alone):
    first = alone.add(2, queue="memes", source="forum", priority=1)
    second = alone.add(55, queue="main")
    assert listed(alone.client)[:2] == first or set(listed(alone.client)[:2]) == set(first)
    assert len(listed(alone.client)) == 50
    assert len(listed(alone.client, "?page=2")) == 7
    assert listed(alone.client, "?queue=memes&order=newest") == first[::-1]
    assert listed(alone.client, "?source=forum&order=oldest") == first
    assert listed(alone.client, "?order=newest")[0] == second[-1]
    case = alone.cases.store.get(second[0])
    assert second[0] in listed(alone.client, f"?words={case.caption[:12]}")
    alone.cases.decide(second[0], "ana", Decision("agree", case.verdict["verdict"]))
    assert listed(alone.client, "?state=decided") == [second[0]]
    assert len(listed(alone.client, "?state=all&page=2")) == 7
    assert len(listed(alone.client, "?page=2")) == 6


def test_filters_that_cannot_be_are_left_out(alone):
    (case_id,) = alone.add()
    for query in ("?order=drop", "?state=none", "?label=x", "?label=99999999999", "?page=-1", "?page=x", "?queue="):
        assert listed(alone.client, query) == [case_id], query


def test_an_empty_list_says_what_to_do(alone):
    assert "Check a meme" in alone.client.get("/console/cases").text
    assert "Choose fewer filters" in alone.client.get("/console/cases?words=nobody").text


def test_a_view_is_saved_opened_and_removed(alone):
    alone.add(2, queue="memes")
    saved = post(alone.client, "views", name="Mine", queue="memes", order="newest", state="")
    assert (saved.status_code, saved.headers["location"]) == (303, "/console/cases?queue=memes&order=newest")
    page = alone.client.get("/console/cases").text
    assert re.search(r'href="/console/cases\?queue=memes&amp;order=newest"[^>]*>Mine<', page)
    assert post(alone.client, "views", name=" ").status_code == 422
    post(alone.client, "views/remove", name="Mine")
    assert ">Mine<" not in alone.client.get("/console/cases").text


def test_a_case_from_the_list_is_decided_next(people):
    first, second = people.served.add(2)
    sent = post(people.ann, f"cases/{second}/take")
    assert sent.headers["location"] == "/console/review"
    assert f"/cases/{second}/decide" in people.ann.get("/console/review").text
    assert "on the screen of ann" in people.bob.get("/console/cases").text
    refused = post(people.bob, f"cases/{second}/take")
    assert (refused.status_code, "ann has this case" in refused.text) == (409, True)
    assert f"/cases/{first}/decide" in people.bob.get("/console/review").text


# ------------------------------------------------------------------------------------------------ one case


def test_a_case_is_appealed_noted_and_taken_back_on_its_page(people, clip_bank):
    (case_id,) = people.served.add()
    other = 1 - int(people.served.cases.store.get(case_id).verdict["verdict"])
    rows = Bank.open(clip_bank).ids
    people.served.cases.decide(case_id, "ann", Decision("label", other, WHY))
    page = people.ann.get(f"/console/cases/{case_id}").text
    assert WHY in page
    (opinion,) = re.findall(r'name="opinion" value="(\d+)"', page)
    assert 'name="opinion"' not in people.bob.get(f"/console/cases/{case_id}").text
    refused = post(people.bob, f"cases/{case_id}/undo", opinion=opinion)
    assert (refused.status_code, "only they can take it back" in refused.text) == (409, True)
    done = post(people.ann, f"cases/{case_id}/undo", opinion=opinion, why="a slip")
    assert "Taken back" in people.ann.get(done.headers["location"]).text
    assert Bank.open(clip_bank).ids == rows
    assert post(people.ann, f"cases/{case_id}/appeal", words="no").status_code == 409
    people.served.cases.decide(case_id, "ann", Decision("label", other, WHY))
    assert post(people.bob, f"cases/{case_id}/appeal", words=" ").status_code == 422
    assert post(people.bob, f"cases/{case_id}/appeal", words="It is quoted").status_code == 303
    assert people.served.cases.store.get(case_id).state == "waiting"
    post(people.bob, f"cases/{case_id}/notes", words="See the thread")
    page = people.bob.get(f"/console/cases/{case_id}").text
    assert "See the thread" in page
    assert "Decide on it" in page
    assert "Decide on it" not in people.ann.get(f"/console/cases/{case_id}").text, "ann decided on it before"
    told = [event.kind for event in events(people.served.cases.store.database, case_id=case_id)]
    said = [kind for kind in told if not kind.startswith("row changed")]
    assert said == ["case added", "decided", "undone", "decided", "appealed", "noted"]


def test_what_others_said_is_hidden_until_one_has_decided(people):
    (case_id,) = people.served.add(opinions_needed=2)
    verdict = people.served.cases.store.get(case_id).verdict["verdict"]
    people.served.cases.decide(case_id, "ann", Decision("agree", verdict, "ann's reason"))
    before = people.bob.get(f"/console/cases/{case_id}").text
    assert "hidden until you have decided: 1" in before
    assert "ann&#39;s reason" not in before
    assert before.count("Decided") == 0
    assert "ann&#39;s reason" in people.ann.get(f"/console/cases/{case_id}").text
    people.served.cases.decide(case_id, "bob", Decision("agree", verdict, "bob's reason"))
    assert "ann&#39;s reason" in people.bob.get(f"/console/cases/{case_id}").text


def test_a_case_that_is_not_there(alone):
    for path in ("cases/none", "cases/none/near"):
        assert alone.client.get(f"/console/{path}").status_code == 404
    assert post(alone.client, "cases/none/undo", opinion="1").status_code == 404


# ------------------------------------------------------------------------------------------------ near copies


def test_near_copies_are_decided_and_taken_back_as_one(alone, clip_bank):
    copies = add_copies(alone)
    case = alone.cases.store.get(copies[0])
    label, before = 1 - int(case.verdict["verdict"]), Bank.open(clip_bank)
    assert {one.id for one in near_copies(alone.cases.store.database, case)[0]} == set(copies)
    assert "Near copies that wait: 2" in alone.client.get("/console/cases").text
    page = alone.client.get(f"/console/cases/{copies[0]}/near").text
    boxes = re.findall(r'name="case" value="(\w+)"( checked)?', page)
    assert dict(boxes) == {copies[0]: " checked", copies[1]: " checked", copies[2]: ""}
    refused = post(alone.client, f"cases/{copies[0]}/near", case=copies, label=str(label))
    assert (refused.status_code, "Say why" in refused.text) == (422, True)
    done = post(alone.client, f"cases/{copies[0]}/near", case=copies, label=str(label), words=WHY).text
    assert "Memes with your decision: 3" in done
    assert [alone.cases.store.get(name).label for name in copies] == [label] * 3
    assert set(Bank.open(clip_bank).ids) - set(before.ids) == set(copies)
    (batch,) = re.findall(r"/batches/(\w+)/undo", done)
    assert post(alone.client, f"batches/{batch}/undo", case=copies[0], why="a slip").status_code == 303
    assert {alone.cases.store.get(name).state for name in copies} == {"waiting"}
    assert Bank.open(clip_bank).ids == before.ids
    assert post(alone.client, f"batches/{batch}/undo", case=copies[0]).status_code == 409


def test_the_last_decision_that_is_taken_back_is_the_whole_bulk(alone):
    copies = add_copies(alone)
    verdict = alone.cases.store.get(copies[0]).verdict["verdict"]
    post(alone.client, f"cases/{copies[0]}/near", case=copies[:2], label=str(verdict))
    assert [alone.cases.store.get(name).state for name in copies] == ["decided", "decided", "waiting"]
    post(alone.client, "undo")
    assert {alone.cases.store.get(name).state for name in copies} == {"waiting"}


def test_a_copy_that_somebody_has_on_the_screen_is_left_out(people):
    copies = add_copies(people.served)
    verdict = people.served.cases.store.get(copies[0]).verdict["verdict"]
    people.served.cases.store.take(copies[1], "bob")
    done = post(people.ann, f"cases/{copies[0]}/near", case=copies, label=str(verdict)).text
    assert "Memes with your decision: 2" in done
    assert "copy-1: bob has this case" in done
    assert [people.served.cases.store.get(name).state for name in copies] == ["decided", "waiting", "decided"]


def test_only_copies_that_were_shown_are_decided(alone):
    copies, (_, other) = add_copies(alone), alone.add(2)
    for chosen in ([*copies, other], []):
        refused = post(alone.client, f"cases/{copies[0]}/near", case=chosen, label="1", words=WHY)
        assert refused.status_code == 422
    assert post(alone.client, f"cases/{copies[0]}/near", case=copies, label="9", words=WHY).status_code == 422
    assert {alone.cases.store.get(name).state for name in (*copies, other)} == {"waiting"}


def test_a_bulk_is_taken_back_whole_or_not_at_all(alone):
    copies = add_copies(alone)
    label = 1 - int(alone.cases.store.get(copies[0]).verdict["verdict"])
    done = post(alone.client, f"cases/{copies[0]}/near", case=copies, label=str(label), words=WHY).text
    (batch,) = re.findall(r"/batches/(\w+)/undo", done)
    rows = alone.cases.bank_service.labels(copies)
    alone.cases.bank_service.relabel({copies[0]: 1 - label}, author="bob", reason="no", relabel_identical=True)
    refused = post(alone.client, f"batches/{batch}/undo", case=copies[0])
    assert (refused.status_code, "was changed since" in refused.text) == (409, True)
    assert alone.cases.bank_service.labels(copies) == rows | {copies[0]: 1 - label}
    assert {alone.cases.store.get(name).state for name in copies} == {"decided"}


def test_readers_look_only(people):
    copies = add_copies(people.served)
    verdict = people.served.cases.store.get(copies[0]).verdict["verdict"]
    for path in ("cases", f"cases/{copies[0]}", f"cases/{copies[0]}/near"):
        page = people.eve.get(f"/console/{path}")
        assert page.status_code == 200
        assert not re.search(r'name="label" value="\d"|/take"|/notes"|/appeal"', page.text), path
    for path, form in (
        (f"cases/{copies[0]}/near", {"case": copies, "label": str(verdict)}),
        (f"cases/{copies[0]}/take", {}),
        (f"cases/{copies[0]}/notes", {"words": "x"}),
        (f"cases/{copies[0]}/appeal", {"words": "x"}),
        ("batches/x/undo", {"case": copies[0]}),
    ):
        refused = post(people.eve, path, **form)
        assert (refused.status_code, "may look, and not decide" in refused.text) == (409, True), path
    assert not [one for name in copies for one in history_of(people.served.cases.store.database, name).opinions]


def test_pictures_of_rows_that_cases_became_are_shown(alone):
    picture = drawn(colour="navy")
    (served,) = wait_for_all(alone.cases.service.submit([Meme("sent", picture, "a boat")]), 60)
    ((case_id, _),) = alone.cases.add([served], [Intake()], "feed")
    shown = alone.client.get(f"/console/bank/picture?id={case_id}")
    assert (shown.status_code, shown.headers["content-type"]) == (200, "image/jpeg")
    assert alone.client.get("/console/bank/picture?id=nobody").status_code == 404


def test_a_case_is_assigned_and_given_back(people: SimpleNamespace) -> None:
    (case_id,) = people.served.add(1)
    assert post(people.eve, f"cases/{case_id}/assign", colleague="ann").status_code == 409
    assert post(people.ann, f"cases/{case_id}/assign", colleague="eve").status_code == 422
    assert post(people.ann, f"cases/{case_id}/assign", colleague="bob").status_code == 303
    assert f"/cases/{case_id}/take" not in people.ann.get(f"/console/cases/{case_id}").text
    assert f"/cases/{case_id}/take" in people.bob.get(f"/console/cases/{case_id}").text
    assert (listed(people.ann, "?assigned=bob"), listed(people.ann, "?assigned=ann")) == ([case_id], [])
    assert "Assigned to bob." in people.ann.get("/console/cases").text
    assert post(people.ann, f"cases/{case_id}/assign", colleague="").status_code == 303
    assert f"/cases/{case_id}/take" in people.ann.get(f"/console/cases/{case_id}").text
