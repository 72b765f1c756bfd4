"""The desk beside the API: who may come in, and that a decision reaches the bank."""

import re
from pathlib import Path

from desks import MakeDesk

from ra_hmd.bank.bank import Bank
from ra_hmd.serve.auth import KeyRing, make_key


def test_a_decision_by_form_reaches_case_and_bank(desk: MakeDesk, clip_bank: Path) -> None:
    with desk(cases=3) as served:
        page = served.client.get("/console/review").text
        (case_id,) = set(re.findall(r"/cases/(\w+)/decide", page))
        label = 1 - int(served.cases.store.get(case_id).verdict["verdict"])
        form = {"label": str(label), "reason": "The verdict is wrong"}
        assert served.client.post(f"/console/cases/{case_id}/decide", data=form).status_code == 303
        assert served.cases.store.get(case_id).state == "decided"
        assert case_id in Bank.open(clip_bank).ids
        assert case_id not in served.client.get("/console/review").text.split("/decide")[0]


def test_only_people_with_a_key_come_in(desk: MakeDesk, tmp_path: Path) -> None:
    key = make_key(tmp_path / "keys.json", "ann", "moderator")
    with desk(KeyRing.open(tmp_path / "keys.json"), cases=1) as served:
        sent = served.client.get("/console/review")
        assert (sent.status_code, sent.headers["location"]) == (303, "/console/login")
        wrong = served.client.post("/console/login", data={"name": "ann", "key": "no"})
        assert wrong.status_code == 403
        with served.logged_in("ann", key) as client:
            page = client.get("/console/review")
            assert page.status_code == 200
            assert "/decide" in page.text


def test_pages_keep_their_own_referrer_policy_and_the_api_tells_nobody(desk: MakeDesk) -> None:
    with desk() as served:
        assert served.client.get("/console/review").headers["referrer-policy"] == "same-origin"
        assert served.client.get("/v1/info").headers["referrer-policy"] == "no-referrer"


def test_a_case_is_passed_to_the_colleague_who_is_named(desk: MakeDesk, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    ann, bob = (make_key(keys, name, "moderator") for name in ("ann", "bob"))
    make_key(keys, "rea", "reader")
    with desk(KeyRing.open(keys), cases=1) as served, served.logged_in("ann", ann) as client:
        page = client.get("/console/review").text
        assert re.findall(r"<option>(\w+)</option>", page) == ["bob"]
        (case_id,) = set(re.findall(r"/cases/(\w+)/decide", page))
        for name, state in (("rea", "waiting"), ("bob", "escalated")):
            client.post(f"/console/cases/{case_id}/escalate", data={"colleague": name})
            assert served.cases.store.get(case_id).state == state
        assert served.cases.store.get(case_id).assigned == "bob"
        with served.logged_in("bob", bob) as other:
            assert f"/cases/{case_id}/decide" in other.get("/console/review").text


def test_an_error_is_a_page_for_a_browser_and_a_problem_document_for_the_script(desk: MakeDesk) -> None:
    with desk() as served:
        browser = {"Accept": "text/html,*/*", "Accept-Language": "de"}
        for path, status in (("/console/nowhere", 404), ("/console/cases/none/picture", 404)):
            page = served.client.get(path, headers=browser)
            assert (page.status_code, page.headers["content-type"]) == (status, "text/html; charset=utf-8")
            assert "Das hat nicht geklappt" in page.text
            assert served.client.get(path).headers["content-type"] == "application/problem+json"
        other = served.client.post("/console/undo", headers={**browser, "Sec-Fetch-Site": "cross-site"})
        assert (other.status_code, "anderen Website" in other.text) == (403, True)
        script = served.client.get("/console/nowhere", headers={**browser, "X-Desk-Fragment": "1"})
        assert script.json()["status"] == 404
        assert served.client.get("/v1/nowhere", headers=browser).json()["status"] == 404
