"""What other people said about a case, as far as a person may see it."""

from dataclasses import dataclass

from ra_hmd.cases.history import CaseHistory, history_of, shown_opinions
from ra_hmd.cases.tables import Note, Opinion
from ra_hmd.desk.desk import Desk
from ra_hmd.desk.texts import Texts
from ra_hmd.desk.verdict_view import VerdictWords


@dataclass(frozen=True)
class OpinionView:
    """An opinion in words; `label`, `tone` and `icon` are empty where the case was passed to a colleague."""

    opinion: Opinion
    label: str
    tone: str
    icon: str


@dataclass(frozen=True)
class OthersView:
    """What others said about a case.

    Attributes:
        sentence: What is asked of the person.
        opinions: The opinions that the person may see, oldest first.
        notes: Remarks.
        appeal: Who appealed against the earlier decision, and why; empty: nobody.
    """

    sentence: str
    opinions: list[OpinionView]
    notes: list[Note]
    appeal: str


def others_view(desk: Desk, case_id: str, person: str, words: VerdictWords) -> OthersView | None:
    """What others said about a case; None where nobody said anything and one opinion is enough."""
    history = history_of(desk.cases.store.database, case_id)
    return None if history is None else view_of(history, person, words)


def view_of(history: CaseHistory, person: str, words: VerdictWords) -> OthersView | None:
    """The view of a history; see `others_view`."""
    case, text = history.case, words.text
    opinions = [_opinion(one, words) for one in shown_opinions(case, history.opinions, person)]
    if not opinions and not history.notes and case.opinions_needed == 1 and case.round == 1:
        return None
    appeals = [one for one in history.events if one.kind == "appealed"]
    appeal = ""
    if appeals:
        appeal = text("{person} appealed: {why}", person=appeals[-1].person, why=appeals[-1].details.get("reason", ""))
    return OthersView(_sentence(history, text), opinions, history.notes, appeal)


def _opinion(opinion: Opinion, words: VerdictWords) -> OpinionView:
    if opinion.action == "escalate":
        return OpinionView(opinion, "", "", "")
    return OpinionView(opinion, words.label(opinion.label), words.tone(opinion.label), words.icon(opinion.label))


def _sentence(history: CaseHistory, text: Texts) -> str:
    case = history.case
    if case.state == "conflict":
        return text("People disagree, and {count} must come to the same label.", count=case.opinions_needed)
    if case.state == "escalated":
        return text("A colleague asks for your opinion.")
    if case.opinions_needed > 1 and case.state == "waiting":
        return text("{count} people must agree; what others said is hidden until you have decided.",
                    count=case.opinions_needed)  # fmt: skip
    return ""
