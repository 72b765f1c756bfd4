"""Cases that the policy makes of the verdicts of jobs: once for each, whatever happens to the service."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import as_json, in_process, in_thread, queries
from sqlalchemy import select
from test_jobs import as_lines, finished, result

from ra_hmd.cases.database import Database, NoConnection
from ra_hmd.cases.pictures import CasePictures
from ra_hmd.cases.policy import CasePolicy, PolicyDraw
from ra_hmd.cases.store import CaseStore
from ra_hmd.cases.tables import Case
from ra_hmd.inference.batch_judging import MemeChunk
from ra_hmd.inference.batch_reader import BatchRow
from ra_hmd.inference.detector import Detector
from ra_hmd.serve import jobs_runner
from ra_hmd.serve.app import create_app
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.case_service import CaseService
from ra_hmd.serve.jobs import Job
from ra_hmd.serve.jobs_cases import JobCases
from ra_hmd.serve.jobs_runner import JobRunner, open_jobs
from ra_hmd.serve.jobs_settings import JobSettings

ALL = CasePolicy(margin=1.0)


@contextmanager
def service(served: Path, folder: Path, policy: CasePolicy | None) -> Iterator[tuple[httpx.Client, JobRunner]]:
    """A client of an app with jobs, and with cases if there is a policy."""
    batching, cases = BatchingService(Detector.from_run(served / "head", served / "bank")), None
    if policy is not None:
        store = CaseStore(Database(folder / "cases.sqlite"))
        cases = CaseService(batching, store, CasePictures(folder / "pictures"), draw=PolicyDraw(policy))
    jobs = open_jobs(JobSettings(jobs=folder / "jobs"), batching, cases)
    assert jobs is not None
    with in_thread(create_app(batching, jobs=jobs, cases=cases)) as client:
        yield client, jobs


def send(client: httpx.Client, memes: list[dict[str, Any]], cases: str) -> httpx.Response:
    headers = {"Content-Type": "application/jsonl"}
    return client.post(f"/v1/jobs{cases}", content=as_lines(memes), headers=headers)


def stored(cases: CaseService) -> list[Case]:
    with cases.store.database.read() as session:
        return list(session.scalars(select(Case).order_by(Case.id)))


@pytest.mark.slow
def test_a_job_makes_cases_where_it_asks_for_them(served_clip: Path, memes: Path, tmp_path: Path) -> None:
    words = ("serve", served_clip / "head", "--bank", served_clip / "bank", "--jobs", tmp_path / "jobs", "--cases",
             tmp_path / "cases.sqlite", "--review-margin", "1")  # fmt: skip
    sent = [as_json(one) for one in queries(memes)[:5]]
    broken = {"id": "broken", "image": "AAAA", "text": "a cake"}
    with in_process(*words, log=tmp_path / "log") as (_, client):
        plain = send(client, sent, "").json()
        assert (plain["cases"], finished(client, plain["id"])["status"]) == (False, "done")
        assert client.get("/v1/cases").json()["cases"] == []
        asked = send(client, [broken, *sent, sent[0]], "?cases=true").json()
        state = finished(client, asked["id"])
        assert (asked["cases"], state["status"], state["judged"], state["rejected"]) == (True, "done", 6, 1)
        lines = result(client, asked["id"])
        told = [[(one["id"], one["verdict"]) for one in some] for some in (lines[1:-1], result(client, plain["id"]))]
        assert told[0] == told[1]
        found = client.get("/v1/cases", params={"order": "oldest"}).json()["cases"]
        assert sorted(one["id"] for one in found) == sorted(one["id"] for one in sent), "each meme once"
        assert {(one["why"], one["source"], one["state"]) for one in found} == {("unsure", "api", "waiting")}
        case = client.get(f"/v1/cases/{found[0]['case']}").json()
        assert case["result"]["scores"] in [one.get("scores") for one in lines]
    assert len(list((tmp_path / "jobs").rglob("*.jsonl"))) == 2, "no picture of a job is left"


def test_the_pictures_of_cases_outlive_the_job(served_clip: Path, memes: Path, tmp_path: Path) -> None:
    with service(served_clip, tmp_path, ALL) as (client, jobs):
        job = send(client, [as_json(one) for one in queries(memes)[:3]], "?cases=true").json()
        finished(client, job["id"])
        assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
        found = stored(jobs.cases)
        pictures = {one.id: one.path.read_bytes() for one in queries(memes)[:3]}
        assert {case.meme_id: Path(case.picture).read_bytes() for case in found} == pictures


def test_what_cannot_make_cases_is_refused(served_clip: Path, memes: Path, tmp_path: Path) -> None:
    sent = [as_json(one) for one in queries(memes)[:2]]
    with service(served_clip, tmp_path, None) as (client, _):
        answer = send(client, sent, "?cases=true")
        assert (answer.status_code, answer.json()["code"]) == (404, "no_cases")
        assert client.get("/v1/jobs").json()["jobs"] == []
    with service(served_clip, tmp_path, CasePolicy()) as (client, jobs):
        answer = send(client, sent, "?cases=true")
        (problem,) = answer.json()["problems"]
        assert (answer.status_code, problem["parameter"]) == (422, "cases")
        assert "chooses no verdict" in problem["what"]
        jobs.cases.draw = PolicyDraw(ALL)
        cases, jobs.cases = jobs.cases, None  # as a replica that was started without them
        state = finished(client, send(client, sent, "?cases=true").json()["id"])
        assert (state["status"], "start it with --cases" in state["error"]) == ("failed", True)
        jobs.cases = cases


def test_a_job_waits_for_the_database_of_its_cases(
    served_clip: Path, memes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_runner, "_PAUSE_SECONDS", 0.05)
    with service(served_clip, tmp_path, ALL) as (client, jobs):
        add, calls = jobs.cases.store.add, []

        def away(*given: Any) -> Any:
            calls.append(given)
            if len(calls) < 3:
                raise NoConnection("the database is away")
            return add(*given)

        monkeypatch.setattr(jobs.cases.store, "add", away)
        state = finished(client, send(client, [as_json(one) for one in queries(memes)[:4]], "?cases=true").json()["id"])
        assert (state["status"], state["judged"], len(calls)) == ("done", 4, 3)
        assert len(stored(jobs.cases)) == 4


def test_a_chunk_that_is_judged_again_makes_no_second_case(served_clip: Path, memes: Path, tmp_path: Path) -> None:
    with service(served_clip, tmp_path, CasePolicy(audit_rate=0.5)) as (_, jobs):
        asked = queries(memes)[:10]
        rows = [BatchRow(f"row {number}", one.id, one) for number, one in enumerate(asked)]
        verdicts = jobs.service.detector.judge([jobs.service.detector.prepare(one) for one in asked])

        def judge(job: str) -> int:
            """Show a chunk to the policy, its first row without a verdict; returns the number of all cases."""
            shown = JobCases(Job(tmp_path / job), None, jobs.cases)
            list(shown.read(iter([MemeChunk(0, rows)])))
            answers = [{"version": {"bank": {}}} for _ in verdicts[1:]]
            shown.note(verdicts[1:], answers)
            shown.add(0, [{"reject": {}}, *({"answer": one} for one in answers)])
            return len(stored(jobs.cases))

        first = judge("one")
        drawn = {case.meme_id for case in stored(jobs.cases)}
        assert 0 < first < 9
        assert asked[0].id not in drawn
        assert {case.why for case in stored(jobs.cases)} == {"audit"}
        assert judge("one") == first
        counts = [judge(f"other-{number}") for number in range(4)]
        assert counts[-1] > first, "the audit draws again among the memes of another job"
