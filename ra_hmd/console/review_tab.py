"""The tab with the review queue."""

import threading
from typing import Any

import gradio as gr

from ra_hmd.console.controller import Console
from ra_hmd.console.correction_panel import CorrectionPanel, status_region
from ra_hmd.console.gradio_utils import EXPECTED_ERRORS, error_message, focus, on, sentence
from ra_hmd.console.moderation import Subject
from ra_hmd.console.rationale_panel import RationalePanel
from ra_hmd.console.reviews import Decision
from ra_hmd.console.views import picture
from ra_hmd.core.errors import UserError


class ReviewTab:
    """Agree, correct or skip, one meme after the other."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._deciding = threading.Lock()
        self.subject = gr.State(None)
        self.said = status_region("review")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self.picture = gr.HTML(elem_id="review-picture")
                with gr.Row(elem_classes="ra-acts"):
                    self.agree = gr.Button("Agree (A)", interactive=False, elem_id="review-agree", min_width=90)
                    self.correct = gr.Button("Correct (C)", interactive=False, elem_id="review-correct", min_width=90)
                    self.skip = gr.Button("Skip (S)", interactive=False, elem_id="review-skip", min_width=90)
                self.next = gr.Button("Next meme (G)", variant="primary", elem_id="review-next")
                self.correction = CorrectionPanel(console, "review", self.subject, self._check_held)
            with gr.Column(scale=3, min_width=300):
                self.card = gr.HTML(elem_id="review-card")
                self.rationale = RationalePanel(console, "review", self.subject)
        self._wire()

    @property
    def _parts(self) -> list[Any]:
        return [self.subject, self.said, self.picture, self.card, self.agree, self.correct, self.skip,
                *self.rationale.parts, *self.correction.closed]  # fmt: skip

    def _wire(self) -> None:
        shown = [on(self.next.click, self._next, (), self._parts)]
        for button, decide in ((self.agree, self._agree), (self.skip, self._skip)):
            shown.append(on(button.click, decide, [self.subject], self._parts))
        for event in shown:
            on(event.success, None, js=focus("review-card"))
        self.rationale.wire()
        self.correction.wire(self.correct, self._following, self._parts[:9])

    def _next(self, request: gr.Request) -> dict[Any, Any]:
        return self._following("", request)

    def _agree(self, subject: Subject | None, request: gr.Request) -> dict[Any, Any]:
        verdict = None if subject is None else subject.answer.detection.verdict
        if subject is not None and verdict is None:
            raise UserError("The detector has no verdict to agree with; choose one with “Correct”, or skip.")
        self._decide(subject, "agree", verdict, request)
        return self._following(f"Agreed: {self.console.names(verdict)}.", request)

    def _skip(self, subject: Subject | None, request: gr.Request) -> dict[Any, Any]:
        self._decide(subject, "skip", None, request)
        return self._following("Skipped.", request)

    def _following(self, before: str, request: gr.Request) -> dict[Any, Any]:
        """Show the next meme, and say what became of the one before."""
        person = self.console.authenticator.person(request)
        can_correct = self.console.moderation.can_change
        try:
            subject = self.console.next(request.session_hash or "") if person.may_change else None
            known = self.console.moderation.labels_in_bank(subject) if subject and can_correct else None
        except EXPECTED_ERRORS as error:
            if not before:
                raise
            return self._nothing(
                before, person.may_change, error_message(error)
            )  # what came before is done all the same
        if subject is None:
            return self._nothing(before, person.may_change)
        found = subject.answer.detection
        left = self.console.queue.waiting
        said = f"{before} Next meme: {self.console.names(found.verdict)}. {left} to go."
        return {
            self.subject: subject,
            self.said: sentence(said.strip()),
            self.picture: picture(subject.query, found.text, read=found.text_source != "given"),
            self.card: self.console.views.card(subject.answer, known),
            self.agree: gr.update(interactive=found.verdict is not None),
            self.correct: gr.update(interactive=can_correct),
            self.skip: gr.update(interactive=True),
            **self.rationale.offered,
            **self.correction.closed,
        }

    def _nothing(self, before: str, may_change: bool, trouble: str = "") -> dict[Any, Any]:
        queue = self.console.queue
        if trouble:
            why = f"The next meme cannot be shown now; press “Next meme” again. {trouble}"
        elif not may_change:
            why = "Reviewing needs a moderator's key; yours is a reader's."
        elif queue.source is None:
            why = "No queue is open; start the console with --queue FILE."
        elif queue.reading:
            why = "The next memes are still being judged; press “Next meme” again in a moment."
        else:
            bad = len(queue.problems)
            why = "Nothing is left to review." + (f" {bad} could not be judged, see the figures." if bad else "")
        off = gr.update(interactive=False)
        return {
            self.subject: None,
            self.said: sentence(f"{before} {why}".strip()),
            self.picture: "",
            self.card: "",
            self.agree: off,
            self.correct: off,
            self.skip: off,
            **self.rationale.hidden,
            **self.correction.closed,
        }

    def _decide(self, subject: Subject | None, decision: Decision, label: Any, request: gr.Request) -> None:
        person = self.console.authenticator.person(request)
        person.check_may_change()
        if subject is None:
            raise UserError("No meme is shown; press “Next meme”.")
        with self._deciding:  # two presses at once are one decision
            self._check_held(subject, request)
            self.console.moderation.record(subject, decision, label, person.name)

    def _check_held(self, subject: Subject, request: gr.Request) -> None:
        if not self.console.queue.holds(subject.id, request.session_hash or ""):
            raise UserError("This meme was decided on already, or was passed on to somebody else; press “Next meme”.")
