"""The service: many ask at once, each gets the answer to its own meme, and a change of the bank counts at once."""

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from servers import queries

from ra_hmd.bank.bank import Bank
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.inference.detector import Detector
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService, QueueFull, ServiceClosed, wait_for_all
from ra_hmd.serve.limits import BatchingSettings


def test_each_of_many_gets_its_own_answer(served_clip: Path, clip_bank: Path, memes: Path) -> None:
    asked = queries(memes)
    expected = {one.id: one.scores for one in Detector.from_run(served_clip / "head", clip_bank)(asked)}
    with BatchingService(Detector.from_run(served_clip / "head", clip_bank)) as service, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda query: wait_for_all(service.submit([query]), 60)[0], asked * 3))
        assert service.statistics.memes == len(asked) * 3
        assert service.statistics.batches < len(asked) * 3
    for query, answer in zip(asked * 3, answers, strict=True):
        assert (answer.meme, answer.verdict.id) == (query, query.id)
        assert answer.verdict.scores == pytest.approx(expected[query.id], abs=1e-4)
        assert answer.version["bank"]["version"] == 1


def test_a_full_queue_refuses_and_a_cancelled_meme_costs_nothing(served_clip: Path, memes: Path) -> None:
    asked = queries(memes)[:4]
    with BatchingService(Detector.from_run(served_clip / "head"), BatchingSettings(max_queue=4)) as service:
        with service.exclusive():  # so nothing is judged
            waiting = service.submit(asked)
            with pytest.raises(QueueFull):
                service.submit(asked[:1])
            with pytest.raises(TimeoutError):
                wait_for_all(waiting[2:], 0.05)
        assert [answer.verdict.id for answer in wait_for_all(waiting[:2], 60)] == [query.id for query in asked[:2]]
        for future in waiting[2:]:
            with pytest.raises(CancelledError):
                future.result(60)
        assert service.pending == 0
        assert service.statistics.refused == 1


def test_what_was_accepted_is_answered_before_the_end(served_clip: Path, memes: Path) -> None:
    service = BatchingService(Detector.from_run(served_clip / "head"), BatchingSettings(max_batch=2))
    futures = service.submit(queries(memes))
    closing = threading.Thread(target=service.close)
    closing.start()
    closing.join(120)
    assert all(future.done() and future.result().verdict.id for future in futures)
    with pytest.raises(ServiceClosed):
        service.submit(queries(memes)[:1])
    assert not service.ready


def test_who_wants_the_model_alone_gets_it_soon(served_clip: Path, memes: Path) -> None:
    asked, done = queries(memes), threading.Event()
    with (
        BatchingService(Detector.from_run(served_clip / "head"), BatchingSettings(max_batch=1)) as service,
        ThreadPoolExecutor(1) as pool,
    ):

        def load() -> None:
            while not done.is_set():
                wait_for_all(service.submit(asked), 60)

        loading = pool.submit(load)
        while service.pending < 2:
            pass
        waited = []
        for _ in range(40):
            time.sleep(0.003)  # so that a batch is at work
            before = service.statistics.batches
            with service.exclusive(60), service.exclusive():  # again by the same thread
                waited.append(service.statistics.batches - before)
        done.set()
        loading.result(60)
    assert max(waited) < 10, "not only when the queue is empty"


def test_a_bad_picture_fails_alone(served_clip: Path, memes: Path, tmp_path: Path) -> None:
    (tmp_path / "not.png").write_text("words")
    good, bad = queries(memes)[0], Meme("bad", tmp_path / "not.png", "a cat")
    with BatchingService(Detector.from_run(served_clip / "head")) as service:
        first, second, third = service.submit([good, bad, good])
        assert first.result(60).verdict.scores == third.result(60).verdict.scores
        with pytest.raises(UserError, match=r"not\.png"):
            second.result(60)


def test_a_correction_votes_in_the_next_answer(served_clip: Path, clip_bank: Path, memes: Path) -> None:
    asked = queries(memes)
    with BatchingService(Detector.from_run(served_clip / "head", clip_bank)) as service:
        bank_service = BankService.open(service, served_clip / "features" / "dev")
        before = wait_for_all(service.submit(asked), 60)
        meme = asked[0]
        twin = Meme("twin", meme.image, meme.text)  # so near that it comes first
        label = 1 - before[0].verdict.verdicts["rkc"]
        impact = bank_service.preview([twin], [label])
        assert bank_service.bank.version == 1, "looking changes nothing"
        entry = bank_service.add(
            [twin], [label], author="ana", reason="wrong", source="review", notes=["seen by a person"]
        )
        assert (entry.version, entry.author) == (2, "ana")
        after = wait_for_all(service.submit(asked), 60)
        assert all(answer.version["bank"]["version"] == 2 for answer in after)
        near = after[0].verdict.neighbours[0]
        assert (near["id"], near["source"], near["note"]) == ("twin", "review", "seen by a person")
        for head, shown in (("rkc", impact), ("krr", impact["krr"])):
            flipped = {
                one.verdict.id
                for one, other in zip(before, after, strict=True)
                if one.verdict.verdicts[head] != other.verdict.verdicts[head]
            }
            assert {flip["id"] for flip in shown["flips"]} == flipped
        assert impact["krr"]["flips"], "the meme itself at least"
        with BatchingService(Detector.from_run(served_clip / "head", clip_bank)) as fresh:
            for one, other in zip(after, wait_for_all(fresh.submit(asked), 60), strict=True):
                assert one.verdict.scores["krr"] == pytest.approx(other.verdict.scores["krr"], abs=1e-6)
        bank_service.rollback(1, author="ana", reason="a trial")
        again = wait_for_all(service.submit(asked), 60)
    assert [one.verdict.scores for one in again] == [pytest.approx(one.verdict.scores, abs=1e-6) for one in before]
    assert [line.action for line in Bank.open(clip_bank).log] == ["create", "add", "rollback"]


def test_another_process_changes_the_bank(served_clip: Path, clip_bank: Path, memes: Path) -> None:
    query = queries(memes)[0]
    with BatchingService(Detector.from_run(served_clip / "head", clip_bank)) as service:
        (first,) = wait_for_all(service.submit([query]), 60)
        other = Bank.open(clip_bank)
        other.remove([first.verdict.neighbours[0]["id"]], author="bo", reason="a double")
        (second,) = wait_for_all(service.submit([query]), 60)
    assert second.version["bank"]["version"] == 2
    assert second.verdict.neighbours[0]["id"] == first.verdict.neighbours[1]["id"]


def test_a_feature_store_cannot_be_changed_and_a_test_split_is_no_reference(
    served_clip: Path, clip_bank: Path, memes: Path
) -> None:
    with (
        BatchingService(Detector.from_run(served_clip / "head", served_clip / "features" / "train")) as service,
        pytest.raises(UserError, match="bank create"),
    ):
        BankService(service)
    with BatchingService(Detector.from_run(served_clip / "head", clip_bank)) as service:
        with pytest.raises(UserError, match="split 'test'"):
            BankService.open(service, served_clip / "features" / "test")
        bank_service = BankService(service)
        with pytest.raises(UserError, match="no meme yet"):
            bank_service.preview(remove=[bank_service.bank.ids[0]])
        meme = Meme("x", Image.new("RGB", (64, 64), "red"), "a cake")
        with pytest.raises(UserError, match="labels"):
            bank_service.add([meme], [7], author="ana", reason="wrong", source="review")
        assert bank_service.bank.version == 1
