"""The tab with the review queue."""

from typing import Any

import gradio as gr

from ra_hmd.console.controller import Console
from ra_hmd.console.correction_panel import CorrectionPanel
from ra_hmd.console.gradio_utils import EXPECTED_ERRORS, error_message, focus, on, sentence, status_region
from ra_hmd.console.rationale_panel import RationalePanel
from ra_hmd.console.reviews import Decision
from ra_hmd.core.errors import UserError
from ra_hmd.serve.batching import ServedVerdict

_DECIDED = "This meme was decided on already, or was passed on to somebody else; press “Next meme”."


class ReviewTab:
    """Shows the memes of the queue one by one, to agree with the verdict, to correct it, or to skip the meme."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.served = gr.State(None)
        self.status = status_region("review")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self.figure = gr.HTML(elem_id="review-picture")
                with gr.Row(elem_classes="ra-acts"):
                    self.agree = gr.Button("Agree (A)", interactive=False, elem_id="review-agree", min_width=90)
                    self.correct = gr.Button("Correct (C)", interactive=False, elem_id="review-correct", min_width=90)
                    self.skip = gr.Button("Skip (S)", interactive=False, elem_id="review-skip", min_width=90)
                self.next = gr.Button("Next meme (G)", variant="primary", elem_id="review-next")
                self.correction = CorrectionPanel(console, "review", self.served, self._check_claim)
            with gr.Column(scale=3, min_width=300):
                self.card = gr.HTML(elem_id="review-card")
                self.rationale = RationalePanel(console, "review", self.served)
        self._register_events()

    @property
    def _tab_parts(self) -> list[Any]:
        """Components that show a meme, without those of the correction panel."""
        return [self.served, self.status, self.figure, self.card, self.agree, self.correct, self.skip,
                *self.rationale.parts]  # fmt: skip

    def _register_events(self) -> None:
        parts = [*self._tab_parts, *self.correction.closed]
        events = [on(self.next.click, self._next, (), parts)]
        for button, decide in ((self.agree, self._agree), (self.skip, self._skip)):
            events.append(on(button.click, decide, [self.served], parts))
        for event in events:
            on(event.success, None, js=focus("review-card"))
        self.rationale.register_events()
        self.correction.register_events(self.correct, self._show_next, self._tab_parts)

    def _next(self, request: gr.Request) -> dict[Any, Any]:
        return self._show_next("", request)

    def _agree(self, served: ServedVerdict | None, request: gr.Request) -> dict[Any, Any]:
        label = None if served is None else served.verdict.verdict
        if served is not None and label is None:
            raise UserError("The detector has no verdict to agree with; choose one with “Correct”, or skip.")
        self._decide(served, "agree", label, request)
        return self._show_next(f"Agreed: {self.console.names(label)}.", request)

    def _skip(self, served: ServedVerdict | None, request: gr.Request) -> dict[Any, Any]:
        self._decide(served, "skip", None, request)
        return self._show_next("Skipped.", request)

    def _show_next(self, message: str, request: gr.Request) -> dict[Any, Any]:
        """Show the next meme, after a message about the one before."""
        user = self.console.authenticator.user(request)
        moderation, views = self.console.moderation, self.console.views
        try:
            holder = self.console.authenticator.session(request)
            served = self.console.next(holder) if user.may_change else None
            in_bank = moderation.labels_in_bank(served) if served and moderation.can_change else None
        except EXPECTED_ERRORS as error:
            if not message:
                raise
            return self._show_nothing(message, user.may_change, error_message(error))  # the decision itself is done
        if served is None:
            return self._show_nothing(message, user.may_change)
        verdict = served.verdict.verdict
        status = f"{message} Next meme: {self.console.names(verdict)}. {self.console.queue.pending} to go."
        return {
            self.served: served,
            self.status: sentence(status.strip()),
            self.figure: views.figure(served),
            self.card: views.card(served, in_bank),
            self.agree: gr.update(interactive=verdict is not None),
            self.correct: gr.update(interactive=moderation.can_change),
            self.skip: gr.update(interactive=True),
            **self.rationale.offered,
            **self.correction.closed,
        }

    def _show_nothing(self, message: str, may_change: bool, error: str = "") -> dict[Any, Any]:
        off = gr.update(interactive=False)
        return {
            self.served: None,
            self.status: sentence(f"{message} {self._why_nothing(may_change, error)}".strip()),
            self.figure: "",
            self.card: "",
            self.agree: off,
            self.correct: off,
            self.skip: off,
            **self.rationale.hidden,
            **self.correction.closed,
        }

    def _why_nothing(self, may_change: bool, error: str) -> str:
        queue = self.console.queue
        if error:
            return f"The next meme cannot be shown now; press “Next meme” again. {error}"
        if not may_change:
            return "Reviewing needs a moderator's key; yours is a reader's."
        if queue.source is None:
            return "No queue is open; start the console with --queue FILE."
        if queue.scoring:
            return "The next memes are still being judged; press “Next meme” again in a moment."
        failed = len(queue.problems)
        return "Nothing is left to review." + (f" {failed} could not be judged, see the figures." if failed else "")

    def _decide(self, served: ServedVerdict | None, decision: Decision, label: Any, request: gr.Request) -> None:
        user = self.console.authenticator.user(request)
        user.check_may_change()
        if served is None:
            raise UserError("No meme is shown; press “Next meme”.")
        self._check_claim(served, request)
        # Two clicks at once are one decision, also in two processes.
        if not self.console.queue.release(served.meme.id, self.console.authenticator.session(request)):
            raise UserError(_DECIDED)
        self.console.moderation.record(served, decision, label, user.name)

    def _check_claim(self, served: ServedVerdict, request: gr.Request) -> None:
        if not self.console.queue.holds(served.meme.id, self.console.authenticator.session(request)):
            raise UserError(_DECIDED)
