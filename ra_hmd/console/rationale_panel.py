"""The rationale of a verdict, on demand, marked as what it is."""

from typing import Any

import gradio as gr

from ra_hmd.console.controller import Console
from ra_hmd.console.gradio_utils import on
from ra_hmd.console.moderation import Subject
from ra_hmd.console.views import render
from ra_hmd.core.errors import UserError


class RationalePanel:
    """Button and words of one tab; `subject` is the meme that is looked at."""

    def __init__(self, console: Console, prefix: str, subject: gr.State) -> None:
        self.console, self.subject = console, subject
        self.ask = gr.Button("Ask for a rationale (W)", visible=False, elem_id=f"{prefix}-why")
        self.words = gr.HTML(elem_id=f"{prefix}-rationale", elem_classes="ra-live")
        self.parts = [self.ask, self.words]

    @property
    def hidden(self) -> dict[Any, Any]:
        """Updates where there is no meme."""
        return {self.ask: gr.update(visible=False), self.words: ""}

    @property
    def offered(self) -> dict[Any, Any]:
        """Updates for a meme that was just judged."""
        there = self.console.explainer is not None
        return {self.ask: gr.update(visible=there), self.words: "" if there else render("no_rationale.html")}

    def wire(self) -> None:
        """Let it act."""
        on(self.ask.click, self._explain, [self.subject], [self.words])

    def _explain(self, subject: Subject | None, request: gr.Request) -> str:
        self.console.authenticator.person(request)
        if subject is None:
            raise UserError("There is no meme yet.")
        return render("rationale.html", rationale=self.console.explain(subject))
