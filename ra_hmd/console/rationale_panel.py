"""The panel that generates a rationale of a verdict on demand, and marks it as generated."""

from typing import Any

import gradio as gr

from ra_hmd.console.controller import Console
from ra_hmd.console.gradio_utils import on
from ra_hmd.console.views import render
from ra_hmd.core.errors import UserError
from ra_hmd.serve.batching import ServedVerdict


class RationalePanel:
    """Rationale panel of a tab; `served` is the state with the verdict that is shown."""

    def __init__(self, console: Console, prefix: str, served: gr.State) -> None:
        self.console, self.served = console, served
        self.ask = gr.Button("Ask for a rationale (W)", visible=False, elem_id=f"{prefix}-why")
        self.words = gr.HTML(elem_id=f"{prefix}-rationale", elem_classes="ra-live")
        self.parts = [self.ask, self.words]

    @property
    def hidden(self) -> dict[Any, Any]:
        """Updates that hide the panel, where there is no verdict."""
        return {self.ask: gr.update(visible=False), self.words: ""}

    @property
    def offered(self) -> dict[Any, Any]:
        """Updates for a new verdict."""
        available = self.console.explainer is not None
        return {self.ask: gr.update(visible=available), self.words: "" if available else render("no_rationale.html")}

    def register_events(self) -> None:
        """Register the event handlers."""
        on(self.ask.click, self._explain, [self.served], [self.words])

    def _explain(self, served: ServedVerdict | None, request: gr.Request) -> str:
        self.console.authenticator.user(request)
        if served is None:
            raise UserError("There is no meme yet.")
        return render("rationale.html", rationale=self.console.explain(served))
