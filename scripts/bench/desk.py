"""The moderators' desk under load: how soon the next case is there after a decision, and whether cases get lost.

Three measurements on a server in a process of its own, with a head on a tiny CLIP and synthetic memes:

1. One reviewer decides again and again over HTTP while 10,000 cases wait. Timed is what a person waits for: from the
   decision to the next case and its picture. One in five decisions changes the bank.
2. The same in a browser (Playwright and Chromium, left out where they are missing), by agreeing: from the press of the
   button until the next picture is decoded.
3. Programs send 1,000 cases a minute while 20 reviewers decide, each with a pause to think; then every case that a
   program sent, and every decision that a reviewer was told of, is looked for in the database.

    taskset -c 0,1 python scripts/bench/desk.py [--waiting 10000] [--decisions 300] [--seconds 60] [--output R.json]
"""

import argparse
import base64
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from replicas import build, ra_hmd, summary
from sqlalchemy import func, select

from ra_hmd.cases.database import Database
from ra_hmd.cases.store import CaseStore, NewCase
from ra_hmd.cases.tables import Case, Opinion
from ra_hmd.data.images import file_digest
from ra_hmd.data.meme_files import read_memes

FRAGMENT = {"X-Desk-Fragment": "1", "Sec-Fetch-Site": "same-origin"}
PROGRAMS = 4
RELABELLED = 0.2
"""Share of the decisions that contradict the verdict, and so change the bank."""


@dataclass
class Reviewer:
    """Somebody at the desk: decides on the case on the screen, and gets the next one.

    Attributes:
        client: Logged in.
        case: Case on the screen; empty where none is left.
        agrees: Label of the verdict.
        seconds: From each decision to the next case with its picture.
        decided: The cases that the server said were decided.
    """

    client: httpx.Client
    random: random.Random
    case: str = ""
    agrees: str = ""
    seconds: list[float] = field(default_factory=list)
    decided: list[str] = field(default_factory=list)

    @classmethod
    def log_in(cls, address: str, name: str, key: str) -> "Reviewer":
        """Open the review page."""
        client = httpx.Client(base_url=address, headers=FRAGMENT, timeout=120)
        client.post("/console/login", data={"name": name, "key": key})
        reviewer = cls(client, random.Random(name))
        reviewer._look(client.get("/console/review"))
        return reviewer

    def decide(self) -> None:
        """Decide on the case on the screen, and wait for the next one."""
        differs = self.random.random() < RELABELLED
        label = {"0": "1", "1": "0"}[self.agrees] if differs else self.agrees
        form = {"label": label, "reason": "The verdict is wrong" if differs else ""}
        case, began = self.case, time.perf_counter()
        answer = self.client.post(f"/console/cases/{case}/decide", data=form)
        self._look(answer)
        if self.case:
            self.client.get(f"/console/cases/{self.case}/picture?size=small").raise_for_status()
        self.seconds.append(time.perf_counter() - began)
        if 'class="problem"' in answer.text:
            raise RuntimeError(re.findall(r'class="problem">([^<]*)', answer.text)[0])
        self.decided.append(case)

    def _look(self, page: httpx.Response) -> None:
        page.raise_for_status()
        (self.case,) = re.findall(r'data-case="(\w*)"', page.text)
        (self.agrees,) = re.findall(r'data-label="(\w*)"', page.text)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server over the folder of `build`; it is ended at the end."""
    words = ["console", folder / "head", "--bank", folder / "bank", "--keys", folder / "keys.json", "--cases",
             folder / "cases.sqlite", "--memes", folder / "data" / "a" / "train.jsonl", "--port", "0"]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "ra_hmd", *map(str, words)], stdout=subprocess.PIPE,
                                   stderr=log, text=True)  # fmt: skip
        try:
            yield next(line.strip() for line in process.stdout or () if "://" in line).removesuffix("/console")
        finally:
            process.terminate()
            process.wait(60)


def fill(folder: Path, number: int) -> None:
    """Put cases into the database: the memes of the development split again and again, with their present verdicts."""
    from ra_hmd.inference.detector import Detector
    from ra_hmd.serve.batching import BatchingService, wait_for_all

    memes = list(read_memes(folder / "data" / "a" / "dev.jsonl"))
    with BatchingService(Detector.from_run(folder / "head", folder / "bank")) as service:
        verdicts = [one.to_dict() for one in wait_for_all(service.submit(memes), 120)]
    chance = random.Random(0)
    models = [
        NewCase(meme.id, str(meme.image), file_digest(meme.path), meme.text or "", source="bench", verdict=verdict)
        for meme, verdict in zip(memes, verdicts, strict=True)
    ]
    database = Database(folder / "cases.sqlite")
    store = CaseStore(database)
    for start in range(0, number, 1000):
        part = range(start, min(start + 1000, number))
        store.add([replace(models[one % len(models)], meme_id=f"waiting-{one}", order=chance.random()) for one in part])
    database.close()


def decide_among_many(address: str, key: str, decisions: int) -> dict[str, Any]:
    """Figures of one reviewer who does not pause."""
    reviewer = Reviewer.log_in(address, "reviewer0", key)
    for _ in range(decisions):
        reviewer.decide()
    return {"decisions": decisions, "decision_to_next_case": summary(reviewer.seconds)}


_PRESS = """async () => {
  const shown = () => document.getElementById("case").dataset.case, before = shown(), began = performance.now();
  document.querySelector("[data-agrees=true]").click();
  while (shown() === before) await new Promise(requestAnimationFrame);
  await document.querySelector(".meme img").decode();
  return (performance.now() - began) / 1000;
}"""


def decide_in_browser(address: str, name: str, key: str, decisions: int, program: str) -> dict[str, Any]:
    """Figures of one reviewer who agrees in a browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        return {}
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{address}/console/login")
        page.fill("[name=name]", name)
        page.fill("[name=key]", key)
        page.press("[name=key]", "Enter")
        page.wait_for_selector("[data-agrees=true]")
        seconds = []
        for _ in range(decisions):
            seconds.append(page.evaluate(_PRESS))
            page.wait_for_timeout(500)  # a person looks at it; the effect of a correction is loaded meanwhile
        browser.close()
    return {"decision_to_next_picture_on_screen": summary(seconds)}


def main() -> None:
    """Build, fill, serve, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--decisions", type=int, default=300)
    parser.add_argument("--reviewers", type=int, default=20)
    parser.add_argument("--think", type=float, default=3.0, help="seconds that a reviewer looks at a case")
    parser.add_argument("--per-minute", type=int, default=1000, help="cases that programs send")
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the third measurement")
    parser.add_argument("--browser", default="/usr/bin/chromium", help="program of Chromium")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        build(folder)
        keys = {one: ra_hmd("serve-key", one, "--role", "moderator", "--keys", folder / "keys.json")
                for one in ["program", *(f"reviewer{number}" for number in range(options.reviewers))]}  # fmt: skip
        fill(folder, options.waiting)
        address = stack.enter_context(served(folder))
        result = {"waiting": options.waiting} | decide_among_many(address, keys["reviewer0"], options.decisions)
        if Path(options.browser).exists():
            result |= decide_in_browser(
                address, "reviewer0", keys["reviewer0"], options.decisions // 3, options.browser
            )
        result["busy"] = beside_intake(address, keys, folder, options)
    print(json.dumps(result, indent=2))
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


def beside_intake(address: str, keys: dict[str, str], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of reviewers and programs at once, and what was lost of what they were told."""
    memes = [{"image": base64.b64encode(meme.path.read_bytes()).decode(), "text": meme.text}
             for meme in read_memes(folder / "data" / "a" / "dev.jsonl")]  # fmt: skip
    reviewers = [Reviewer.log_in(address, name, key) for name, key in keys.items() if name != "program"]
    until, faults = time.monotonic() + options.seconds, []
    sent: list[str] = []
    intake: list[float] = []

    def review(reviewer: Reviewer) -> None:
        time.sleep(reviewer.random.random() * options.think)
        while time.monotonic() < until and reviewer.case:
            began = time.monotonic()
            reviewer.decide()
            time.sleep(max(0.0, options.think - (time.monotonic() - began)))

    def send(program: int) -> None:
        client = httpx.Client(base_url=address, headers={"X-API-Key": keys["program"]}, timeout=120)
        gap, number, due = 60 * PROGRAMS / options.per_minute, program, time.monotonic()
        while due < until:
            time.sleep(max(0.0, due - time.monotonic()))
            began = time.perf_counter()
            case = memes[number % len(memes)] | {"id": f"sent-{number}", "key": f"key-{number}"}
            answer = client.post("/v1/cases", json={"cases": [case]}).raise_for_status().json()
            sent.append(answer["results"][0]["case"])
            intake.append(time.perf_counter() - began)
            number, due = number + PROGRAMS, due + gap

    def guarded(call: Any, value: Any) -> None:
        try:
            call(value)
        except Exception as error:  # reported below: a figure of a broken run is none
            faults.append(repr(error))

    tasks = [(review, one) for one in reviewers] + [(send, number) for number in range(PROGRAMS)]
    threads = [threading.Thread(target=guarded, args=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        sys.exit(f"{len(faults)} failed, the first: {faults[0]}")
    seconds = [one for reviewer in reviewers for one in reviewer.seconds]
    return {
        "cases_sent_per_minute": round(60 * len(sent) / options.seconds),
        "intake": summary(intake),
        "decisions_per_minute": round(60 * len(seconds) / options.seconds),
        "decision_to_next_case": summary(seconds),
        **lost(folder, sent, [one for reviewer in reviewers for one in reviewer.decided]),
    }


def lost(folder: Path, sent: list[str], decided: list[str]) -> dict[str, int]:
    """What the database does not hold, or holds twice, of the cases sent and of the decisions."""
    database = Database(folder / "cases.sqlite")
    with database.read() as session:
        states = dict(session.execute(select(Case.id, Case.state)).tuples().all())
        counts = select(Opinion.case_id, func.count()).group_by(Opinion.case_id)
        standing = dict(session.execute(counts).tuples().all())
    database.close()
    return {
        "cases_lost": len(set(sent) - set(states)) + len(sent) - len(set(sent)),
        "decisions_lost": sum(states[one] != "decided" for one in decided),
        "decided_twice": sum(standing[one] != 1 for one in decided),
    }


if __name__ == "__main__":
    main()
