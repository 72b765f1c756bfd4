"""Cases by HTTP: intake with idempotency keys, lists, appeals, decisions that teach the bank, the policy's cases."""

import contextlib
import csv
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import as_json, drawn, encoded, in_thread, queries
from typer.testing import CliRunner

from ra_hmd.bank.bank import Bank
from ra_hmd.cases.database import Database
from ra_hmd.cases.export import as_text
from ra_hmd.cases.pictures import CasePictures
from ra_hmd.cases.policy import CasePolicy, PolicyDraw
from ra_hmd.cases.store import CaseStore
from ra_hmd.cases.tables import Base
from ra_hmd.cli.app import app as cli
from ra_hmd.inference.detector import Detector
from ra_hmd.serve.app import create_app
from ra_hmd.serve.auth import KeyRing, make_key
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.case_service import CaseService
from ra_hmd.serve.case_settings import CaseSettings
from ra_hmd.serve.limits import RequestLimits

HOSTS = {"cases": "c.sqlite", "webhook_hosts": ["hooks.example"], "webhook_secret": "secret"}


class Served:
    """An API with cases: clients of a moderator and a reader, and what is behind it."""

    def __init__(self, reader: httpx.Client, moderator: str, cases: CaseService, memes: Path, bank: Path) -> None:
        self.reader, self.cases, self.bank = reader, cases, bank
        self.moderator = {"X-API-Key": moderator}
        self.memes = [as_json(one) for one in queries(memes)]
        self.files = {one.id: one.path for one in queries(memes)}

    def send(self, number: int = 0, **fields: Any) -> dict[str, Any]:
        """Send a meme, and return the case in the answer."""
        answer = self.reader.post("/v1/cases", json={"cases": [{**self.memes[number], **fields}]})
        assert answer.status_code in (200, 201), answer.text
        (taken,) = answer.json()["results"]
        assert taken["new"] == (answer.status_code == 201)
        return taken

    def post(self, path: str, **sent: Any) -> httpx.Response:
        """Send something as a moderator."""
        return self.reader.post(f"/v1/cases/{path}", json=sent, headers=self.moderator)


@pytest.fixture
def served(served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path) -> Iterator[Served]:
    keys = {role: make_key(tmp_path / "keys.json", role, role) for role in ("reader", "moderator")}
    service = BatchingService(Detector.from_run(served_clip / "head", clip_bank))
    bank_service, store = BankService.open(service), CaseStore(Database(tmp_path / "cases.sqlite"))
    pictures = CasePictures(tmp_path / "pictures")
    cases = CaseService(service, store, pictures, bank_service, settings=CaseSettings(**HOSTS))
    app = create_app(service, bank_service, keys=KeyRing.open(tmp_path / "keys.json"), cases=cases,
                     limits=RequestLimits(max_images=8))  # fmt: skip
    with in_thread(app, **{"X-API-Key": keys["reader"]}) as client:
        yield Served(client, keys["moderator"], cases, memes, clip_bank)


def test_a_case_from_intake_to_a_decision_that_is_taken_back(served: Served) -> None:
    fields = {"queue": "night", "source": "forum", "context": "In a group.", "priority": 3, "opinions_needed": 1,
              "callback": "https://hooks.example/decided"}  # fmt: skip
    taken = served.send(**fields)
    assert (taken["state"], taken["id"], taken["queue"]) == ("waiting", served.memes[0]["id"], "night")
    assert taken["result"]["verdict"] in (0, 1)
    (listed,) = served.reader.get("/v1/cases", params={"queue": "night"}).json()["cases"]
    sent = {name: value for name, value in fields.items() if name != "callback"}
    assert {**listed, **sent} == listed
    label = 1 - taken["result"]["verdict"]
    version = Bank.open(served.bank).version

    decided = served.post(f"{taken['case']}/decisions", label=label, reason="a joke").json()
    (opinion,) = decided["opinions"]
    assert (decided["state"], decided["label"], opinion["action"], opinion["person"]) == (
        "decided", label, "label", "moderator")  # fmt: skip
    assert (opinion["rows"], opinion["bank_version"]) == ({taken["case"]: None}, version + 1)
    assert taken["case"] in Bank.open(served.bank).ids
    assert [one["kind"] for one in decided["events"]] == ["case added", "decided", "row changed"]
    assert (decided["events"][0]["person"], decided["events"][2]["row"]) == ("reader", taken["case"])

    undone = served.post(f"{taken['case']}/decisions/{opinion['number']}/undo", reason="wrong key").json()
    assert (undone["state"], undone["label"], undone["opinions"][0]["undone_why"]) == ("waiting", None, "wrong key")
    assert taken["case"] not in Bank.open(served.bank).ids
    assert undone == served.reader.get(f"/v1/cases/{taken['case']}", headers=served.moderator).json()


def test_an_opinion_is_hidden_while_a_case_waits_for_another_one(served: Served) -> None:
    taken = served.send(opinions_needed=2)
    own = served.post(f"{taken['case']}/decisions", label=taken["result"]["verdict"]).json()
    assert (own["state"], len(own["opinions"]), own["events"][-1]["kind"]) == ("waiting", 1, "decided")
    seen = served.reader.get(f"/v1/cases/{taken['case']}").json()
    assert (seen["opinions"], [one["kind"] for one in seen["events"]]) == ([], ["case added"])


def test_an_appeal_reopens_a_case_for_somebody_else(served: Served) -> None:
    taken = served.send()
    path = f"/v1/cases/{taken['case']}/appeal"
    early = served.reader.post(path, json={"reason": "no"})
    assert (early.status_code, early.json()["code"]) == (409, "case_conflict")
    served.post(f"{taken['case']}/decisions", label=taken["result"]["verdict"])
    reopened = served.reader.post(path, json={"reason": "it is satire", "priority": 9}).json()
    assert (reopened["state"], reopened["round"], reopened["priority"]) == ("waiting", 2, 9)
    assert reopened["events"][-1]["details"]["reason"] == "it is satire"


@pytest.mark.parametrize("by", ["field", "header", "form"])
def test_an_intake_that_is_sent_twice_is_one_case(served: Served, by: str) -> None:
    first, second = served.memes[0], served.memes[1]

    def send(meme: dict[str, Any], key: str = "post 1") -> httpx.Response:
        if by == "form":
            files = {"images": ("a.png", served.files[meme["id"]].read_bytes())}
            return served.reader.post("/v1/cases", files=files, data={"texts": meme["text"], "keys": key})
        if by == "header":
            return served.reader.post("/v1/cases", json={"cases": [meme]}, headers={"Idempotency-Key": key})
        return served.reader.post("/v1/cases", json={"cases": [{**meme, "key": key}]})

    one, again, other = send(first), send(first), send(second, "post 2")
    assert [one.status_code, again.status_code, other.status_code] == [201, 200, 201]
    names = [answer.json()["results"][0]["case"] for answer in (one, again, other)]
    assert names[0] == names[1] != names[2]
    wrong = send(second)
    assert (wrong.status_code, wrong.json()["code"]) == (422, "key_reused")
    of_another = served.reader.post("/v1/cases", json={"cases": [{**first, "key": "post 1"}]}, headers=served.moderator)
    assert of_another.status_code == 201
    assert served.reader.get("/v1/cases").json()["count"] == 3


def test_a_key_of_a_request_stands_for_each_of_its_memes(served: Served) -> None:
    def send(memes: list[dict[str, Any]]) -> tuple[int, list[str]]:
        answer = served.reader.post("/v1/cases", json={"cases": memes}, headers={"Idempotency-Key": "batch 1"})
        return answer.status_code, [one["case"] for one in answer.json()["results"]]

    own = {**served.memes[1], "key": "post 1"}
    first, names = send([served.memes[0], own, served.memes[2]])
    assert (first, len(set(names))) == (201, 3)
    assert send([served.memes[0], own, served.memes[2]]) == (200, names)
    again, more = send([served.memes[0], own, served.memes[2], served.memes[3]])
    assert (again, more[:3]) == (201, names)


def test_of_requests_with_one_key_at_once_one_makes_the_case(served: Served) -> None:
    body = {"cases": [{**served.memes[0], "key": "post 1"}]}
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: served.reader.post("/v1/cases", json=body), range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    assert len({answer.json()["results"][0]["case"] for answer in answers}) == 1


def test_a_form_sends_several_pictures_with_fields_for_all(served: Served) -> None:
    files = [("images", (f"{number}.png", drawn((32, 32 + number)))) for number in range(2)]
    data = {"texts": ["a cake", "a pie"], "queue": "night", "priority": "5"}
    answer = served.reader.post("/v1/cases", files=files, data=data)
    assert answer.status_code == 201, answer.text
    cases = served.reader.get("/v1/cases", params={"order": "oldest"}).json()["cases"]
    assert [(one["caption"], one["queue"], one["priority"]) for one in cases] == [
        ("a cake", "night", 5), ("a pie", "night", 5)]  # fmt: skip
    for data, where in (({"texts": "a cake"}, "texts"), ({"queue": ["a", "b"]}, "queue"), ({"size": "1"}, "size"),
                        ({"priority": "high"}, "priority"), ({"keys": ["", "b"]}, "keys")):  # fmt: skip
        refused = served.reader.post("/v1/cases", files=files, data=data)
        assert (refused.status_code, refused.json()["problems"][0]["where"]) == (422, where)


def test_what_cannot_be_judged_becomes_no_case(served: Served) -> None:
    broken = {"id": "broken", "image": encoded(b"no picture"), "text": "a cake"}
    alone = served.reader.post("/v1/cases", json={"cases": [broken]})
    assert (alone.status_code, alone.json()["code"]) == (422, "unusable_meme")
    both = served.reader.post("/v1/cases", json={"cases": [broken, served.memes[0]]})
    assert both.status_code == 201
    error, taken = both.json()["results"]
    assert "error" in error
    assert taken["id"] == served.memes[0]["id"]
    too_many = served.reader.post("/v1/cases", json={"cases": served.memes[:9]})
    assert too_many.status_code == 413
    assert served.reader.get("/v1/cases").json()["count"] == 1


@pytest.mark.parametrize(
    ("fields", "code", "where"),
    [
        ({"callback": "https://elsewhere.example/x"}, "callback_not_allowed", "cases.0.callback"),
        ({"callback": "file:///etc/passwd"}, "callback_not_allowed", "cases.0.callback"),
        ({"priority": True}, "invalid_request", "cases.0.priority"),
        ({"opinions_needed": 0}, "invalid_request", "cases.0.opinions_needed"),
        ({"queue": "a\nb"}, "invalid_request", "cases.0.queue"),
        ({"context": "\0"}, "invalid_request", "cases.0.context"),
        ({"queue_name": "main"}, "invalid_request", "cases.0.queue_name"),
    ],
)
def test_fields_that_cannot_be_used_are_named(served: Served, fields: dict[str, Any], code: str, where: str) -> None:
    answer = served.reader.post("/v1/cases", json={"cases": [{**served.memes[0], **fields}]})
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert answer.json()["problems"][0]["where"] == where
    assert served.reader.get("/v1/cases").json()["count"] == 0


def test_lists_have_filters_and_pages(served: Served) -> None:
    for number in range(5):
        served.send(number, queue="day" if number % 2 else "night", priority=number, source=f"s{number}")

    def ask(**wanted: Any) -> list[str]:
        answer = served.reader.get("/v1/cases", params=wanted).json()
        assert wanted.keys() & {"limit", "offset"} or answer["count"] == len(answer["cases"])
        return [one["id"] for one in answer["cases"]]

    names = [meme["id"] for meme in served.memes[:5]]
    assert ask() == names[::-1]
    assert ask(order="oldest", limit=2) + ask(order="oldest", offset=2) == names
    assert ask(queue="day", order="oldest") == names[1:5:2]
    assert ask(source="s2") == [names[2]]
    assert ask(words=names[3].upper()) == [names[3]]
    assert ask(state="decided") == ask(why="audit") == ask(label=7) == []
    assert set(ask(state=["waiting", "decided"])) == set(names)
    assert served.reader.get("/v1/cases", params={"state": "lost"}).status_code == 422


def test_readers_send_and_look_and_moderators_decide(served: Served) -> None:
    taken = served.send()
    path = f"/v1/cases/{taken['case']}/decisions"
    for target in (path, f"{path}/1/undo"):
        assert served.reader.post(target, json={}).json()["code"] == "role_not_allowed"
    for wrong, status, code in (
        ({"label": 7, "reason": "x"}, 422, "unusable_value"),
        ({"label": 1 - taken["result"]["verdict"]}, 422, "unusable_value"),
        ({"label": True}, 422, "invalid_request"),
    ):
        answer = served.post(f"{taken['case']}/decisions", **wrong)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert served.post("none/decisions", label=1).json()["code"] == "no_such_case"
    assert served.post(f"{taken['case']}/decisions/99/undo").json()["code"] == "no_such_case"
    assert served.post(f"{taken['case']}/decisions").json()["state"] == "escalated"
    assert served.reader.get(f"/v1/cases/{taken['case']}", headers={"X-API-Key": "wrong"}).status_code == 401


def wait_for(count: int, read: Callable[[], int]) -> None:
    end = time.monotonic() + 20
    while read() != count and time.monotonic() < end:
        time.sleep(0.02)
    assert read() == count


def test_the_policy_chooses_among_the_answers_of_classify_and_moderations(served: Served) -> None:
    served.cases.draw = PolicyDraw(CasePolicy(audit_rate=1.0))
    picture, text = served.memes[0]["image"], served.memes[0]["text"]
    parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
             {"type": "text", "text": text}]  # fmt: skip
    assert served.reader.post("/v1/classify", json={"memes": served.memes[:3]}).status_code == 200
    assert served.reader.post("/v1/moderations", json={"input": parts}).status_code == 200
    wait_for(4, lambda: served.reader.get("/v1/cases", params={"why": "audit"}).json()["count"])
    cases = served.reader.get("/v1/cases", params={"order": "oldest"}).json()["cases"]
    assert [one["id"] for one in cases[:3]] == [meme["id"] for meme in served.memes[:3]]
    assert {one["source"] for one in cases} == {"reader"}
    assert all(one["audited"] for one in cases)


def test_a_database_that_is_away_fails_no_verdict_and_no_probe(served: Served) -> None:
    served.cases.draw = PolicyDraw(CasePolicy(audit_rate=1.0))
    with served.cases.store.database.write() as session:
        Base.metadata.drop_all(session.connection())
    assert served.reader.post("/v1/classify", json={"memes": served.memes[:2]}).status_code == 200
    wait_for(2, lambda: served.cases.watcher.missed)
    refused = served.reader.post("/v1/cases", json={"cases": served.memes[:1]})
    assert (refused.status_code, refused.json()["code"]) == (503, "cases_not_available")
    assert refused.headers["retry-after"]
    assert "ra_hmd_cases_missed_total 2.0" in served.reader.get("/metrics").text


def test_a_database_without_a_free_connection_is_busy(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = served.cases.store.database._engine
    monkeypatch.setattr(engine.pool, "_timeout", 0.1)
    held = [engine.connect() for _ in range(engine.pool.size() + engine.pool._max_overflow)]
    answer = served.reader.get("/v1/cases")
    for connection in held:
        connection.close()
    assert (answer.status_code, answer.json()["code"]) == (503, "cases_not_available")
    assert served.reader.get("/v1/cases").status_code == 200


def test_without_a_case_database_there_are_no_cases(served_clip: Path) -> None:
    with in_thread(create_app(BatchingService(Detector.from_run(served_clip / "head")))) as client:
        body = json.dumps({"cases": [{"image": encoded(drawn())}]})
        headers = {"content-type": "application/json"}
        assert client.post("/v1/cases", content=body, headers=headers).json()["code"] == "no_cases"
        assert client.get("/v1/cases").json()["code"] == "no_cases"
        assert client.get("/v1/cases/x").json()["code"] == "no_cases"


def test_the_audit_log_tells_who_did_what_to_which_row(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ra_hmd.serve.audit_routes._LINES", 2)
    taken = served.send(source="forum")
    case = taken["case"]
    served.post(f"{case}/decisions", label=1 - taken["result"]["verdict"], reason='=a "joke"')
    served.send(1)
    middle = datetime.now(UTC)
    served.post(f"{case}/decisions/1/undo", reason="wrong key")
    assert served.reader.get("/v1/audit").json()["code"] == "role_not_allowed"

    def ask(**wanted: Any) -> list[dict[str, Any]]:
        answer = served.reader.get("/v1/audit", params=wanted, headers=served.moderator)
        assert answer.headers["content-type"] == "application/jsonl"
        return [json.loads(line) for line in answer.text.splitlines()]

    everything = ask()
    assert [one["time"] for one in everything] == sorted(one["time"] for one in everything)
    of_case = ["case added", "decided", "row changed", "undone", "row changed back"]
    assert [one["kind"] for one in ask(case=case)] == of_case
    assert sorted(one["kind"] for one in everything) == sorted(
        [*of_case, "case added", "bank create", "bank add", "bank remove"])  # fmt: skip
    assert sorted(one["kind"] for one in ask(row=case)) == [
        "bank row added", "bank row removed", "row changed", "row changed back"]  # fmt: skip
    assert {one["person"] for one in ask(person="moderator")} == {"moderator"}
    assert [one["kind"] for one in ask(person="reader")] == ["case added"] * 2
    before, after = ask(until=middle.isoformat()), ask(since=middle.isoformat())
    assert len(before) + len(after) == len(everything)
    assert {"undone", "row changed back"} <= {one["kind"] for one in after}
    assert not {"undone", "row changed back"} & {one["kind"] for one in before}

    table = served.reader.get("/v1/audit", params={"format": "csv"}, headers=served.moderator)
    rows = list(csv.DictReader(StringIO(table.text)))
    assert [row["kind"] for row in rows] == [one["kind"] for one in everything]
    assert json.loads(rows[[row["kind"] for row in rows].index("decided")]["details"])["reason"] == '=a "joke"'
    for suffix in ("jsonl", "csv"):
        done = CliRunner().invoke(
            cli, ["cases", "export", str(tmp_path / f"audit.{suffix}"), "--cases", str(tmp_path / "cases.sqlite"),
                  "--bank", str(served.bank)])  # fmt: skip
        assert done.exit_code == 0, done.output
        assert f"{len(everything)} lines" in done.output
        sent = served.reader.get("/v1/audit", params={"format": suffix}, headers=served.moderator)
        assert (tmp_path / f"audit.{suffix}").read_text() == sent.text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["audit.txt", "--cases", "cases.sqlite"], ".jsonl or .csv"),
        (["audit.csv", "--cases", "none.sqlite"], "not exist"),
    ],
)
def test_an_export_needs_a_format_and_a_database(tmp_path: Path, words: list[str], said: str) -> None:
    with contextlib.chdir(tmp_path):
        done = CliRunner().invoke(cli, ["cases", "export", *words])
    assert done.exit_code == 2
    assert said in done.output
    assert not list(tmp_path.iterdir())


def test_texts_that_a_spreadsheet_would_run_are_quoted() -> None:
    line = {"time": "", "person": "@ana", "kind": "decided", "case": "=1+1", "row": "a,b\n", "number": 1, "details": {}}
    heading, *rows = as_text([line], "csv")
    assert heading.strip().split(",") == list(line)
    (read,) = csv.reader(["".join(rows)])
    assert read == ["", "'@ana", "decided", "'=1+1", "a,b\n", "1", "{}"]


def test_metrics_tell_what_waits_and_what_was_done(served: Served) -> None:
    taken = served.send(queue="night")
    served.send(1, queue="day", callback="https://hooks.example/x")
    served.post(f"{taken['case']}/decisions", label=taken["result"]["verdict"])
    served.post(f"{taken['case']}/decisions/1/undo")
    served.post(f"{taken['case']}/decisions", label=taken["result"]["verdict"])
    lines = served.reader.get("/metrics", headers=served.moderator).text.splitlines()
    for line in (
        'ra_hmd_cases_open{queue="day",state="waiting"} 1.0',
        'ra_hmd_cases_added_total{why="requested"} 2.0',
        'ra_hmd_decisions_total{action="agree"} 2.0',
        "ra_hmd_decisions_undone_total 1.0",
        "ra_hmd_cases_missed_total 0.0",
        'ra_hmd_webhooks{state="waiting"} 0.0',
    ):
        assert line in lines
    assert not [line for line in lines if "night" in line]
    assert any(line.startswith('ra_hmd_cases_oldest_seconds{queue="day"}') for line in lines)
