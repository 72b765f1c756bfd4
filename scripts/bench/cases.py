"""How the pages of the desk and its database grow with the cases.

Each size is a database of so many open cases and as many decided ones, of the last thirty days. Every line is the
median of what one request reads or writes in it, without the model and the making of HTML; the growth is the factor
per ten times the cases: 10 is linear, 1 does not grow.

    python scripts/bench/cases.py [--rows 10000 100000] [--repeats 5] [--clock cpu_seconds]
"""

import argparse
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from growth import growth
from sqlalchemy import insert

from ra_hmd.cases.alert_rules import AlertRules
from ra_hmd.cases.database import Database
from ra_hmd.cases.export import AuditFilter, audit_lines
from ra_hmd.cases.filters import CaseFilter
from ra_hmd.cases.history import claimed_by, history_of, list_cases
from ra_hmd.cases.near import count_near, near_copies
from ra_hmd.cases.outcome import OPEN
from ra_hmd.cases.store import CaseStore, Decision
from ra_hmd.cases.tables import Case, Event, Opinion
from ra_hmd.cases.undoing import begin_undo, finish_undo
from ra_hmd.cases.views import queues_of, sources_of
from ra_hmd.core.problem import Problem
from ra_hmd.desk.class_names import ClassNames
from ra_hmd.desk.team_routes import team_values
from ra_hmd.desk.texts import Texts
from ra_hmd.desk.verdict_view import VerdictWords

CLOCKS = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
PEOPLE = [f"reviewer{number}" for number in range(20)]
DAYS = 30
NEIGHBOURS = [{"id": f"row {number}", "similarity": 0.9, "label": 1, "note": ""} for number in range(20)]
SOURCES = [f"forum {number}" for number in range(12)]


def fill(database: Database, rows: int) -> None:
    """Put so many open cases into a database, and as many decided ones with their opinions and lines of the log."""
    chance, end = random.Random(0), datetime.now(UTC)
    cases: list[dict[str, Any]] = []
    opinions: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    for number in range(2 * rows):
        is_open, verdict = number % 2 == 0, int(chance.random() < 0.3)
        created = end - timedelta(days=DAYS) * (1 - number / (2 * rows))
        case = {
            "id": f"{number:016x}", "meme_id": f"meme-{number}", "queue": f"queue {number % 3}",
            "source": chance.choice(SOURCES), "state": "waiting" if is_open else "decided", "open": is_open,
            "why": "requested", "audited": number % 50 == 0, "priority": number % 2, "order": chance.random(),
            "picture": "p.png", "picture_digest": "d", "picture_hash": f"{chance.getrandbits(64):016x}",
            "caption": f"A train that is {number} minutes late", "similarity": chance.random(),
            "judged": str(verdict), "corrected": None if is_open else False,
            "verdict": {"verdict": verdict, "neighbours": NEIGHBOURS},
            "label": None if is_open else verdict, "created": created, "changed": created,
        }  # fmt: skip
        cases.append(case)
        events.append({"time": created, "person": "program", "kind": "case added", "case_id": case["id"]})
        if not is_open:
            person = chance.choice(PEOPLE)
            opinions.append({"case_id": case["id"], "round": 1, "person": person, "action": "agree", "label": verdict,
                             "time": created, "state": "standing"})  # fmt: skip
            events.append({"time": created, "person": person, "kind": "decided", "case_id": case["id"]})
    with database.write() as session:
        for table, values in ((Case, cases), (Opinion, opinions), (Event, events)):
            for start in range(0, len(values), 1000):
                session.execute(insert(table), values[start : start + 1000])


def calls(database: Database, rows: int) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    store, opened = CaseStore(database), CaseFilter(states=OPEN)
    words = VerdictWords(ClassNames(Problem()), Texts("en"))
    desk: Any = SimpleNamespace(cases=SimpleNamespace(store=store, draw=None, settings=AlertRules()), names=words.names)
    decided = itertools.count(1, 2)

    def page(number: int, wanted: CaseFilter = opened) -> Callable[[], object]:
        def read() -> None:
            cases, _ = list_cases(database, wanted, limit=50, offset=50 * (number - 1))
            count_near(database, cases)
            claimed_by(database, [case.id for case in cases])
            queues_of(database)
            sources_of(database)

        return read

    def decide() -> None:
        case = store.next("ana", opened)
        assert case is not None
        store.finish(store.begin(case.id, "ana", Decision("agree", 1)).id)
        store.next("ana", opened)

    def undo() -> None:
        (opinion, _), *_ = store.opinions_of("ana", 1)
        begin_undo(database, [opinion.id], "ana", "")
        finish_undo(database, opinion.id)

    return {
        "list, first page": page(1),
        "list, middle page": page(rows // 100),
        "list, last page": page(rows // 50),
        "list, newest of all": page(1, CaseFilter(order="newest")),
        "list, decided, middle page": page(rows // 100, CaseFilter(states=("decided",), order="newest")),
        "list, words": page(1, CaseFilter(states=OPEN, words="77 minutes")),
        "team, 14 days": lambda: team_values(desk, words, 14),
        "team, 90 days": lambda: team_values(desk, words, 90),
        "log, first 1,000 lines": lambda: list(itertools.islice(audit_lines(database, AuditFilter()), 1000)),
        "log, whole": lambda: sum(1 for _ in audit_lines(database, AuditFilter())),
        "page of a case": lambda: history_of(database, f"{next(decided):016x}"),
        "near copies": lambda: near_copies(database, store.get(f"{0:016x}")),
        "next case and count": lambda: (store.next("ben", opened), store.waiting("ben", opened)),
        "decision and next case": decide,
        "undoing": undo,
    }


def measured(call: Callable[[], object], clock: Callable[[], float], repeats: int) -> float:
    """Median of the seconds of a call."""
    seconds = []
    for _ in range(repeats):
        began = clock()
        call()
        seconds.append(clock() - began)
    return statistics.median(seconds)


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000], help="open cases")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="seconds", help="cpu_seconds: on a shared machine")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    table: dict[str, dict[int, dict[str, float] | None]] = {}
    for rows in sorted(options.rows):
        with tempfile.TemporaryDirectory() as folder:
            database = Database(Path(folder) / "cases.sqlite")
            fill(database, rows)
            for name, call in calls(database, rows).items():
                results = table.setdefault(name, {})
                results[rows] = {options.clock: measured(call, CLOCKS[options.clock], options.repeats)}
                factor = growth(results, rows, options.clock, 10)
                print(f"{name:28}{rows:10,}{results[rows][options.clock]:10.4f} s{factor:>8}", flush=True)
            database.close()
    if options.output is not None:
        options.output.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
