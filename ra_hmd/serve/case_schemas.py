"""Request and response models of the routes of cases and of the audit log; see `ra_hmd.serve.schemas`."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationError

from ra_hmd.cases.history import CaseHistory
from ra_hmd.cases.outcome import Action, State
from ra_hmd.cases.tables import Case, Event, Note, Opinion
from ra_hmd.serve.schemas import (
    Caption,
    GivenLabel,
    JudgedMeme,
    Label,
    MemeId,
    NotJudged,
    Picture,
    Strict,
    Whole,
)

_NO_CONTROLS = r"^[^\x00-\x1f\x7f]*$"
_NO_ZERO = r"^[^\x00]*$"

Key = Annotated[str, Field(min_length=1, max_length=200, pattern=_NO_CONTROLS)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=_NO_CONTROLS)]
Text = Annotated[str, Field(max_length=2000, pattern=_NO_ZERO)]


class CaseFields(Strict):
    """What is sent with the picture of a case."""

    text: Caption = Field(None, description="Its caption; without it, it is read from the picture (extra `ocr`).")
    id: MemeId | None = Field(None, description="Name of the meme at its source, by default a new one.")
    key: Key | None = Field(
        None, description="Idempotency key: a meme that is sent again with it is the case that was made first."
    )
    queue: Name = Field("main", description="Name of the queue; a new one is made.")
    source: Annotated[str, Field(max_length=200, pattern=_NO_CONTROLS)] = Field(
        "", description="Where the meme comes from, for filters and figures."
    )
    context: Annotated[str, Field(max_length=4000, pattern=_NO_ZERO)] = Field(
        "", description="Text around the meme, which reviewers see."
    )
    callback: Annotated[str, Field(max_length=2000, pattern=_NO_CONTROLS)] = Field(
        "", description="URL to which the decision is posted; its host is one of `--webhook-host`."
    )
    priority: Whole = Field(0, ge=-1000, le=1000, description="Larger is sooner.")
    opinions_needed: Whole = Field(1, ge=1, le=9, description="Number of people who must agree.")


class CaseIn(CaseFields):
    """A meme for people to decide on."""

    image: Picture


class CasesRequest(Strict):
    """Memes for people to decide on."""

    cases: list[CaseIn] = Field(min_length=1)


class TakenCase(BaseModel):
    """A case, and the verdict at its intake."""

    case: str = Field(description="Id of the case.")
    new: bool = Field(description="false: a case of this idempotency key was there already, and nothing was added.")
    id: str = Field(description="Name of the meme at its source.")
    queue: str
    state: State
    result: JudgedMeme | None = Field(description="null: another release judged it, in a form that is not read here.")


class CasesAnswer(BaseModel):
    """A case for each meme, in their order."""

    results: list[TakenCase | NotJudged]


class CaseSummary(BaseModel):
    """A case."""

    case: str = Field(description="Id of the case; ids sort by the time of intake.")
    id: str = Field(description="Name of the meme at its source.")
    queue: str
    source: str
    state: State
    round: int = Field(description="1, and one more with each appeal.")
    why: str = Field(description="Why a person looks at it: requested, file, appeal, or what the policy found.")
    audited: bool = Field(description="Whether it was drawn at random, whatever the verdict.")
    priority: int
    opinions_needed: int
    caption: str
    context: str
    verdict: Label | None = Field(description="At its intake; null: left to a person.")
    similarity: float | None = Field(description="Of the nearest row of the bank.")
    label: Label | None = Field(description="What was decided; null: nothing yet.")
    created: datetime
    changed: datetime = Field(description="Time of the last change of its state.")

    @classmethod
    def of(cls, case: Case, **more: Any) -> Self:
        """A case of the store as clients see it."""
        own = {name: getattr(case, name) for name in CaseSummary.model_fields
               if name not in ("case", "id", "verdict")}  # fmt: skip
        return cls(case=case.id, id=case.meme_id, verdict=case.verdict.get("verdict"), **own, **more)


class CaseList(BaseModel):
    """A page of cases."""

    count: int = Field(description="Number of all cases that fit.")
    cases: list[CaseSummary]


class CaseOpinion(BaseModel):
    """What a person decided on a case."""

    number: int
    round: int
    person: str
    action: Action
    label: Label | None
    reason: str
    time: datetime
    state: str = Field(description="standing, undone, or writing: its change of the bank is being made.")
    rows: dict[str, Label | None] = Field(description="Rows of the bank that it changed, with their labels before.")
    bank_version: int | None = Field(description="The version that holds its change; null: it changed no row.")
    undone_by: str
    undone_why: str

    @classmethod
    def of(cls, opinion: Opinion) -> "CaseOpinion":
        """An opinion of the store as clients see it."""
        own = {name: getattr(opinion, name) for name in cls.model_fields if hasattr(opinion, name)}
        change = opinion.change
        return cls(number=opinion.id, rows=change.get("rows", {}), bank_version=change.get("version"), **own)


class CaseNote(BaseModel):
    """A remark of a person on a case."""

    person: str
    text: str
    time: datetime

    @classmethod
    def of(cls, note: Note) -> "CaseNote":
        """A note of the store as clients see it."""
        return cls(person=note.person, text=note.text, time=note.time)


class AuditLine(BaseModel):
    """A line of the audit log."""

    number: int
    time: datetime
    person: str
    kind: str
    row: str | None = Field(description="Row of the bank that was changed.")
    details: dict[str, Any]

    @classmethod
    def of(cls, event: Event) -> "AuditLine":
        """An event of the store as clients see it."""
        own = {name: getattr(event, name) for name in cls.model_fields if name != "number"}
        return cls(number=event.id, **own)


class CaseDetails(CaseSummary):
    """A case, and all that was said about it, oldest first."""

    result: JudgedMeme | None = Field(description="The verdict at its intake, as in the results of /v1/classify.")
    opinions: list[CaseOpinion]
    notes: list[CaseNote]
    events: list[AuditLine]

    @classmethod
    def of_history(cls, history: CaseHistory) -> "CaseDetails":
        """A case of the store with its history as clients see it."""
        return cls.of(
            history.case,
            result=judged(history.case.verdict),
            opinions=[CaseOpinion.of(one) for one in history.opinions],
            notes=[CaseNote.of(one) for one in history.notes],
            events=[AuditLine.of(one) for one in history.events],
        )


class AppealRequest(Strict):
    """Why a decided case is to be decided again."""

    reason: Annotated[str, Field(min_length=1, max_length=2000, pattern=_NO_ZERO)]
    priority: Whole | None = Field(None, ge=-1000, le=1000, description="Default: as before.")


class DecisionRequest(Strict):
    """What a person decided."""

    label: GivenLabel | None = Field(
        None, description="A class, of several classes a list of 0 and 1; null: the case is passed to a colleague."
    )
    reason: Text = Field("", description="Why; needed where the label is not the verdict.")


class UndoRequest(Strict):
    """Why a decision is taken back."""

    reason: Text = ""


def taken_case(case: Case, *, new: bool) -> TakenCase:
    """A case of the store as the answer to its intake."""
    own = {name: getattr(case, name) for name in ("queue", "state")}
    return TakenCase(case=case.id, new=new, id=case.meme_id, result=judged(case.verdict), **own)


def judged(verdict: dict[str, Any]) -> JudgedMeme | None:
    """A stored verdict as clients see it; None for one that does not have the fields of this release."""
    try:
        return JudgedMeme(**verdict)
    except ValidationError:
        return None
