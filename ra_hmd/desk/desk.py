"""What the pages of the desk show and do, without their HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ra_hmd.cases.assigning import assign
from ra_hmd.cases.filters import CaseFilter
from ra_hmd.cases.history import batch_of, captions_of
from ra_hmd.cases.steps import CaseConflict, NoSuchCase
from ra_hmd.cases.tables import Case, Opinion
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.desk.class_names import ClassNames
from ra_hmd.desk.people import User
from ra_hmd.desk.sessions import Sessions
from ra_hmd.inference.meme_lookup import MemeLookup
from ra_hmd.inference.types import Explain
from ra_hmd.serve.batching import wait_for_all
from ra_hmd.serve.case_service import CaseService, checked_words, threshold_probabilities
from ra_hmd.serve.limits import RequestLimits

REASONS = (
    "The verdict is wrong",
    "Picture and words together mean it",
    "Reclaimed, or quoted to criticise",
    "Depends on context outside the picture",
    "An earlier label was a mistake",
)


@dataclass
class Desk:
    """The desk of one service.

    Attributes:
        cases: The cases.
        names: Names of the classes.
        sessions: Who is logged in.
        lookup: Pictures and captions of the bank's memes.
        explain: Generates rationales; None where the model cannot.
        limits: Limits of uploads, and the seconds to wait for a verdict.
    """

    cases: CaseService
    names: ClassNames
    sessions: Sessions
    lookup: MemeLookup = field(default_factory=MemeLookup)
    explain: Explain | None = None
    limits: RequestLimits = field(default_factory=RequestLimits)

    @cached_property
    def thresholds(self) -> dict[str, list[float]]:
        """Head to its thresholds in probability; empty for a single-label task."""
        service = self.cases.service
        if self.names.problem.kind == "single_label":
            return {}
        scorer = service.detector.scorer
        heads = [head for head in ("lmh", "lrc", "rkc", "krr") if head not in ("rkc", "krr") or scorer.bank is not None]
        return {head: threshold_probabilities(service, head).tolist() for head in heads}  # type: ignore[arg-type]

    def next(self, user: User, wanted: CaseFilter, *, after: str | None = None) -> Case | None:
        """The next case of a person, claimed for them."""
        self.require_moderator(user)
        return self.cases.store.next(user.name, wanted, after=after)

    def decide(
        self, user: User, case_id: str, label: Any | None, reason: str = "", *, batch: str = "", colleague: str = ""
    ) -> Case:
        """Decide on a case; a label that is the verdict is an agreement, None passes the case to a colleague, or to the
        one that is named.

        Raises:
            UserError: See `CaseService.decision` and `CaseService.decide`.
        """
        self.require_moderator(user)
        if colleague:
            self._check_colleague(user, colleague)
        decision = self.cases.decision(case_id, label, reason, batch=batch, colleague=colleague)
        return self.cases.decide(case_id, user.name, decision)

    def skip(self, user: User, case_id: str) -> None:
        """Leave a case to others."""
        self.require_moderator(user)
        self.cases.store.skip(case_id, user.name)

    def note(self, user: User, case_id: str, words: str) -> None:
        """Add a remark for colleagues. Raises `UserError` for an empty one."""
        self.require_moderator(user)
        if not words.strip():
            raise UserError("The note is empty.")
        self.cases.store.note(case_id, user.name, checked_words(words))

    def label_of(self, values: Sequence[str]) -> Any:
        """The label that the values of a form stand for.

        Raises:
            UserError: There is none, or the task has no such class.
        """
        names = self.names.names
        numbers = [int(value) for value in values if value.isdecimal() and len(value) < 6]
        known = len(numbers) == len(values) and all(number < len(names) for number in numbers)
        if known and self.names.problem.kind == "multi_label":
            return [int(number in numbers) for number in range(len(names))]
        if not known or len(numbers) != 1:
            raise UserError(f"Choose one of the classes: {', '.join(names)}.")
        return numbers[0]

    def last(self, user: User) -> tuple[Opinion, Case] | None:
        """The last decision of a person that stands."""
        return next(iter(self.cases.store.opinions_of(user.name, 1)), None)

    def undo(self, user: User, opinion_id: int | None = None, why: str = "") -> Case:
        """Take back a decision of a person's own, by default the last one, of a bulk decision the whole.

        Raises:
            UserError: There is none; see `CaseService.undo`.
        """
        self.require_moderator(user)
        if opinion_id is not None:
            return self.cases.undo(opinion_id, user.name, why)
        last = self.last(user)
        if last is None:
            raise UserError("You have decided on nothing yet.")
        opinion, _ = last
        if opinion.batch:
            return self.undo_batch(user, opinion.batch, why)[-1]
        return self.cases.undo(opinion.id, user.name, why)

    def undo_batch(self, user: User, batch: str, why: str = "") -> list[Case]:
        """Take back what is left of a bulk decision of a person's own: all of it, or nothing.

        Raises:
            UserError: Nothing is left; see `CaseService.undo`.
        """
        self.require_moderator(user)
        opinions = batch_of(self.cases.store.database, user.name, batch)
        if not opinions:
            raise UserError("Nothing is left of this decision that you could take back.")
        return self.cases.undo_all([one.id for one in opinions], user.name, why)

    def take(self, user: User, case_id: str) -> Case:
        """Put a case on the screen of a person. Raises `UserError`, see `CaseStore.take`."""
        self.require_moderator(user)
        return self.cases.store.take(case_id, user.name)

    def appeal(self, user: User, case_id: str, why: str) -> Case:
        """Reopen a decided case. Raises `UserError` without a reason; see `CaseStore.appeal`."""
        self.require_moderator(user)
        if not why.strip():
            raise UserError("Say why you appeal. The log keeps it.")
        return self.cases.store.appeal(case_id, user.name, checked_words(why))

    def row_meme(self, name: str) -> Meme | None:
        """The meme of a row of the bank, where it is known: from `lookup`, or from the case that it was made of."""
        found = self.lookup.get(name)
        if found is not None:
            return found
        try:
            return self.cases.meme_of(self.cases.store.get(name))
        except NoSuchCase:
            return None

    def captions(self, names: Sequence[str]) -> dict[str, str]:
        """Captions of rows of the bank, where they are known, see `row_meme`."""
        found = captions_of(self.cases.store.database, [name for name in names if self.lookup.caption(name) is None])
        return found | {name: caption for name in names if (caption := self.lookup.caption(name))}

    def judge(self, case: Case) -> dict[str, Any]:
        """The verdict on a case by the present bank, as `ServedVerdict.to_dict` states it."""
        (served,) = wait_for_all(self.cases.service.submit([self.cases.meme_of(case)]), self.limits.time_limit)
        return served.to_dict()

    def effect(self, case: Case, label: Any) -> Mapping[str, Any] | None:
        """What the bank's verdicts would change where this case gets a label; None where no bank would change.

        Raises:
            UserError: There is no meme to measure it on.
        """
        bank = self.cases.bank_service
        if bank is None:
            return None
        if bank.reference is None and self.cases.service.recent is None:
            raise UserError("No meme was judged since the start, so the effect is not known yet.")
        meme = self.cases.meme_of(case)
        known = bank.labels_of(meme)
        rows = {name: label for name, before in known.items() if before != label}
        if known and not rows:
            return None
        if rows:
            return bank.preview(relabel=rows, relabel_identical=True)
        return bank.preview([meme], [label])

    def assign(self, user: User, case_ids: Sequence[str], colleague: str) -> int:
        """Assign open cases to a person, to oneself too, or, with an empty name, to nobody; returns their number.

        Raises:
            UserError: Nobody of that name may decide.
        """
        self.require_moderator(user)
        if colleague not in ("", user.name):
            self._check_colleague(user, colleague)
        return assign(self.cases.store.database, case_ids, colleague, user.name)

    def _check_colleague(self, user: User, colleague: str) -> None:
        known = self.sessions.colleagues(user.name)
        if colleague not in known:
            raise UserError(f"{colleague!r} is no colleague who may decide; there are {', '.join(known) or 'none'}.")

    def require_moderator(self, user: User) -> None:
        """Raise `CaseConflict` for a person who may only look."""
        if not user.may_decide:
            raise CaseConflict("Your key may look, and not decide; ask for a moderator's key.")
