"""The panel with which a verdict is corrected: label, reason, effect, and a second act that writes it."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from ra_hmd.console.controller import Console
from ra_hmd.console.gradio_utils import focus, on, sentence
from ra_hmd.console.labels import REASONS
from ra_hmd.console.moderation import ChangePreview, Subject
from ra_hmd.core.errors import UserError


class CorrectionPanel:
    """The panel of one tab. Build it inside the tab, then `wire` it.

    Args:
        console: What it acts on.
        prefix: Of the elements' ids.
        subject: State of the tab: the meme that is looked at.
        holds: Whether a meme may still be decided on by who sent the request.
    """

    def __init__(
        self,
        console: Console,
        prefix: str,
        subject: gr.State,
        holds: Callable[[Subject, gr.Request], None] = lambda subject, request: None,
    ) -> None:
        self.console, self.prefix, self.subject, self._holds = console, prefix, subject, holds
        choice = gr.CheckboxGroup if console.names.problem.kind == "multi_label" else gr.Radio
        self.plan = gr.State(None)
        with gr.Column(visible=False, elem_id=f"{prefix}-panel", elem_classes="ra-panel") as self.panel:
            gr.HTML("<h3>Correct the verdict</h3>")
            self.label = choice(console.names.choices(), label="The meme is", elem_id=f"{prefix}-label")
            self.reason = gr.Radio(list(REASONS), label="Reason (required)", elem_id=f"{prefix}-reason")
            self.words = gr.Textbox(
                label="Reason in your own words (instead of the above, or in addition)", lines=1, max_lines=4,
                elem_id=f"{prefix}-words",
            )  # fmt: skip
            self.note = gr.Textbox(
                label="Note (kept with the meme in the bank; optional)", lines=1, max_lines=4, elem_id=f"{prefix}-note"
            )
            self.effect = gr.HTML(elem_id=f"{prefix}-effect", elem_classes="ra-live")
            with gr.Row():
                self.look = gr.Button("Show the effect (E)", elem_id=f"{prefix}-look")
                self.write = gr.Button(
                    "Write to the bank (Y)", variant="primary", interactive=False, elem_id=f"{prefix}-write"
                )
                self.cancel = gr.Button("Cancel (X)", elem_id=f"{prefix}-cancel")

    @property
    def closed(self) -> dict[Any, Any]:
        """Updates that close and empty the panel."""
        return {
            self.panel: gr.update(visible=False),
            self.plan: None,
            self.label: gr.update(value=None),
            self.reason: gr.update(value=None),
            self.words: "",
            self.note: "",
            self.effect: "",
            self.write: gr.update(interactive=False),
        }

    def wire(self, correct: gr.Button, done: Callable[[str, gr.Request], dict[Any, Any]], outputs: list[Any]) -> None:
        """Let it act.

        Args:
            correct: The button that opens it.
            done: What the tab shows once a correction is written, given what to say.
            outputs: What `done` may change.
        """
        own = list(self.closed)
        opened = on(correct.click, self._open, [self.subject], own)
        on(opened.success, None, js=focus(f"{self.prefix}-label"))
        on(self.label.input, lambda: self._unseen, (), [self.plan, self.effect, self.write])
        seen = on(self.look.click, self._look, [self.subject, self.label], [self.plan, self.effect, self.write])
        on(seen.success, None, js=focus(f"{self.prefix}-effect"))
        on(self.cancel.click, lambda: self.closed, (), own)
        self._done = done
        written = on(
            self.write.click,
            self._write,
            [self.subject, self.plan, self.label, self.reason, self.words, self.note],
            [*own, *outputs],
        )
        on(written.success, None, js=focus(f"{self.prefix}-said"))

    @property
    def _unseen(self) -> dict[Any, Any]:
        return {self.plan: None, self.effect: "", self.write: gr.update(interactive=False)}

    def _open(self, subject: Subject | None, request: gr.Request) -> dict[Any, Any]:
        subject = self._allowed(subject, request)
        names = self.console.names
        label = names.other(subject.answer.detection.verdict)
        if isinstance(label, list):
            label = [place for place, member in enumerate(label) if member]
        shown = self.closed | {self.panel: gr.update(visible=True), self.label: gr.update(value=label)}
        if names.problem.kind != "binary" or label is None:
            return shown
        return shown | self._look(subject, label, request)  # one key: of two classes the other one is meant

    def _look(self, subject: Subject | None, chosen: Any, request: gr.Request) -> dict[Any, Any]:
        subject = self._allowed(subject, request)
        plan = self.console.moderation.plan(subject, self.console.names.label_of(chosen))
        effect = self.console.views.effect(plan)
        return {self.plan: plan, self.effect: effect, self.write: gr.update(interactive=True)}

    def _write(
        self,
        subject: Subject | None,
        plan: ChangePreview | None,
        chosen: Any,
        reason: str | None,
        words: str | None,
        note: str | None,
        request: gr.Request,
    ) -> dict[Any, Any]:
        subject = self._allowed(subject, request)
        if plan is not None and plan.label != self.console.names.label_of(chosen):
            plan = None  # another label than the one whose effect was shown
        why = ": ".join(part.strip() for part in (reason, words) if part and part.strip())
        person = self.console.authenticator.person(request)
        entry = self.console.moderation.correct(subject, plan, person.name, why, note or "")
        name = self.console.names(plan.label if plan else None)
        said = f"Written: the bank has this meme as “{name}” from version {entry.version} on."
        return self.closed | self._done(said, request)

    def _allowed(self, subject: Subject | None, request: gr.Request) -> Subject:
        self.console.authenticator.person(request).check_may_change()
        if subject is None:
            raise UserError("There is no meme to correct yet.")
        self._holds(subject, request)
        return subject


def status_region(prefix: str) -> gr.HTML:
    """Where a tab says what was done, aloud too."""
    return gr.HTML(sentence(""), elem_id=f"{prefix}-said", elem_classes="ra-live")
