"""Second opinions: independent until both are given, shown where they differ, and what comes of that."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from desks import MakeDesk, ServedDesk

from ra_hmd.bank.bank import Bank
from ra_hmd.cases import statistics
from ra_hmd.cases.history import history_of
from ra_hmd.cases.policy import CasePolicy
from ra_hmd.serve.auth import KeyRing, make_key

WHY = "Only the second picture explains it"


@pytest.fixture
def people(desk: MakeDesk, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A served desk with clients of ann, bob and eve."""
    secrets = {name: make_key(tmp_path / "keys.json", name, "moderator") for name in ("ann", "bob", "eve")}
    with ExitStack() as stack:
        served = stack.enter_context(desk(KeyRing.open(tmp_path / "keys.json")))
        clients = {name: stack.enter_context(served.logged_in(name, secret)) for name, secret in secrets.items()}
        yield SimpleNamespace(served=served, **clients)


def shown(client: httpx.Client) -> str:
    return client.get("/console/review").text


def decide(client: httpx.Client, case_id: str, label: int, words: str = WHY) -> None:
    shown(client)  # the case is claimed as a person would
    answer = client.post(f"/console/cases/{case_id}/decide", data={"label": str(label), "words": words})
    assert answer.status_code == 303


def disagree(people: SimpleNamespace) -> str:
    """A case on which ann says 1, bob 0."""
    (case_id,) = people.served.add(1, opinions_needed=2)
    decide(people.ann, case_id, 1)
    decide(people.bob, case_id, 0, "It quotes a sign")
    return case_id


def test_a_second_opinion_is_given_without_knowing_the_first(people: SimpleNamespace) -> None:
    (case_id,) = people.served.add(1, opinions_needed=2)
    decide(people.ann, case_id, 1)
    page = shown(people.bob)
    assert f"/cases/{case_id}/decide" in page
    assert "2 people must agree" in page
    assert WHY not in page
    assert "ann" not in page.split('class="others-said"')[1].split("</div>")[0]
    assert f"/cases/{case_id}/decide" not in shown(people.ann)
    decide(people.bob, case_id, 1)
    case = people.served.cases.store.get(case_id)
    assert (case.state, case.label) == ("decided", 1)


def test_a_third_person_sees_both_sides_of_a_conflict_and_decides_it(people: SimpleNamespace) -> None:
    case_id = disagree(people)
    page = shown(people.eve)
    assert "People disagree, and 2 must come to the same label." in page
    assert all(words in page for words in ("ann", "bob", WHY, "It quotes a sign"))
    decide(people.eve, case_id, 0)
    case = people.served.cases.store.get(case_id)
    assert (case.state, case.label) == ("decided", 0)
    assert "Nobody disagrees with you." in people.ann.get("/console/conflicts").text


def test_one_of_two_who_disagree_may_join_the_other(people: SimpleNamespace, clip_bank: Path) -> None:
    case_id = disagree(people)
    assert "Your cases that are disputed: 1" in shown(people.ann)
    assert "disputed" not in shown(people.eve)
    page = people.ann.get("/console/conflicts").text
    assert "It quotes a sign" in page
    (his,) = (one for one in opinions(people.served, case_id) if one.person == "bob")
    answer = people.ann.post(f"/console/cases/{case_id}/join", data={"opinion": str(his.id)})
    assert "You agree now." in answer.text
    case = people.served.cases.store.get(case_id)
    assert (case.state, case.label) == ("decided", 0)
    assert [(one.person, one.label, one.state) for one in opinions(people.served, case_id)] == [
        ("ann", 1, "undone"), ("bob", 0, "standing"), ("ann", 0, "standing"),
    ]  # fmt: skip
    assert (case_id in Bank.open(clip_bank).ids) == (case.verdict["verdict"] != 0)
    assert statistics.agreements(people.served.cases.store.database, case.created)[0].cases == 1


def test_nobody_joins_an_opinion_that_is_not_theirs_to_see(people: SimpleNamespace) -> None:
    case_id = disagree(people)
    number = str(opinions(people.served, case_id)[0].id)
    for client, opinion in ((people.eve, number), (people.ann, number), (people.ann, "99"), (people.ann, "x")):
        answer = client.post(f"/console/cases/{case_id}/join", data={"opinion": opinion})
        assert 'class="problem"' in answer.text
    assert people.ann.post("/console/cases/none/join", data={"opinion": number}).status_code == 200
    assert len(opinions(people.served, case_id)) == 2


def test_a_colleague_reads_why_a_case_was_passed_on_and_appealed(people: SimpleNamespace) -> None:
    (case_id,) = people.served.add(1)
    shown(people.ann)
    people.ann.post(f"/console/cases/{case_id}/escalate", data={"words": "I do not know the slogan"})
    page = shown(people.bob)
    assert "A colleague asks for your opinion." in page
    assert "ann passed it on" in page
    assert "I do not know the slogan" in page
    decide(people.bob, case_id, 1, "It is a slogan of 1923")
    people.served.cases.store.appeal(case_id, "the author", "It is my own shop")
    page = shown(people.eve)
    assert "the author appealed: It is my own shop" in page
    assert "It is a slogan of 1923" in page


def test_a_share_of_cases_needs_two_people(desk: MakeDesk) -> None:
    with desk(policy=CasePolicy(opinions=0.3, audit_seed=4)) as served:
        needed = [served.cases.store.get(name).opinions_needed for name in served.add(60)]
        assert 8 <= needed.count(2) <= 28
        assert needed.count(1) + needed.count(2) == 60
        assert served.cases.store.get(served.add(1, opinions_needed=3)[0]).opinions_needed == 3


def opinions(served: ServedDesk, case_id: str) -> list:
    history = history_of(served.cases.store.database, case_id)
    assert history is not None
    return history.opinions
