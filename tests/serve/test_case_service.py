"""Cases of a running service: decisions teach the bank, can be taken back, and outlive a kill."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from servers import queries

from ra_hmd.bank.bank import Bank
from ra_hmd.cases import statistics
from ra_hmd.cases.database import Database
from ra_hmd.cases.outcome import OPEN
from ra_hmd.cases.pictures import CasePictures
from ra_hmd.cases.policy import CasePolicy, PolicyDraw
from ra_hmd.cases.steps import CaseConflict
from ra_hmd.cases.store import CaseStore, Decision
from ra_hmd.cases.undoing import begin_undo, unfinished_undos
from ra_hmd.core.errors import UserError
from ra_hmd.inference.detector import Detector
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService, ServedVerdict, ServiceBusy, wait_for_all
from ra_hmd.serve.case_service import CaseService, Intake
from ra_hmd.serve.case_watch import CaseWatcher


@pytest.fixture
def cases(served_clip: Path, clip_bank: Path, tmp_path: Path) -> Iterator[CaseService]:
    with BatchingService(Detector.from_run(served_clip / "head", clip_bank)) as service:
        store = CaseStore(Database(tmp_path / "cases.sqlite"))
        yield CaseService(service, store, CasePictures(tmp_path / "pictures"), BankService(service))


def served(cases: CaseService, memes: Path, count: int = 1) -> list[ServedVerdict]:
    return wait_for_all(cases.service.submit(queries(memes)[:count]), 60)


def add(cases: CaseService, memes: Path) -> tuple[str, int]:
    """A case, and the label that its verdict is not."""
    (one,) = served(cases, memes)
    ((case_id, new),) = cases.add([one], [Intake(source="forum")], "feed")
    assert new
    return case_id, 1 - int(one.verdict.verdict)


def test_a_decision_against_the_verdict_teaches_the_bank(cases, memes, clip_bank):
    case_id, other = add(cases, memes)
    before = len(Bank.open(clip_bank))
    case = cases.decide(case_id, "ann", Decision("label", other, "a joke"))
    assert (case.state, case.label) == ("decided", other)
    bank = Bank.open(clip_bank)
    row = bank.row(bank.ids.index(case_id))
    assert (row["label"], row["source"], row["note"]) == (other, "review", "forum")
    assert (bank.log[-1].author, bank.log[-1].reason, len(bank)) == ("ann", "a joke", before + 1)


def test_agreement_changes_no_row(cases, memes, clip_bank):
    case_id, other = add(cases, memes)
    version = Bank.open(clip_bank).version
    assert cases.decide(case_id, "ann", Decision("agree", 1 - other)).state == "decided"
    assert Bank.open(clip_bank).version == version


def test_a_decision_is_taken_back_row_by_row(cases, memes, clip_bank):
    case_id, other = add(cases, memes)
    rows = Bank.open(clip_bank).ids
    cases.decide(case_id, "ann", Decision("label", other))
    opinion, _ = cases.store.opinions_of("ann")[0]
    assert opinion.change["rows"] == {case_id: None}
    assert cases.undo(opinion.id, "ann", "wrong key").state == "waiting"
    bank = Bank.open(clip_bank)
    assert (bank.ids, bank.log[-1].reason) == (rows, "taken back: wrong key")
    cases.decide(case_id, "ann", Decision("agree", 1 - other))


def test_a_relabelled_row_gets_its_label_back(cases, memes, clip_bank):
    case_id, other = add(cases, memes)
    cases.decide(case_id, "ann", Decision("label", other))
    cases.store.appeal(case_id, "author", "no joke")
    cases.decide(case_id, "bob", Decision("label", 1 - other))
    assert cases.bank_service.labels([case_id, "none"]) == {case_id: 1 - other}
    opinion, _ = cases.store.opinions_of("bob")[0]
    cases.undo(opinion.id, "bob", "")
    assert cases.bank_service.labels([case_id]) == {case_id: other}


def test_what_somebody_else_changed_since_is_not_undone(cases, memes):
    case_id, other = add(cases, memes)
    cases.decide(case_id, "ann", Decision("label", other))
    cases.bank_service.relabel({case_id: 1 - other}, author="bob", reason="no", relabel_identical=True)
    opinion, _ = cases.store.opinions_of("ann")[0]
    with pytest.raises(CaseConflict, match="changed since"):
        cases.undo(opinion.id, "ann", "")
    assert cases.store.get(case_id).state == "decided"


@pytest.mark.parametrize("killed_after", ["begin", "plan", "change"])
def test_a_decision_that_a_kill_cut_short_is_completed(cases, memes, clip_bank, killed_after):
    case_id, other = add(cases, memes)
    opinion = cases.store.begin(case_id, "ann", Decision("label", other, "a joke"))
    if killed_after != "begin":
        cases.store.plan(opinion.id, cases._plan(opinion))
    if killed_after == "change":
        cases._teach(cases.store.unfinished()[0])
    version = Bank.open(clip_bank).version
    assert cases.resume() == 1
    bank = Bank.open(clip_bank)
    assert bank.version == (version if killed_after == "change" else version + 1)
    assert bank.row(bank.ids.index(case_id))["label"] == other
    assert cases.store.get(case_id).state == "decided"
    assert cases.resume() == 0
    cases.undo(opinion.id, "ann", "wrong key")
    assert case_id not in Bank.open(clip_bank).ids


@pytest.mark.parametrize("earlier", ["new row", "other label"])
@pytest.mark.parametrize("killed_after", ["begin", "change"])
def test_an_undoing_that_a_kill_cut_short_is_completed(cases, memes, clip_bank, killed_after, earlier):
    case_id, other = add(cases, memes)
    person, before = "ann", {}
    cases.decide(case_id, "ann", Decision("label", other))
    if earlier == "other label":
        cases.store.appeal(case_id, "author", "no joke")
        person, before = "bob", {case_id: other}
        cases.decide(case_id, "bob", Decision("label", 1 - other))
    opinion, _ = cases.store.opinions_of(person)[0]
    database, (begun,) = cases.store.database, begin_undo(cases.store.database, [opinion.id], person, "wrong key")
    if killed_after == "change":
        cases._unteach(begun)
    version = Bank.open(clip_bank).version
    assert cases.store.get(case_id).state == "decided"
    assert cases.resume(60) == 0, "another process may be at it"
    assert cases.resume() == 1
    assert Bank.open(clip_bank).version == version + (killed_after == "begin")
    assert Bank.open(clip_bank).log[-1].reason == "taken back: wrong key"
    assert cases.bank_service.labels([case_id]) == before
    assert cases.store.get(case_id).state == "waiting"
    assert cases.resume() == len(unfinished_undos(database)) == 0
    cases.decide(case_id, person, Decision("label", other))
    assert cases.bank_service.labels([case_id]) == {case_id: other}


def test_a_bulk_undoing_that_a_kill_cut_short_is_completed(cases, memes, clip_bank):
    added = cases.add(served(cases, memes, 3), [Intake()] * 3, "feed")
    for name, _ in added:
        verdict = cases.store.get(name).verdict["verdict"]
        cases.decide(name, "ann", Decision("label", 1 - verdict, "a joke", "one batch"))
    rows = Bank.open(clip_bank).ids
    first, *_ = begin_undo(cases.store.database, [one.id for one, _ in cases.store.opinions_of("ann")], "ann", "")
    cases._finish_undo(first)
    assert cases.resume() == 2
    assert {cases.store.get(name).state for name, _ in added} == {"waiting"}
    assert set(rows) - set(Bank.open(clip_bank).ids) == {name for name, _ in added}


def test_an_undoing_lets_the_decision_stand_where_the_row_was_changed_meanwhile(cases, memes):
    case_id, other = add(cases, memes)
    cases.decide(case_id, "ann", Decision("label", other))
    opinion, _ = cases.store.opinions_of("ann")[0]
    begin_undo(cases.store.database, [opinion.id], "ann", "")
    cases.bank_service.relabel({case_id: 1 - other}, author="bob", reason="no", relabel_identical=True)
    assert cases.resume() == 1
    assert cases.resume() == 0
    (kept, case), *_ = cases.store.opinions_of("ann")
    assert (kept.id, kept.undone_by, case.state) == (opinion.id, "", "decided")


@pytest.mark.parametrize("resumed", [False, True])
def test_an_undoing_for_which_the_model_has_no_time_is_kept_only_where_it_may_have_begun(cases, memes, resumed):
    case_id, other = add(cases, memes)
    cases.decide(case_id, "ann", Decision("label", other))
    opinion, _ = cases.store.opinions_of("ann")[0]
    if resumed:
        begin_undo(cases.store.database, [opinion.id], "ann", "")
    cases.bank_service.remove = raise_busy
    with pytest.raises(ServiceBusy):
        cases.resume() if resumed else cases.undo(opinion.id, "ann", "")
    assert len(unfinished_undos(cases.store.database)) == resumed
    del cases.bank_service.remove
    assert cases.resume() if resumed else cases.undo(opinion.id, "ann", "")
    assert cases.store.get(case_id).state == "waiting"


def raise_busy(*_, **__):
    raise ServiceBusy


def test_a_refused_change_leaves_the_case_waiting(cases, memes):
    case_id, _ = add(cases, memes)
    with pytest.raises(UserError, match="7"):
        cases.decide(case_id, "ann", Decision("label", 7))
    assert cases.store.get(case_id).state in OPEN
    assert cases.store.unfinished() == []


def test_a_second_opinion_is_heard_before_the_bank_learns(cases, memes, clip_bank):
    (one,) = served(cases, memes)
    ((case_id, _),) = cases.add([one], [Intake(opinions_needed=2)], "feed")
    version, other = Bank.open(clip_bank).version, 1 - int(one.verdict.verdict)
    cases.decide(case_id, "ann", Decision("label", other))
    assert Bank.open(clip_bank).version == version
    cases.decide(case_id, "bob", Decision("label", other))
    assert Bank.open(clip_bank).version == version + 1


def test_the_policy_feeds_the_queue(cases, memes, tmp_path):
    verdicts = served(cases, memes, 6)
    assert cases.watch(verdicts, "api") == []
    cases.draw = PolicyDraw(CasePolicy(audit_rate=1.0))
    assert len(cases.watch(verdicts, "api")) == 6
    case = cases.store.get(cases.watch(verdicts[:1], "api")[0])
    assert (case.audited, case.why, case.source) == (True, "audit", "api")
    assert cases.meme_of(case).load_image().size
    with pytest.raises(CaseConflict):
        cases.store.appeal(case.id, "x", "y")


def test_verdicts_beyond_what_may_wait_are_counted_and_let_go(cases, memes):
    cases.draw = PolicyDraw(CasePolicy(audit_rate=1.0))
    verdicts = served(cases, memes, 4)
    picture = verdicts[0].meme.path.read_bytes()
    verdicts = [replace(one, meme=replace(one.meme, image=picture)) for one in verdicts]
    for watcher in (CaseWatcher(cases.add_chosen, most=2), CaseWatcher(cases.add_chosen, most_bytes=2 * len(picture))):
        cases.watcher = watcher
        before = statistics.waiting(cases.store.database)
        cases.offer(verdicts, "api")
        assert watcher.missed == 2
        watcher.start()
        watcher.close()
        (queue,) = statistics.waiting(cases.store.database)
        assert queue.count == sum(one.count for one in before) + 2


def test_a_policy_that_fails_fails_no_answer(cases, memes):
    cases.draw = PolicyDraw(CasePolicy(audit_rate=1.0))
    (one,) = served(cases, memes)
    cases.offer([replace(one, verdict=None)], "api")
    assert statistics.waiting(cases.store.database) == []


def test_a_meme_that_comes_again_is_asked_about_once_unless_it_is_drawn(cases, memes):
    (one,) = served(cases, memes)
    cases.draw = PolicyDraw(CasePolicy(margin=1.0))
    other = replace(one, meme=replace(one.meme, text="another caption"))
    again = replace(one, meme=replace(one.meme, id="another name"))
    names = cases.watch([one, again, other], "api")
    assert names[0] == names[1] != names[2]
    cases.draw = PolicyDraw(CasePolicy(audit_rate=1.0))
    assert len({*names, *cases.watch([one, again], "api")}) == 4
