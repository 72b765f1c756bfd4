"""A file of memes becomes cases: once each, those of a list first, also those that are added while the service runs."""

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers import queries
from sqlalchemy import select

from ra_hmd.cases.database import Database
from ra_hmd.cases.filters import CaseFilter
from ra_hmd.cases.pictures import CasePictures
from ra_hmd.cases.store import CaseStore, Decision
from ra_hmd.cases.tables import Case
from ra_hmd.core.errors import UserError
from ra_hmd.inference.detector import Detector
from ra_hmd.serve import queue_file
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.case_service import CaseService
from ra_hmd.serve.old_reviews import decided_before
from ra_hmd.serve.queue_file import QueueFile


@pytest.fixture
def cases(served_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CaseService]:
    monkeypatch.setattr(queue_file, "_LOOK_SECONDS", 0.05)
    with BatchingService(Detector.from_run(served_clip / "head", served_clip / "bank")) as service:
        store = CaseStore(Database(tmp_path / "cases.sqlite"))
        yield CaseService(service, store, CasePictures(tmp_path / "pictures"))


def write(path: Path, memes: Path, count: int, *more: str) -> Path:
    lines = [json.dumps({"id": one.id, "image": str(one.image), "text": one.text}) for one in queries(memes)[:count]]
    path.write_text("\n".join([*lines, *more]) + "\n")
    return path


def feed(cases: CaseService, source: Path, count: int, **how: object) -> list[Case]:
    """The cases, once there are so many of them; in the order of the queue."""
    queue = QueueFile(cases, source, **how)
    queue.start()
    try:
        return wait_for(cases, count)
    finally:
        queue.close()


def wait_for(cases: CaseService, count: int) -> list[Case]:
    end = time.monotonic() + 30
    while len(found := of(cases)) != count:
        assert time.monotonic() < end, f"{len(found)} cases, {count} were to come"
        time.sleep(0.02)
    return found


def of(cases: CaseService) -> list[Case]:
    with cases.store.database.read() as session:
        return list(session.scalars(CaseFilter().apply(select(Case))))


def test_memes_of_a_file_become_cases_of_its_name(cases, memes, tmp_path):
    source = write(tmp_path / "today.jsonl", memes, 9)
    found = feed(cases, source, 9)
    assert {(case.queue, case.source, case.why) for case in found} == {("today.jsonl", "today.jsonl", "file")}
    assert {case.meme_id for case in found} == {one.id for one in queries(memes)[:9]}
    assert [case.order for case in found] == sorted(case.order for case in found)
    assert all(Path(case.picture).is_absolute() and case.verdict["scores"] for case in found)


def test_a_second_reading_judges_and_adds_nothing(cases, memes, tmp_path):
    source = write(tmp_path / "today.jsonl", memes, 3)
    first = feed(cases, source, 3)
    cases.decide(first[0].id, "ann", Decision("label", 1))
    judged = cases.service.statistics.memes
    again = QueueFile(cases, source)
    again._look(threading.Event())
    assert (len(of(cases)), cases.service.statistics.memes) == (3, judged)


def test_what_is_added_while_it_runs_comes_too_and_another_picture_is_another_case(cases, memes, tmp_path):
    source = write(tmp_path / "today.jsonl", memes, 2)
    queue = QueueFile(cases, source)
    queue.start()
    try:
        wait_for(cases, 2)
        write(source, memes, 4)
        wait_for(cases, 4)
        other = {"id": queries(memes)[0].id, "image": str(queries(memes)[9].image), "text": queries(memes)[0].text}
        write(source, memes, 4, json.dumps(other).replace("}", ', "n": 1}'))
        time.sleep(0.3)
        assert len(of(cases)) == 4, "an id that came before is no row"
        source.write_text(json.dumps(other) + "\n")
        wait_for(cases, 5)
    finally:
        queue.close()


def test_suggested_memes_come_first_also_when_they_are_suggested_later(cases, memes, tmp_path):
    source, ids = write(tmp_path / "today.jsonl", memes, 6), [one.id for one in queries(memes)[:6]]
    found = feed(cases, source, 6, order={ids[4]: 0, ids[1]: 1})
    assert [case.meme_id for case in found[:2]] == [ids[4], ids[1]]
    QueueFile(cases, source, order={ids[2]: 0})._look(threading.Event())
    assert {case.meme_id: case.priority for case in of(cases)}[ids[2]] == 1


def test_pictures_inside_a_file_are_kept_with_the_cases(cases, memes, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    rows = [{"id": one.id, "image": {"bytes": one.path.read_bytes()}, "text": one.text} for one in queries(memes)[:3]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "today.parquet")
    found = feed(cases, tmp_path / "today.parquet", 3)
    assert all(Path(case.picture).is_relative_to(cases.pictures.folder) for case in found)
    assert {Path(case.picture).read_bytes() for case in found} == {row["image"]["bytes"] for row in rows}
    assert list((tmp_path / "temporary").iterdir()) == [], "nothing else of them stays"
    QueueFile(cases, tmp_path / "today.parquet")._look(threading.Event())
    assert len(of(cases)) == 3


def test_rows_that_cannot_be_used_do_not_hold_up_the_others(cases, memes, tmp_path, caplog):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = json.dumps({"id": "broken", "image": str(tmp_path / "broken.png"), "text": "x"})
    source = write(tmp_path / "today.jsonl", memes, 2, broken, '{"id": "bare"}')
    QueueFile(cases, source)._look(threading.Event())
    assert len(of(cases)) == 2
    assert "2 memes cannot be used" in caplog.text


def test_memes_that_people_decided_on_before_are_not_asked_again(cases, memes, tmp_path):
    ids = [one.id for one in queries(memes)[:4]]
    lines = [
        {"id": ids[0], "decision": "agree", "picture": ""},
        {"id": ids[1], "decision": "correct", "picture": "another one's"},
        {"id": ids[2], "decision": "skip", "picture": ""},
        {"id": ids[3], "decision": "begun", "picture": ""},
    ]
    reviews = tmp_path / "bank.reviews.jsonl"
    reviews.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"id": "cut sh')
    decided = decided_before(reviews)
    assert decided == {ids[0]: "", ids[1]: "another one's"}
    source = write(tmp_path / "today.jsonl", memes, 4)
    assert {case.meme_id for case in feed(cases, source, 3, decided=decided)} == set(ids[1:])


def test_another_file_holds_no_decisions(tmp_path):
    (tmp_path / "reviews.jsonl").write_text('{"decision": "agree"}\n')
    with pytest.raises(UserError, match=r"line 1, is no decision of a moderator.*--reviews FILE"):
        decided_before(tmp_path / "reviews.jsonl")


def test_a_folder_is_read_again_when_a_picture_comes(cases, memes, tmp_path):
    folder = tmp_path / "pictures in"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(queries(memes)[0].path, folder / "a.png")
    queue = QueueFile(cases, folder)
    queue.start()
    try:
        wait_for(cases, 1)
        shutil.copy(queries(memes)[1].path, folder / "deep" / "b.png")
        assert {case.meme_id for case in wait_for(cases, 2)} == {"a.png", "deep/b.png"}
    finally:
        queue.close()
