"""Services that share a bank: what one changes the others see, and what several change at once is changed once."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import as_json, in_thread, queries

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.versions import Change
from ra_hmd.core.errors import UserError
from ra_hmd.inference.detector import Detector
from ra_hmd.serve.app import create_app
from ra_hmd.serve.bank_service import AlreadyApplied, BankService
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.limits import BatchingSettings, FollowSettings


@contextmanager
def replicas(run: Path, bank: Path, number: int) -> Iterator[list[BankService]]:
    with ExitStack() as stack:
        services = [stack.enter_context(BatchingService(Detector.from_run(run, bank))) for _ in range(number)]
        yield [BankService(service) for service in services]


def test_a_change_that_several_ask_for_at_once_is_made_once(served_clip: Path, clip_bank: Path, memes: Path) -> None:
    meme, gone = queries(memes)[0], Bank.open(clip_bank).ids[0]
    how = {"author": "ana", "reason": "at once"}
    changes: list[Callable[[BankService], Any]] = [
        lambda one: one.add([meme], [1], source="tests", **how),
        lambda one: one.relabel({meme.id: 0}, **how),
        lambda one: one.remove([gone], **how),
        lambda one: one.rollback(1, **how),
    ]
    with replicas(served_clip / "head", clip_bank, 3) as services, ThreadPoolExecutor(3) as threads:
        for version, change in enumerate(changes, 2):
            start = threading.Barrier(3)

            def ask(service: BankService, change: Any = change, start: threading.Barrier = start) -> Any:
                start.wait(30)
                try:
                    return change(service).version
                except AlreadyApplied:
                    return "made already"

            assert sorted(map(str, threads.map(ask, services))) == [str(version), "made already", "made already"]
    assert [entry.action for entry in Bank.open(clip_bank).log[1:]] == ["add", "relabel", "remove", "rollback"]


def test_a_change_is_planned_again_where_a_writer_without_the_lock_came_first(
    clip_bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, other = Bank.open(clip_bank), Bank.open(clip_bank)
    first, second = bank.ids[:2]
    monkeypatch.setattr(bank._backend, "writing", nullcontext)
    plan, seen = bank.plan_remove, []

    def interrupted(ids: list[str]) -> Change:
        seen.append(bank.version)
        change = plan(ids)
        if len(seen) == 1:
            other.remove([second], author="bo", reason="meanwhile")
        return change

    monkeypatch.setattr(bank, "plan_remove", interrupted)
    assert bank.remove([first], author="ana", reason="late").version == 3
    assert seen == [1, 2]

    def always_late(ids: list[str]) -> Change:
        other.remove(other.ids[-1:], author="bo", reason="meanwhile")
        return plan(ids)

    monkeypatch.setattr(bank, "plan_remove", always_late)
    with pytest.raises(UserError, match="another writer"):
        bank.remove(bank.ids[:1], author="ana", reason="always late")
    authors = [entry.author for entry in Bank.open(clip_bank).log]
    assert authors[:3] == ["tests", "bo", "ana"]
    assert set(authors[3:]) == {"bo"}


def test_memes_of_one_answer_are_judged_by_one_version(
    served_clip: Path, clip_bank: Path, memes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bank changes after each of the first batches that the memes of a request are in."""
    detector = Detector.from_run(served_clip / "head", clip_bank)
    service = BatchingService(detector, BatchingSettings(max_batch=1))
    other, judge = Bank.open(clip_bank), detector.judge_and_score

    def judged(batch: Any) -> Any:
        answer = judge(batch)
        if other.refresh() < 4:
            other.remove(other.ids[:1], author="bo", reason="meanwhile")
        return answer

    monkeypatch.setattr(detector, "judge_and_score", judged)
    asked = queries(memes)[:4]
    with in_thread(create_app(service)) as client:
        answer = client.post("/v1/classify", json={"memes": [as_json(one) for one in asked]}).json()["results"]
    assert [one["id"] for one in answer] == [one.id for one in asked]
    assert {one["version"]["bank"]["version"] for one in answer} == {4}
    expected = Detector.from_run(served_clip / "head", clip_bank)(asked)
    for one, verdict in zip(answer, expected, strict=True):
        assert one["scores"]["rkc"] == pytest.approx(verdict.scores["rkc"], abs=1e-5)
        assert [row["id"] for row in one["neighbours"]] == [row["id"] for row in verdict.neighbours]


def test_a_replica_follows_unasked_and_says_when_it_lags(
    served_clip: Path, clip_bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = BatchingService(Detector.from_run(served_clip / "head", clip_bank))
    follow = FollowSettings(follow_seconds=0.1, max_lag=1)
    bank, other = service.detector.scorer.bank, Bank.open(clip_bank)
    assert bank is not None
    looks, newest = [], bank.newest
    monkeypatch.setattr(bank, "newest", lambda: looks.append(0) or newest())
    with in_thread(create_app(service, BankService(service), follow=follow)) as client:
        assert client.get("/ready").json()["bank"]["version"] == 1
        other.remove(other.ids[:1], author="bo", reason="elsewhere")
        assert _await(client, lambda said: said.json()["bank"]["version"] == 2) < 2
        before, began = len(looks), time.monotonic()
        for _ in range(100):
            assert client.get("/ready").status_code == 200
        assert len(looks) - before <= (time.monotonic() - began) / 0.1 + 1, "a probe looks at no file"
        with service.exclusive():  # as a long rationale does
            other.remove(other.ids[:2], author="bo", reason="elsewhere")
            other.rollback(1, author="bo", reason="elsewhere")
            _await(client, lambda said: said.status_code == 503)
            said = client.get("/ready").json()
            assert "version 2, and 4 exists" in said["detail"]
            assert said["bank_version"] == 2
            figures = client.get("/metrics").text
            assert "ra_hmd_bank_newest_version 4.0" in figures
            assert client.get("/health").status_code == 200
        _await(client, lambda said: said.status_code == 200 and said.json()["bank"]["versions_behind"] == 0)
        assert "ra_hmd_bank_version 4.0" in client.get("/metrics").text


def _await(client: httpx.Client, holds: Callable[[httpx.Response], bool]) -> float:
    """Seconds until what /ready says fits."""
    began = time.monotonic()
    while not holds(client.get("/ready")):
        assert time.monotonic() - began < 30
        time.sleep(0.02)
    return time.monotonic() - began
