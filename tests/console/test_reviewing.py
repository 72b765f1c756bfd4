"""Decisions of moderators: kept, made once, allowed to whom they are allowed, also past a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_calls import ConsoleServer, GradioPage
from servers import drawn, queries

from ra_hmd.bank.bank import Bank
from ra_hmd.console.moderation import ChangePreview, Moderation, content_id
from ra_hmd.console.mount import _private_folder
from ra_hmd.console.review_queue import ReviewQueue, margin
from ra_hmd.console.reviews import Review, Reviews
from ra_hmd.core.errors import UserError
from ra_hmd.inference.detector import Detector
from ra_hmd.serve.auth import KeyRing, make_key
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService, QueueFull, wait_for_all

LINE = Review("m1", "agree", 1, 1, "ana", "2026-01-01T00:00:00+00:00", "run", 1)


def test_reviews_outlive_a_line_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "reviews.jsonl"
    Reviews(path).append(LINE)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    again = Reviews(path)
    assert set(again.done) == {"m1"}
    again.append(replace(LINE, id="m2", decision="skip", label=None))
    assert set(Reviews(path).done) == {"m1", "m2"}
    other = Reviews(path)
    again.append(replace(LINE, id="m3"))
    other.refresh()
    assert other.count("agree") == 2
    assert set(json.loads(whole)) == {
        "id",
        "decision",
        "verdict",
        "label",
        "author",
        "time",
        "run",
        "bank_version",
        "picture",
        "row",
    }
    (tmp_path / "other.jsonl").write_text("a poem\n")
    with pytest.raises(UserError, match="not a file of reviews"):
        Reviews(tmp_path / "other.jsonl")


def test_the_most_uncertain_first_and_each_to_one_person(
    served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path
) -> None:
    rows = [{"id": one.id, "image": str(one.image), "text": one.text} for one in queries(memes)]
    rows.insert(3, {"id": "gone", "image": "no.png", "text": "a cake"})
    (tmp_path / "queue.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reviews = Reviews(tmp_path / "reviews.jsonl")
    with BatchingService(Detector.from_run(served_clip / "head", clip_bank)) as service:
        margins = {
            one.verdict.id: margin(one.verdict, service) for one in wait_for_all(service.submit(queries(memes)), 60)
        }
        queue = ReviewQueue(service, reviews, tmp_path / "queue.jsonl")
        queue.start()
        assert queue._worker is not None
        queue._worker.join(60)
        expected = [name for _, name in sorted((value, name) for name, value in margins.items())]
        first, second = queue.next("ana"), queue.next("bo")
        assert [first.id, second.id] == expected[:2], "not the same to both"
        assert [place for place, _ in queue.problems] == ["gone"]
        assert queue.holds(first.id, "ana")
        assert not queue.holds(first.id, "bo")
        reviews.append(replace(LINE, id=first.id))
        assert not queue.holds(first.id, "ana"), "decided once"
        assert queue.next("ana").id == expected[2]
        assert queue.pending == len(expected) - 1
        with pytest.raises(UserError, match="--queue"):
            ReviewQueue(service, reviews, tmp_path / "nowhere")


def test_a_decision_is_of_the_picture_that_was_seen(
    served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path
) -> None:
    one, two = queries(memes)[:2]
    for query in (one, two):
        shutil.copy(query.image, tmp_path / f"{query.id}.png")
    rows = [{"id": query.id, "image": f"{query.id}.png", "text": query.text} for query in (one, two)]
    (tmp_path / "queue.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def left(service: BatchingService) -> set[str]:
        queue = ReviewQueue(service, reviews, tmp_path / "queue.jsonl")
        queue.start()
        assert queue._worker is not None
        queue._worker.join(60)
        return set(queue._margins)

    reviews = Reviews(tmp_path / "reviews.jsonl")
    with BatchingService(Detector.from_run(served_clip / "head", clip_bank)) as service:
        moderation = Moderation(BankService(service), reviews)
        for query in (one, two):
            (served,) = wait_for_all(service.submit([replace(query, image=tmp_path / f"{query.id}.png")]), 60)
            moderation.record(served, "agree", 1, "ana")
        assert left(service) == set()
        shutil.copy(two.image, tmp_path / f"{one.id}.png")
        assert left(service) == {one.id}
        reviews.append(replace(LINE, id=one.id))  # a line of an older version, which does not tell of the picture
        assert left(service) == set()


def test_a_correction_is_planned_and_made_once(served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path) -> None:
    with BatchingService(Detector.from_run(served_clip / "head", clip_bank)) as service:
        moderation = Moderation(BankService(service), Reviews(tmp_path / "reviews.jsonl"))
        query = queries(memes)[0]
        (served,) = wait_for_all(service.submit([query]), 60)
        with pytest.raises(UserError, match="effect first"):
            moderation.correct(served, None, "ana", "wrong")
        preview = moderation.preview(served, 1)
        with pytest.raises(UserError, match="Say why"):
            moderation.correct(served, preview, "ana", "  ")
        assert moderation.reviews.begun == {}
        moderation.correct(served, preview, "ana", "wrong", "a note")
        with pytest.raises(UserError, match="changed meanwhile"):
            moderation.correct(served, preview, "ana", "wrong")
        with pytest.raises(UserError, match="already"):
            moderation.preview(served, 1)
        again = moderation.preview(served, 0)
        assert again.rows == (query.id,)
        moderation.correct(served, again, "bo", "a mistake", "after all")
        back = moderation.preview_rollback(1)
        assert back.impact["queries"] == 1
        moderation.rollback(1, back, "bo", "only tried")
        forth = moderation.preview_rollback(3)
        assert moderation.rollback(3, forth, "bo", "no, really").counts["restored"] == 1
    bank = Bank.open(clip_bank)
    assert [(one.action, one.author, one.reason) for one in bank.log[1:]] == [
        ("add", "ana", "wrong"), ("relabel", "bo", "a mistake; after all"), ("rollback", "bo", "only tried"),
        ("rollback", "bo", "no, really"),
    ]  # fmt: skip
    row = bank.row(bank.ids.index(query.id))
    assert (row["source"], row["note"], row["label"]) == ("review", "a note", 0)
    assert content_id(b"x", "a cat") != content_id(b"x", "a dog")


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
from servers import queries
from ra_hmd.console.moderation import Moderation
from ra_hmd.console.reviews import Reviews
from ra_hmd.inference.detector import Detector
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService, wait_for_all
service = BatchingService(Detector.from_run({run!r}, {bank!r}))
bank_service = BankService(service)
moderation = Moderation(bank_service, Reviews({reviews!r}))
query = queries(Path({memes!r}))[0]
name = bank_service.bank.ids[0] if {relabel} else query.id
(served,) = wait_for_all(service.submit([query]), 60)
served = replace(served, meme=replace(served.meme, id=name))
preview = moderation.preview(served, 1 - int(bank_service.bank.labels[0]) if {relabel} else 1)
kind = "relabel" if {relabel} else "add"
change = getattr(bank_service, kind)
def killed(*values, **named):
    if {after}:
        change(*values, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(bank_service, kind, killed)
moderation.correct(served, preview, "ana", "wrong")
"""


@pytest.mark.parametrize("relabel", [False, True], ids=["add", "relabel"])
@pytest.mark.parametrize("after", [False, True], ids=["before the bank", "after the bank"])
@pytest.mark.slow
def test_killed_between_bank_and_review(
    served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path, relabel: bool, after: bool
) -> None:
    """The bank tells whether a correction that was begun was made: it is neither asked nor made again, or it is."""
    name = Bank.open(clip_bank).ids[0] if relabel else queries(memes)[0].id
    code = KILLED.format(
        tests=str(Path(__file__).parents[1]),
        run=str(served_clip / "head"),
        bank=str(clip_bank),
        reviews=str(tmp_path / "reviews.jsonl"),
        memes=str(memes),
        relabel=relabel,
        after=after,
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Bank.open(clip_bank).version == (2 if after else 1)
    meme = queries(memes)[0]
    line = {"id": name, "image": str(meme.image), "text": meme.text}
    (tmp_path / "queue.jsonl").write_text(json.dumps(line) + "\n")
    reviews = Reviews(tmp_path / "reviews.jsonl")
    assert set(reviews.begun) == {name}
    with BatchingService(Detector.from_run(served_clip / "head", clip_bank)) as service:
        queue = ReviewQueue(service, reviews, tmp_path / "queue.jsonl")
        queue.start()
        assert queue._worker is not None
        queue._worker.join(60)
        asked = queue.next("ana")
    assert (asked is None) == after
    assert (name in reviews.done) == after
    assert Bank.open(clip_bank).version == (2 if after else 1)


def shown(page: GradioPage) -> tuple[Any, str]:
    """Upload and judge a meme; what came back."""
    page.press("check-upload", "upload", check_upload=page.upload(drawn()))
    answer = page.press("check-judge", check_caption="a cake")
    return answer, answer["check-card"]


def test_a_reader_may_look_and_not_change_by_any_way(console: ConsoleServer, clip_bank: Path, tmp_path: Path) -> None:
    keys = {role: make_key(tmp_path / "keys.json", role, role) for role in ("reader", "moderator")}
    with console(KeyRing.open(tmp_path / "keys.json")) as client:
        assert client.get("/console/config").status_code == 401
        with pytest.raises(httpx.HTTPStatusError):
            GradioPage(client, login=("moderator", keys["reader"]))
        with pytest.raises(httpx.HTTPStatusError):
            GradioPage(client, login=("reader", "a guess"))
        reader = GradioPage(client, login=("reader", keys["reader"]))
        answer, card = shown(reader)
        assert "Verdict" in card
        assert answer["check-correct"]["visible"] is False
        for button, event, values in (
            ("check-correct", "click", {}),
            ("check-look", "click", {"check_label": 1}),
            ("check-write", "click", {"check_label": 1, "check_reason": "The verdict is wrong"}),
            ("review-agree", "click", {}),
            ("review-skip", "click", {}),
            ("history-look", "click", {"history_version": "1"}),
            ("history-write", "click", {"history_version": "1", "history_reason": "so"}),
        ):
            with pytest.raises(RuntimeError, match="reader"):
                reader.press(button, event, **values)
        assert "moderator&#x27;s key" in str(reader.press("review-next")["review-said"])
        client.cookies.clear()
        moderator = GradioPage(client, login=("moderator", keys["moderator"]))
        shown(moderator)
        opened = moderator.press("check-correct")
        label = opened["check-label"]["value"]
        moderator.press("check-write", check_label=label, check_reason="The verdict is wrong")
    assert [(one.action, one.author) for one in Bank.open(clip_bank).log] == [("create", "tests"), ("add", "moderator")]


def test_nothing_of_an_upload_stays_and_nothing_else_is_open(console: ConsoleServer, tmp_path: Path) -> None:
    with console() as client:
        page = GradioPage(client)
        sent = page.upload(drawn())
        assert [path for path in _private_folder().rglob("*") if path.is_file()]
        page.press("check-upload", "upload", check_upload=sent)
        assert [path for path in _private_folder().rglob("*") if path.is_file()] == []
        assert _private_folder().stat().st_mode & 0o777 == 0o700
        with pytest.raises(RuntimeError, match="cannot be opened"):
            page.press("check-upload", "upload", check_upload=page.upload(b"<svg/>", "a.svg"))
        assert [path for path in _private_folder().rglob("*") if path.is_file()] == []
        sent["path"] = "/etc/hostname"
        with pytest.raises(RuntimeError):
            page.press("check-upload", "upload", check_upload=sent)
        for path in ("deep_link?session_hash=x", "info", "openapi.json", "proxy=https://example.org", "run/predict"):
            assert client.get(f"/console/gradio_api/{path}").status_code == 404, path
        first = client.get("/console/")
        assert "default-src 'self'" in first.headers["content-security-policy"]
        assert "http://" not in first.text.replace("http://127.0.0.1", "").replace("http://www.w3.org", "")


FOREIGN = (
    {"Origin": "https://example.org"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
)


def test_a_page_of_another_site_does_nothing(console: ConsoleServer, clip_bank: Path) -> None:
    with console() as client:
        page = GradioPage(client)
        for asked in FOREIGN:
            client.headers.update(asked)
            for act in (lambda: page.upload(drawn()), lambda: page.press("history-look", history_version="1")):
                with pytest.raises(httpx.HTTPStatusError, match="403"):
                    act()
            preflight = client.options(
                "/console/gradio_api/queue/join", headers={"Access-Control-Request-Method": "POST"}
            )
            assert "access-control-allow-origin" not in preflight.headers
            for name in asked:
                del client.headers[name]
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert client.get("/console/", headers=link).status_code == 200
        client.headers["Origin"] = str(client.base_url).rstrip("/")
        assert "Verdict" in shown(page)[1]


def test_the_bank_is_not_changed_between_a_look_at_its_version_and_a_correction(
    served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another change through the service, begun in that moment, comes after the correction."""
    with BatchingService(Detector.from_run(served_clip / "head", clip_bank)) as service:
        bank_service = BankService(service)
        moderation = Moderation(bank_service, Reviews(tmp_path / "reviews.jsonl"))
        query = queries(memes)[0]
        (served,) = wait_for_all(service.submit([query]), 60)
        preview, name = moderation.preview(served, 1), bank_service.bank.ids[0]
        check = moderation._check_current
        other = threading.Thread(target=lambda: bank_service.remove([name], author="bo", reason="meanwhile"))

        def checked(preview: ChangePreview) -> None:
            check(preview)
            other.start()
            other.join(0.5)

        monkeypatch.setattr(moderation, "_check_current", checked)
        moderation.correct(served, preview, "ana", "wrong")
        other.join(60)
    assert [one.author for one in Bank.open(clip_bank).log] == ["tests", "ana", "bo"]


def test_a_meme_on_which_the_model_fails_does_not_end_the_queue(
    served_clip: Path, memes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BatchingService(Detector.from_run(served_clip / "head")) as service:
        score, bad = service.detector.score, queries(memes)[2].id

        def failing(batch: Any) -> Any:
            if bad in [one.id for one in batch]:
                raise RuntimeError("out of memory")
            return score(batch)

        monkeypatch.setattr(service.detector, "score", failing)
        queue = ReviewQueue(service, Reviews(tmp_path / "reviews.jsonl"), memes / "a" / "dev.jsonl")
        queue.start()
        assert queue._worker is not None
        queue._worker.join(60)
        assert queue.pending == len(queries(memes)) - 1
        assert [place for place, _ in queue.problems] == [bad]


def test_what_is_done_is_not_told_as_undone(
    console: ConsoleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision is kept and the next meme cannot be judged: the page says both."""
    with console() as client:
        page = GradioPage(client)
        while not page.press("review-next")["review-card"]:
            pass

        def full(*_: object) -> None:
            raise QueueFull

        monkeypatch.setattr(BatchingService, "submit", full)
        assert "Skipped." in (said := page.press("review-skip")["review-said"])
        assert "too much to do" in said
        with pytest.raises(RuntimeError, match="too much to do"):
            page.press("review-next")
        with pytest.raises(RuntimeError, match="no version"):
            page.press("history-look", history_version="9" * 5000)
    assert len((tmp_path / "reviews.jsonl").read_text().splitlines()) == 1


def test_many_presses_at_once_decide_once_on_a_meme(
    console: ConsoleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with console() as client:
        page = GradioPage(client)
        while not page.press("review-next")["review-card"]:
            pass
        holds = ReviewQueue.holds

        def slowly(*asked: Any) -> bool:
            held = holds(*asked)
            time.sleep(0.2)  # for the others to look as well
            return held

        monkeypatch.setattr(ReviewQueue, "holds", slowly)
        page.press_at_once("review-agree", 3)
    lines = [json.loads(line) for line in (tmp_path / "reviews.jsonl").read_text().splitlines()]
    assert lines
    assert len({line["id"] for line in lines}) == len(lines), "a meme was decided on twice"


def test_only_so_many_pages_are_kept_in_memory(console: ConsoleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ra_hmd.console.page._SESSIONS", 2)
    with console(queue=None) as client:
        first, *others = (GradioPage(client) for _ in range(4))
        first.press("check-upload", "upload", check_upload=first.upload(drawn()))
        for other in others:
            shown(other)
        with pytest.raises(RuntimeError, match="Give a picture first"):
            first.press("check-judge", check_caption="a cake")
        assert "Verdict" in shown(others[-1])[1]
