"""The panel that corrects a verdict: label, reason, preview of the impact, and the change itself as a second step."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from ra_hmd.console.controller import Console
from ra_hmd.console.gradio_utils import focus, on
from ra_hmd.console.labels import REASONS
from ra_hmd.console.moderation import ChangePreview
from ra_hmd.core.errors import UserError
from ra_hmd.serve.batching import ServedVerdict


class CorrectionPanel:
    """Correction panel of a tab. Create it inside the tab, then call `register_events`.

    Args:
        console: Console that makes the changes.
        prefix: Prefix of the elements' ids.
        served: State of the tab with the verdict that is shown.
        check_claim: Raises `UserError` unless the session that sent a request may still decide on the meme.
    """

    def __init__(
        self,
        console: Console,
        prefix: str,
        served: gr.State,
        check_claim: Callable[[ServedVerdict, gr.Request], None] = lambda served, request: None,
    ) -> None:
        self.console, self.prefix, self.served, self._check_claim = console, prefix, served, check_claim
        choice = gr.CheckboxGroup if console.names.problem.kind == "multi_label" else gr.Radio
        self.preview = gr.State(None)
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
            self.label: gr.update(value=None),
            self.reason: gr.update(value=None),
            self.words: "",
            self.note: "",
            **self._no_preview,
        }

    @property
    def _no_preview(self) -> dict[Any, Any]:
        return {self.preview: None, self.effect: "", self.write: gr.update(interactive=False)}

    def register_events(
        self, correct: gr.Button, done: Callable[[str, gr.Request], dict[Any, Any]], outputs: list[Any]
    ) -> None:
        """Register the event handlers.

        Args:
            correct: Button that opens the panel.
            done: Returns the updates of the tab after a correction, given a message about it.
            outputs: Components that `done` may update.
        """
        own, shown = list(self.closed), list(self._no_preview)
        opened = on(correct.click, self._open, [self.served], own)
        on(opened.success, None, js=focus(f"{self.prefix}-label"))
        on(self.label.input, lambda: self._no_preview, (), shown)
        previewed = on(self.look.click, self._preview, [self.served, self.label], shown)
        on(previewed.success, None, js=focus(f"{self.prefix}-effect"))
        on(self.cancel.click, lambda: self.closed, (), own)
        self._done = done
        written = on(
            self.write.click,
            self._write,
            [self.served, self.preview, self.label, self.reason, self.words, self.note],
            [*own, *outputs],
        )
        on(written.success, None, js=focus(f"{self.prefix}-said"))

    def _open(self, served: ServedVerdict | None, request: gr.Request) -> dict[Any, Any]:
        served = self._checked(served, request)
        names = self.console.names
        label = names.opposite(served.verdict.verdict)
        if isinstance(label, list):
            label = [place for place, member in enumerate(label) if member]
        shown = self.closed | {self.panel: gr.update(visible=True), self.label: gr.update(value=label)}
        if names.problem.kind != "binary" or label is None:
            return shown
        return shown | self._preview(served, label, request)  # of two classes the correction can only be the other

    def _preview(self, served: ServedVerdict | None, chosen: Any, request: gr.Request) -> dict[Any, Any]:
        served = self._checked(served, request)
        preview = self.console.moderation.preview(served, self.console.names.label_of(chosen))
        html = self.console.views.impact(preview)
        return {self.preview: preview, self.effect: html, self.write: gr.update(interactive=True)}

    def _write(
        self,
        served: ServedVerdict | None,
        preview: ChangePreview | None,
        chosen: Any,
        reason: str | None,
        words: str | None,
        note: str | None,
        request: gr.Request,
    ) -> dict[Any, Any]:
        served = self._checked(served, request)
        label = self.console.names.label_of(chosen)
        if preview is not None and preview.label != label:
            preview = None  # it is of another label
        full_reason = ": ".join(part.strip() for part in (reason, words) if part and part.strip())
        user = self.console.authenticator.user(request)
        entry = self.console.moderation.correct(served, preview, user.name, full_reason, note or "")
        name = self.console.names(label)
        message = f"Written: the bank has this meme as “{name}” from version {entry.version} on."
        return self.closed | self._done(message, request)

    def _checked(self, served: ServedVerdict | None, request: gr.Request) -> ServedVerdict:
        self.console.authenticator.user(request).check_may_change()
        if served is None:
            raise UserError("There is no meme to correct yet.")
        self._check_claim(served, request)
        return served
