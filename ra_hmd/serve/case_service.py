"""Cases of a running service: intake with a verdict, decisions that teach the bank, and their undoing.

A decision is three steps, so that a kill between any two of them loses nothing and does nothing twice: the opinion is
recorded with the change that it makes, the bank is changed, the opinion is finished. Taking it back is three steps
again. What was begun and not finished is done again at the next start; a change that the bank has already is not made
a second time.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.bank.versions import VersionEntry
from ra_hmd.cases.outcome import Action
from ra_hmd.cases.pictures import CasePictures
from ra_hmd.cases.policy import PolicyDraw, VerdictFacts
from ra_hmd.cases.steps import CaseConflict
from ra_hmd.cases.store import SYSTEM, CaseStore, Decision, NewCase
from ra_hmd.cases.tables import Case, Opinion
from ra_hmd.cases.undoing import abandon_undo, begin_undo, check_undo, finish_undo, unfinished_undos
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head
from ra_hmd.data.image_hashes import caption_digest
from ra_hmd.data.images import file_digest, load_image, perceptual_hash
from ra_hmd.data.meme import Meme
from ra_hmd.inference.types import Verdict
from ra_hmd.serve.background import Background, Periodic
from ra_hmd.serve.bank_service import AlreadyApplied, BankService, MemeLabel
from ra_hmd.serve.batching import BatchingService, ServedVerdict, ServiceBusy
from ra_hmd.serve.case_settings import CaseSettings
from ra_hmd.serve.case_watch import CaseStatistics, CaseWatcher, ChosenVerdict

_log = logging.getLogger("ra_hmd.serve")
_START_SECONDS, _RESUME_SECONDS = 5.0, 60.0
SOURCE = "review"
"""Source of the bank rows that reviewers make."""
MAX_CHARACTERS = 2000
"""Most characters of a reason or a note."""


@dataclass(frozen=True)
class Intake:
    """What a case gets beside its meme and its verdict. Fields: see `ra_hmd.cases.store.NewCase`."""

    queue: str = "main"
    source: str = ""
    request_key: str | None = None
    why: str = "requested"
    priority: int = 0
    opinions_needed: int = 1
    context: str = ""
    callback: str = ""


class CaseService:
    """Cases of one service.

    Args:
        service: Batching service that scores memes.
        store: The cases.
        pictures: Where pictures are kept that came without a file.
        bank_service: Changes the bank; None: decisions are recorded, and teach nothing.
        draw: Chooses among verdicts those that become cases.
        settings: Settings of the cases, such as the hosts that may be told of decisions.

    Attributes:
        background: What runs from `start` to `close`; more may be added before `start`.
        watcher: Makes cases of verdicts that the policy chose, while no answer waits.
        statistics: What was done here since the start.
    """

    def __init__(
        self,
        service: BatchingService,
        store: CaseStore,
        pictures: CasePictures,
        bank_service: BankService | None = None,
        draw: PolicyDraw | None = None,
        settings: CaseSettings | None = None,
    ) -> None:
        self.service, self.store, self.pictures = service, store, pictures
        self.bank_service, self.draw, self.settings = bank_service, draw, settings or CaseSettings()
        self.background: list[Background] = [Periodic("resuming decisions", _RESUME_SECONDS, self._resume)]
        self._resumed, self.statistics = False, CaseStatistics()
        self.watcher = CaseWatcher(self.add_chosen)
        self.background.append(self.watcher)

    # ---------------------------------------------------------------------------------------------- life

    def start(self) -> None:
        """Start what runs beside requests."""
        for one in self.background:
            one.start()

    def close(self) -> None:
        """End what runs beside requests, and close the database."""
        for one in reversed(self.background):
            one.close()
        self.store.database.close()

    def _resume(self, _: threading.Event) -> None:
        # Another process may be making a decision just now: only what is older was cut short.
        self.resume(_RESUME_SECONDS if self._resumed else _START_SECONDS)
        self._resumed = True

    # ---------------------------------------------------------------------------------------------- intake

    def add(self, served: Sequence[ServedVerdict], intakes: Sequence[Intake], person: str) -> list[tuple[str, bool]]:
        """Make cases of verdicts, and return for each its id, and whether it is new."""
        return self._add([self._new_case(one, intake) for one, intake in zip(served, intakes, strict=True)], person)

    def watch(self, served: Sequence[ServedVerdict], source: str) -> list[str]:
        """Make cases of those verdicts that the policy chooses, and return their ids."""
        return self.add_chosen(self.choose(served), source)

    def offer(self, served: Sequence[ServedVerdict], source: str) -> None:
        """`watch` beside an answer, which neither waits for it nor fails with it."""
        try:
            self.watcher.offer(self.choose(served), source)
        except Exception:
            _log.exception("the policy failed on a verdict")

    def choose(self, served: Sequence[ServedVerdict], seed: int | None = None) -> list[ChosenVerdict]:
        """Those verdicts that the policy chooses. Each verdict is to be shown to it once.

        With a `seed` the same verdicts give the same choice, whenever they are shown.
        """
        if self.draw is None or not self.draw.policy.active:
            return []
        draw = self.draw if seed is None else PolicyDraw(self.draw.policy.model_copy(update={"audit_seed": seed}))
        drawn = [(one, *draw(facts_of(one.verdict, self.service))) for one in served]
        return [ChosenVerdict(one, why, audited) for one, why, audited in drawn if why is not None]

    def add_chosen(
        self, chosen: Sequence[ChosenVerdict], source: str, keys: Sequence[str | None] | None = None
    ) -> list[str]:
        """Make cases of verdicts that the policy chose, and return their ids.

        A meme that comes again is asked about once, but each time that it is drawn at random: otherwise the audit
        would not be a random share. `keys` say of those that were drawn which draw it is.
        """
        cases = []
        for one, drawn in zip(chosen, keys or [None] * len(chosen), strict=True):
            case = self._new_case(one.served, Intake(source=source, why=one.why))
            again = drawn if one.audited else f"policy {case.picture_digest} {caption_digest(case.caption)}"
            cases.append(replace(case, audited=one.audited, request_key=again))
        return [name for name, _ in self._add(cases)] if cases else []

    def _add(self, cases: Sequence[NewCase], person: str = SYSTEM) -> list[tuple[str, bool]]:
        added = self.store.add(cases, person)
        self.statistics.added.update(case.why for case, (_, new) in zip(cases, added, strict=True) if new)
        return added

    def _new_case(self, served: ServedVerdict, intake: Intake) -> NewCase:
        meme, facts = served.meme, facts_of(served.verdict, self.service)
        drawn = 1 if self.draw is None else self.draw.opinions_needed()
        if isinstance(meme.image, bytes):
            picture, digest = self.pictures.keep(meme.image)
        else:
            picture, digest = str(meme.image), file_digest(meme.path)
        return NewCase(
            meme_id=meme.id,
            picture=picture,
            picture_digest=digest,
            picture_hash=f"{perceptual_hash(load_image(meme.image)) or 0:016x}",
            caption=meme.caption,
            order=facts.margin,
            verdict=served.to_dict(),
            similarity=facts.similarity,
            **vars(intake) | {"opinions_needed": max(intake.opinions_needed, drawn)},
        )

    # ---------------------------------------------------------------------------------------------- decisions

    def meme_of(self, case: Case) -> Meme:
        """The meme of a case."""
        return Meme(case.meme_id, Path(case.picture), case.caption)

    def decision(
        self, case_id: str, label: MemeLabel | None, reason: str = "", *, batch: str = "", colleague: str = ""
    ) -> Decision:
        """The decision that a label on a case is: an agreement where it is the verdict; None asks a colleague, or the
        one that is named.

        Raises:
            UserError: The task has no such class; the label contradicts the verdict and there is no reason; the reason
                is too long.
        """
        verdict = self.store.get(case_id).verdict.get("verdict")
        agrees = label is not None and label == verdict
        if label is not None and not agrees:
            self.service.detector.problem.check(np.array([label], np.int64), "The decision")
            if not reason.strip():
                raise UserError("Say why: choose a reason, or write one. The log keeps it.")
        action: Action = "escalate" if label is None else "agree" if agrees else "label"
        return Decision(action, label, checked_words(reason), batch, colleague)

    def decide(self, case_id: str, person: str, decision: Decision) -> Case:
        """Record what a person decided, and change the bank where the case is thereby decided and the bank would say
        otherwise.

        Raises:
            UserError: See `CaseStore.begin`; or the bank refused the change, and the case waits as before.
        """
        opinion = self.store.begin(case_id, person, decision)
        try:
            case = self._finish(opinion)
        except ServiceBusy:  # nothing was done yet
            self.store.abandon(opinion.id)
            raise
        self.statistics.decisions[decision.action] += 1
        return case

    def resume(self, seconds: float = 0.0) -> int:
        """Complete what was begun so many seconds ago and not finished, also undoings; returns the number."""
        unfinished, undone = self.store.unfinished(seconds), unfinished_undos(self.store.database, seconds)
        for opinion in unfinished:
            try:
                self._finish(opinion)
            except UserError as error:
                _log.warning("a decision on case %s was cut short and cannot be completed: %s", opinion.case_id, error)
        for opinion in undone:
            try:
                self._finish_undo(opinion, on_screen=False)
            except UserError as error:
                abandon_undo(self.store.database, [opinion.id])
                _log.warning("a decision on case %s cannot be taken back any more: %s", opinion.case_id, error)
        return len(unfinished) + len(undone)

    def _finish(self, opinion: Opinion) -> Case:
        try:
            change = self._teach(opinion)
        except UserError:
            self.store.abandon(opinion.id)
            raise
        return self.store.finish(opinion.id, change)

    def _teach(self, opinion: Opinion) -> dict[str, Any]:
        """Change the bank to what a decision says, and return what was changed."""
        bank = self.bank_service
        planned = opinion.change or self._plan(opinion)
        if bank is None or not planned:
            return {}
        if not opinion.change:
            self.store.plan(opinion.id, planned)
        label, rows, why = opinion.label, planned["rows"], opinion.reason or opinion.action
        assert label is not None
        if None in rows.values():
            case = self.store.get(opinion.case_id)
            meme = replace(self.meme_of(case), id=case.id)
            entry = self._once(lambda: bank.add([meme], [label], author=opinion.person, reason=why, source=SOURCE,
                                                notes=[case.source]))  # fmt: skip
        else:
            labels = dict.fromkeys(rows, label)
            entry = self._once(lambda: bank.relabel(labels, author=opinion.person, reason=why, relabel_identical=True))
        return planned | {"version": bank.version() if entry is None else entry.version}

    def _plan(self, opinion: Opinion) -> dict[str, Any]:
        """The rows that a decision changes, with their labels before (None: a new row); empty where it changes none."""
        label = self.store.decides(opinion.id)
        if label is None or self.bank_service is None:
            return {}
        case = self.store.get(opinion.case_id)
        known = self.bank_service.labels_of(self.meme_of(case))
        if known:
            rows: dict[str, MemeLabel | None] = {name: before for name, before in known.items() if before != label}
            return {"rows": rows} if rows else {}
        # A row that says what the detector says by itself would teach nothing.
        return {} if case.verdict.get("verdict") == label else {"rows": {case.id: None}}

    @staticmethod
    def _once(change: Any) -> VersionEntry | None:
        try:
            return change()
        except AlreadyApplied:
            return None

    def undo(self, opinion_id: int, person: str, why: str) -> Case:
        """Take a decision of one's own back, in the bank too, row by row.

        Raises:
            UserError: See `ra_hmd.cases.undoing.check_undo`; or a row was changed again since, so that taking this back
                would undo somebody else's change.
        """
        return self.undo_all([opinion_id], person, why)[0]

    def undo_all(self, opinion_ids: Sequence[int], person: str, why: str) -> list[Case]:
        """Take several decisions of one's own back, in this order; none of them where one cannot be.

        Raises:
            UserError: See `undo`.
        """
        database = self.store.database
        for opinion_id in opinion_ids:
            self._present_labels(check_undo(database, opinion_id, person))
        opinions = begin_undo(database, opinion_ids, person, why)
        cases: list[Case] = []
        try:
            for opinion in opinions:
                cases.append(self._finish_undo(opinion))
        except (UserError, ServiceBusy):  # nothing was done for this one, nor for those after it
            abandon_undo(database, [one.id for one in opinions[len(cases) :]])
            raise
        return cases

    def _finish_undo(self, opinion: Opinion, *, on_screen: bool = True) -> Case:
        change = self._unteach(opinion)
        self.statistics.undone += 1
        return finish_undo(self.store.database, opinion.id, change, on_screen=on_screen)

    def _present_labels(self, opinion: Opinion) -> dict[str, MemeLabel]:
        """Present labels of the rows that a decision changed. Raises `UserError` where they were changed since."""
        rows = opinion.change.get("rows", {})
        if not rows:
            return {}
        if self.bank_service is None:
            raise UserError("No example bank is open, so what this decision changed cannot be changed back.")
        present = self.bank_service.labels(list(rows))
        changed = [name for name, label in present.items() if label not in (opinion.label, rows[name])]
        if changed:
            raise CaseConflict(
                f"The bank's row {changed[0]!r} was changed since; look at its history and correct it there."
            )
        return present

    def _unteach(self, opinion: Opinion) -> dict[str, Any]:
        """Change the bank back, and return what was changed."""
        person, why = opinion.undone_by, opinion.undone_why
        rows: dict[str, MemeLabel | None] = opinion.change.get("rows", {})
        bank, present = self.bank_service, self._present_labels(opinion)
        if not rows or bank is None:
            return {}
        reason = f"taken back: {why}" if why else "taken back"
        entry = None
        added = [name for name, before in rows.items() if before is None and name in present]
        if added:
            entry = self._once(lambda: bank.remove(added, author=person, reason=reason))
        before = {name: label for name, label in rows.items()
                  if label is not None and present.get(name) not in (None, label)}  # fmt: skip
        if before:
            entry = self._once(lambda: bank.relabel(before, author=person, reason=reason, relabel_identical=True))
        return {"rows": rows, "version": bank.version() if entry is None else entry.version}


def checked_words(words: str) -> str:
    """What a person wrote, without blanks around it. Raises `UserError` where it is too long."""
    if len(words) > MAX_CHARACTERS:
        raise UserError(f"The text has {len(words)} characters, {MAX_CHARACTERS} are allowed.")
    return words.strip()


def facts_of(verdict: Verdict, service: BatchingService) -> VerdictFacts:
    """What a policy looks at in a verdict."""
    verdicts = [one for one in verdict.verdicts.values() if one is not None]
    nearest = [float(one["similarity"]) for one in verdict.neighbours or ()]
    return VerdictFacts(
        margin=margin(verdict, service),
        abstained=verdict.verdict is None,
        disagreement=any(one != verdicts[0] for one in verdicts),
        similarity=max(nearest, default=None),
    )


def margin(verdict: Verdict, service: BatchingService) -> float:
    """How far a meme is from another verdict, in probability.

    It is the distance between the two most likely classes for a single-label task, else the distance between the
    probability and that of the threshold (the smallest for a multi-label task). It is 0 where the detector abstained,
    and 1 where a person labelled the meme, or it is known.
    """
    if verdict.identical is not None or not verdict.scores:
        return 1.0
    if verdict.verdict is None:
        return 0.0
    problem, head = service.detector.problem, verdict.head
    probabilities = np.atleast_1d(verdict.probabilities[head])
    if problem.kind == "single_label":
        second, first = np.sort(probabilities)[-2:]
        return float(first - second)
    return float(np.abs(probabilities - threshold_probabilities(service, head)).min())


def threshold_probabilities(service: BatchingService, head: Head) -> np.ndarray:
    """The calibrated probabilities at the thresholds of a head, [C]."""
    rule = service.detector.scorer.rule(head)
    return rule.calibration.apply(rule.thresholds[None, :], head, service.detector.problem)[0]
