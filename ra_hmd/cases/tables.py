"""Tables of the case database.

cases ──< opinions          what people decided, undone ones included
  │  ──< claims             who has a case on the screen
  │  ──< skips              who passed a case on
  │  ──< notes
events                      the audit log: append only
people, saved_views         settings of each person
deliveries                  webhooks that are still to be sent
alerts                      alerts that are raised
"""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, ForeignKey, Index, Text, TypeDecorator, UniqueConstraint, text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UTCDateTime(TypeDecorator[datetime]):
    """A time in UTC; SQLite keeps no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.astimezone(UTC).replace(tzinfo=None if dialect.name == "sqlite" else UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base class of the tables."""

    type_annotation_map = {datetime: UTCDateTime, dict[str, Any]: JSON, list[str]: JSON, str: Text}  # noqa: RUF012


def label_text(label: Any) -> str | None:
    """A label as the database keeps it; None for none."""
    return None if label is None else json.dumps(label)


class Case(Base):
    """A meme that waits for a person, or was decided.

    Attributes:
        id: Sorts by time of intake.
        meme_id: Id of the meme, as the source named it.
        queue: Name of the queue.
        source: Where the meme comes from.
        request_key: Key under which a program sent it; a second request with that key adds nothing.
        state: See `ra_hmd.cases.outcome`.
        open: Whether somebody has to look at it: it is not decided.
        round: 1, and one more with each appeal.
        why: Why a person looks at it: `requested`, `file`, or the policy that chose it.
        audited: Whether it was chosen at random, whatever the verdict.
        priority: Larger is sooner.
        order: Place among cases of equal priority; smaller is sooner.
        opinions_needed: Number of people who must agree.
        assigned: Who is to decide; empty: whoever comes first.
        picture: Path of the image, or name of the kept upload.
        picture_digest: Digest of the file's bytes.
        picture_hash: Perceptual hash of 64 bits in hexadecimal; empty without one.
        caption: Caption of the meme.
        context: Text around the meme, for the reviewer.
        callback: URL to which the decision is posted; empty: none.
        verdict: Verdict as the API states it, with the versions of model and bank.
        judged: The label of the verdict as JSON; None where there is none. Lists and figures look at it, as the verdict
            itself is long.
        corrected: Whether the decided label is another one than that of the verdict; None where one of them is missing.
        similarity: Similarity of the nearest row of the bank, where there is one.
        label: Decided label, where the case is decided.
        created: Time of the intake.
        changed: Time of the last change of its state.
    """

    __tablename__ = "cases"
    id: Mapped[str] = mapped_column(primary_key=True)
    meme_id: Mapped[str]
    queue: Mapped[str]
    source: Mapped[str]
    request_key: Mapped[str | None] = mapped_column(unique=True)
    state: Mapped[str]
    open: Mapped[bool] = mapped_column(default=True)
    round: Mapped[int] = mapped_column(default=1)
    why: Mapped[str]
    audited: Mapped[bool] = mapped_column(default=False)
    priority: Mapped[int] = mapped_column(default=0)
    order: Mapped[float] = mapped_column("place", default=0.0)
    opinions_needed: Mapped[int] = mapped_column(default=1)
    assigned: Mapped[str] = mapped_column(default="")
    picture: Mapped[str]
    picture_digest: Mapped[str]
    picture_hash: Mapped[str] = mapped_column(default="", index=True)
    caption: Mapped[str] = mapped_column(default="")
    context: Mapped[str] = mapped_column(default="")
    callback: Mapped[str] = mapped_column(default="")
    verdict: Mapped[dict[str, Any]] = mapped_column(default=dict)
    judged: Mapped[str | None]
    corrected: Mapped[bool | None]
    similarity: Mapped[float | None]
    label: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    created: Mapped[datetime]
    changed: Mapped[datetime]
    __table_args__ = (
        Index("cases_in_order", "open", text("priority DESC"), "place", "id"),
        Index("cases_by_age", "open", "id"),
        Index("cases_by_similarity", "open", "similarity", "id"),
        Index("cases_by_queue", "open", "queue", "state", "created"),
        Index("cases_by_source", "open", "source"),
        Index("cases_by_meme", "meme_id"),
        Index("cases_by_time", "state", "changed"),
        Index("cases_by_hash", "open", "id", "picture_hash"),
        Index("cases_judged", "id", "judged"),
        # All that the team page looks at, so that it need not read the cases themselves.
        Index("cases_by_intake", "created", "audited", "source", "open", "judged", "corrected", "similarity"),
    )


class Opinion(Base):
    """What a person decided on a case.

    Attributes:
        id: Number, in order of time.
        case_id: The case.
        round: Round of the case.
        person: Who decided.
        action: `agree`, `label` or `escalate`.
        label: Label that the person gave; None for `escalate`.
        reason: Reason that the person chose or wrote.
        colleague: With `escalate`, the colleague who is asked; empty: any.
        time: When.
        state: `standing`, `writing` (its change of the bank is being made) or `undone`.
        change: Rows of the bank that it changed, with their labels before, and the version; empty: none.
        batch: Opinions of one bulk decision share it.
        undoing: Since when it is being taken back: its change of the bank is made undone; None: it is not.
        undone_by: Who took it back, or is doing so.
        undone_why: Why.
    """

    __tablename__ = "opinions"
    id: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id"))
    round: Mapped[int]
    person: Mapped[str]
    action: Mapped[str]
    label: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    reason: Mapped[str] = mapped_column(default="")
    colleague: Mapped[str] = mapped_column(default="")
    time: Mapped[datetime]
    state: Mapped[str]
    change: Mapped[dict[str, Any]] = mapped_column(default=dict)
    batch: Mapped[str] = mapped_column(default="")
    undoing: Mapped[datetime | None] = mapped_column(index=True)
    undone_by: Mapped[str] = mapped_column(default="")
    undone_why: Mapped[str] = mapped_column(default="")
    __table_args__ = (
        Index("opinions_by_person_on_case", "case_id", "person", "state"),
        Index("opinions_on_case", "case_id", "state"),
        Index("opinions_by_person", "person", "state", "id"),
        Index("opinions_by_state", "state", "time"),
    )


class Claim(Base):
    """A case that a person has on the screen; nobody else gets it before `until`."""

    __tablename__ = "claims"
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id"), primary_key=True)
    person: Mapped[str] = mapped_column(index=True)
    until: Mapped[datetime]


class Skip(Base):
    """A case that a person does not get again in this round."""

    __tablename__ = "skips"
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id"), primary_key=True)
    person: Mapped[str] = mapped_column(primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)


class Note(Base):
    """A remark of a person on a case, for colleagues."""

    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id"), index=True)
    person: Mapped[str]
    text: Mapped[str]
    time: Mapped[datetime]


class Event(Base):
    """A line of the audit log. Lines are never changed or removed."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[datetime]
    person: Mapped[str] = mapped_column(index=True)
    kind: Mapped[str]
    case_id: Mapped[str | None] = mapped_column(index=True)
    row: Mapped[str | None] = mapped_column(index=True)
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Person(Base):
    """Settings of a person."""

    __tablename__ = "people"
    name: Mapped[str] = mapped_column(primary_key=True)
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict)


class LoginSession(Base):
    """Somebody who is logged in.

    Attributes:
        token: SHA-256 of the token that the browser holds.
        person: Name.
        key: SHA-256 of the key that was used: the session ends when that key is removed.
        until: When it ends.
    """

    __tablename__ = "sessions"
    token: Mapped[str] = mapped_column(primary_key=True)
    person: Mapped[str]
    key: Mapped[str]
    until: Mapped[datetime]


class SavedView(Base):
    """Filters and order of a list, under a name."""

    __tablename__ = "saved_views"
    id: Mapped[int] = mapped_column(primary_key=True)
    person: Mapped[str]
    name: Mapped[str]
    query: Mapped[dict[str, Any]]
    __table_args__ = (UniqueConstraint("person", "name"),)


class Delivery(Base):
    """A webhook that is to be sent.

    Attributes:
        id: Number.
        url: Where.
        body: JSON text, as it is signed.
        attempts: Number of attempts that failed.
        due: When to try next.
        state: `waiting`, `sent` or `failed`.
        answer: Status or error of the last attempt.
    """

    __tablename__ = "deliveries"
    id: Mapped[int] = mapped_column(primary_key=True)
    url: Mapped[str]
    body: Mapped[str]
    attempts: Mapped[int] = mapped_column(default=0)
    due: Mapped[datetime]
    state: Mapped[str] = mapped_column(index=True, default="waiting")
    answer: Mapped[str] = mapped_column(default="")

    @classmethod
    def of(cls, url: str, body: dict[str, Any], due: datetime) -> "Delivery":
        """A delivery of a JSON body."""
        return cls(url=url, body=json.dumps(body, ensure_ascii=False, sort_keys=True), due=due)


class Alert(Base):
    """An alert that is raised: the limit of its rule was crossed `since` then. There is no row of any other rule."""

    __tablename__ = "alerts"
    rule: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[datetime]
