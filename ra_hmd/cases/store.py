"""The store of cases: intake, claims, opinions and what they come to. It knows no model and no bank.

    add ─► waiting ─► next (a claim) ─► begin ─► … the bank is changed … ─► finish ─► decided
                         └► skip           └► escalate, a second opinion, an appeal: waiting again

Each method is one transaction, so that processes and threads may share the database. `ra_hmd.cases.undoing` takes
opinions back.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from ra_hmd.cases.audit import log, log_rows
from ra_hmd.cases.database import Database
from ra_hmd.cases.filters import CaseFilter
from ra_hmd.cases.outcome import Action, outcome
from ra_hmd.cases.steps import (
    CaseConflict,
    check_free_for,
    claim,
    claim_alone,
    find_case,
    find_opinion,
    free_for,
    now,
    open_case,
    settle,
    standing_opinions,
)
from ra_hmd.cases.tables import Case, Claim, Note, Opinion, Skip, label_text

MANY = 500
"""More waiting cases than this are not counted for one person: it would take longer than to find the next one."""
SYSTEM = "ra-hmd"
"""Name in the audit log of what no person did."""


@dataclass(frozen=True)
class NewCase:
    """A meme for the store. Fields: see `ra_hmd.cases.tables.Case`."""

    meme_id: str
    picture: str
    picture_digest: str
    caption: str = ""
    queue: str = "main"
    source: str = ""
    request_key: str | None = None
    why: str = "requested"
    audited: bool = False
    priority: int = 0
    order: float = 0.0
    opinions_needed: int = 1
    picture_hash: str = ""
    context: str = ""
    callback: str = ""
    verdict: dict[str, Any] = field(default_factory=dict)
    similarity: float | None = None


@dataclass(frozen=True)
class Decision:
    """What a person decided.

    Attributes:
        action: `agree` with the verdict, `label` with another, or `escalate` to a colleague.
        label: Label, unless the case is escalated.
        reason: Reason that the person chose or wrote.
        batch: Opinions of one bulk decision share it.
        colleague: With `escalate`, the colleague who is asked; empty: any.
    """

    action: Action
    label: Any | None = None
    reason: str = ""
    batch: str = ""
    colleague: str = ""


class CaseStore:
    """Cases in a database.

    Args:
        database: The database.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    # ---------------------------------------------------------------------------------------------- intake

    def add(self, cases: Sequence[NewCase], person: str = SYSTEM) -> list[tuple[str, bool]]:
        """Add cases, and return for each its id, and whether it is new.

        A case whose `request_key` is known is the case of that key; nothing is added for it.
        """
        with self.database.write() as session:
            keys = [case.request_key for case in cases if case.request_key is not None]
            found = session.execute(select(Case.request_key, Case.id).where(Case.request_key.in_(keys)))
            known = {key: name for key, name in found.tuples() if key is not None}
            added: list[tuple[str, bool]] = []
            for case in cases:
                if case.request_key is not None and case.request_key in known:
                    added.append((known[case.request_key], False))
                    continue
                name = f"{time.time_ns():016x}{secrets.token_hex(4)}"  # sorts by time
                judged = label_text(case.verdict.get("verdict"))
                row = Case(id=name, state="waiting", judged=judged, created=now(), changed=now(), **vars(case))
                session.add(row)
                if case.request_key is not None:
                    known[case.request_key] = row.id
                log(session, person, "case added", row.id, queue=case.queue, source=case.source, why=case.why)
                added.append((row.id, True))
            return added

    def next(self, person: str, wanted: CaseFilter, *, after: str | None = None) -> Case | None:
        """The case that a person has claimed, or else the first free one, which is claimed for that person.

        Args:
            person: The person.
            wanted: Which cases, and in what order.
            after: A case that is put back, so that another one comes: it is passed over this once.
        """
        with self.database.write(lasting=False) as session:
            if after is not None:
                session.execute(delete(Claim).where(Claim.person == person, Claim.case_id == after))
            mine = select(Case).join(Claim).where(Claim.person == person, Claim.until > now(), Case.open)
            case = session.scalars(wanted.apply(mine).limit(1)).first()
            if case is None:
                case = self._claim_free(session, person, wanted, after)
            if case is not None:
                claim(session, case, person)
            return case

    def _claim_free(self, session: Session, person: str, wanted: CaseFilter, after: str | None) -> Case | None:
        free = free_for(person).where(Case.id != (after or ""))
        statement = wanted.apply(free).limit(1).with_for_update(skip_locked=True, of=Case)
        case = session.scalars(statement).first()
        if case is None and after is not None:
            case = session.scalars(wanted.apply(free_for(person)).limit(1)).first()
        return case

    def waiting(self, person: str, wanted: CaseFilter, most: int = MANY) -> int:
        """Number of cases that a person may decide on, counted up to `most`."""
        with self.database.read() as session:
            found = wanted.apply(free_for(person), ordered=False).with_only_columns(Case.id).limit(most)
            return session.scalar(select(func.count()).select_from(found.subquery())) or 0

    def take(self, case_id: str, person: str) -> Case:
        """Claim an open case for a person, instead of those that they have claimed.

        Raises:
            NoSuchCase, CaseConflict: See `begin`.
        """
        with self.database.write() as session:
            case = open_case(session, case_id)
            check_free_for(session, case, person)
            claim_alone(session, case, person)
            return case

    def release(self, person: str, case_id: str | None = None) -> None:
        """Give back the claims of a person, or one of them."""
        with self.database.write(lasting=False) as session:
            claims = delete(Claim).where(Claim.person == person)
            session.execute(claims if case_id is None else claims.where(Claim.case_id == case_id))

    def skip(self, case_id: str, person: str) -> None:
        """Leave a case to others; the person does not get it again, unless by name."""
        with self.database.write() as session:
            case = open_case(session, case_id)
            case.assigned = "" if case.assigned == person else case.assigned
            session.merge(Skip(case_id=case_id, person=person, round=case.round))
            session.execute(delete(Claim).where(Claim.case_id == case_id, Claim.person == person))
            log(session, person, "skipped", case_id)

    # ---------------------------------------------------------------------------------------------- decisions

    def begin(self, case_id: str, person: str, decision: Decision) -> Opinion:
        """Record an opinion whose change of the bank, if it has one, is still to be made; `finish` it then.

        Raises:
            NoSuchCase: There is no such case.
            CaseConflict: It is decided, somebody else has claimed it, or the person has an opinion on it already.
        """
        with self.database.write(lasting=False) as session:  # `plan` and `finish` last, and it with them
            case = open_case(session, case_id)
            check_free_for(session, case, person)
            opinion = Opinion(case_id=case_id, round=case.round, person=person, time=now(), state="writing",
                              **vars(decision))  # fmt: skip
            session.add(opinion)
            session.execute(delete(Claim).where(Claim.case_id == case_id))
            session.flush()
            return opinion

    def decides(self, opinion_id: int) -> Any | None:
        """The label that a case gets once an opinion is finished; None where others must be heard first."""
        with self.database.read() as session:
            opinion = find_opinion(session, opinion_id)
            case = session.get_one(Case, opinion.case_id)
            return outcome(standing_opinions(session, case), case.opinions_needed).label

    def plan(self, opinion_id: int, change: Mapping[str, Any]) -> None:
        """Record what an opinion is about to change in the bank, so that it can be completed after a kill."""
        with self.database.write() as session:
            opinion = find_opinion(session, opinion_id)
            opinion.change = dict(change)

    def finish(self, opinion_id: int, change: Mapping[str, Any] | None = None) -> Case:
        """Complete an opinion, after its change of the bank is made; the case follows.

        Args:
            opinion_id: The opinion. Finishing it twice is finishing it once.
            change: What was changed in the bank: `version`, and `rows`, each with its label before.
        """
        with self.database.write() as session:
            opinion = find_opinion(session, opinion_id)
            case = session.get_one(Case, opinion.case_id)
            if opinion.state != "writing":
                return case
            opinion.state, opinion.change = "standing", dict(change or {})
            case.assigned = opinion.colleague
            said = {"action": opinion.action, "label": opinion.label, "reason": opinion.reason, **opinion.change}
            log(session, opinion.person, "decided", case.id, opinion=opinion.id, round=case.round, **said)
            log_rows(session, opinion)
            settle(session, case)
            return case

    def abandon(self, opinion_id: int) -> None:
        """Take back an opinion whose change of the bank was refused, as if it had not been given."""
        with self.database.write() as session:
            session.execute(delete(Opinion).where(Opinion.id == opinion_id, Opinion.state == "writing"))

    def unfinished(self, seconds: float = 0.0) -> list[Opinion]:
        """Opinions that were begun at least so many seconds ago and not finished, as after a process was killed."""
        with self.database.read() as session:
            before = now() - timedelta(seconds=seconds)
            found = select(Opinion).where(Opinion.state == "writing", Opinion.time <= before).order_by(Opinion.id)
            return list(session.scalars(found))

    def opinions_of(self, person: str, limit: int = 20) -> list[tuple[Opinion, Case]]:
        """The last opinions of a person that stand, newest first, with their cases."""
        with self.database.read() as session:
            found = (select(Opinion, Case).join(Case).where(Opinion.person == person, Opinion.state == "standing")
                     .order_by(Opinion.id.desc()).limit(limit))  # fmt: skip
            return [(opinion, case) for opinion, case in session.execute(found)]

    def appeal(self, case_id: str, person: str, why: str, *, priority: int | None = None) -> Case:
        """Reopen a decided case: it waits for people who have not decided on it before.

        Raises:
            NoSuchCase, CaseConflict: There is no such case; it is not decided, its decision is just
                being taken back, or its picture was removed.
        """
        with self.database.write() as session:
            case = find_case(session, case_id)
            if case.state != "decided":
                raise CaseConflict(f"Case {case_id} is not decided, so there is nothing to appeal.")
            if session.scalars(
                select(Opinion.id).where(Opinion.case_id == case_id, Opinion.undoing.is_not(None))
            ).first():
                raise CaseConflict("This decision is being taken back; try again in a moment.")
            if not case.picture:
                raise CaseConflict("Picture and words of this case were removed; send the meme as a new case.")
            case.round, case.why = case.round + 1, "appeal"
            case.priority = case.priority if priority is None else priority
            log(session, person, "appealed", case_id, reason=why, round=case.round)
            settle(session, case)  # the new round has no opinion yet
            return case

    def note(self, case_id: str, person: str, text: str) -> None:
        """Add a remark for colleagues. Raises `NoSuchCase`."""
        with self.database.write() as session:
            find_case(session, case_id)
            session.add(Note(case_id=case_id, person=person, text=text, time=now()))
            log(session, person, "noted", case_id)

    def get(self, case_id: str) -> Case:
        """A case. Raises `NoSuchCase`."""
        with self.database.read() as session:
            return find_case(session, case_id)
