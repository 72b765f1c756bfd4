"""The tab with the bank's history, and the way back."""

from typing import Any

import gradio as gr

from ra_hmd.console.controller import Console
from ra_hmd.console.correction_panel import status_region
from ra_hmd.console.gradio_utils import EXPECTED_ERRORS, focus, on, sentence
from ra_hmd.console.moderation import ChangePreview
from ra_hmd.core.errors import UserError

_LONGEST = 18  # digits of a version


class HistoryTab:
    """Versions as a table; rollback in two acts."""

    def __init__(self, console: Console, tab: gr.Tab) -> None:
        self.console = console
        self.plan = gr.State(None)
        self.said = status_region("history")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=300):
                self.table = gr.HTML(elem_id="history-table")
                self.refresh = gr.Button("Read it again (R)", elem_id="history-refresh")
            with gr.Column(scale=2, min_width=300, elem_classes="ra-panel") as self.panel:
                gr.HTML("<h3>Go back to an earlier version</h3><p class='ra-small'>This makes a new version that "
                        "holds what the earlier one held. Nothing is lost.</p>")  # fmt: skip
                self.version = gr.Textbox(
                    "1", label="Version (its number in the table)", max_lines=1, elem_id="history-version"
                )
                self.reason = gr.Textbox(label="Reason (required)", lines=1, max_lines=4, elem_id="history-reason")
                self.effect = gr.HTML(elem_id="history-effect", elem_classes="ra-live")
                with gr.Row():
                    self.look = gr.Button("Show the effect (E)", elem_id="history-look")
                    self.write = gr.Button("Go back (Y)", variant="primary", interactive=False, elem_id="history-write")
                    self.cancel = gr.Button("Cancel (X)", elem_id="history-cancel")
        self._wire(tab)

    def _wire(self, tab: gr.Tab) -> None:
        for trigger in (tab.select, self.refresh.click):
            on(trigger, self._show, (), [self.table, self.panel, *self._empty])
        on(self.version.input, lambda: self._unseen, (), list(self._unseen))
        seen = on(self.look.click, self._look, [self.version], list(self._unseen))
        on(seen.success, None, js=focus("history-effect"))
        emptied = list(self._empty)
        on(self.cancel.click, lambda: self._empty, (), emptied)
        written = on(self.write.click, self._write, [self.version, self.plan, self.reason],
                     [self.said, self.table, *emptied])  # fmt: skip
        on(written.success, None, js=focus("history-said"))

    @property
    def _unseen(self) -> dict[Any, Any]:
        return {self.plan: None, self.effect: "", self.write: gr.update(interactive=False)}

    @property
    def _empty(self) -> dict[Any, Any]:
        """Updates that empty the panel; the version before the last is what is most likely meant."""
        last = self.console.moderation.bank_service.bank.version if self.console.moderation.can_change else 1
        return self._unseen | {self.version: str(max(last - 1, 1)), self.reason: ""}

    def _table(self) -> str:
        return self.console.views.history(self.console.moderation.bank_service.log())

    def _show(self, request: gr.Request) -> dict[Any, Any]:
        person, can = self.console.authenticator.person(request), self.console.moderation.can_change
        table = self._table() if can else sentence("No example bank is open (--bank BANK).")
        return self._empty | {self.table: table, self.panel: gr.update(visible=person.may_change and can)}

    def _look(self, version: str | None, request: gr.Request) -> dict[Any, Any]:
        self.console.authenticator.person(request).check_may_change()
        plan = self.console.moderation.plan_rollback(_number(version))
        return {self.plan: plan, self.effect: self.console.views.effect(plan), self.write: gr.update(interactive=True)}

    def _write(
        self, version: str | None, plan: ChangePreview | None, reason: str | None, request: gr.Request
    ) -> dict[Any, Any]:
        person = self.console.authenticator.person(request)
        person.check_may_change()
        entry = self.console.moderation.rollback(_number(version), plan, person.name, reason or "")
        said = sentence(f"Done: version {entry.version} of the bank holds what version {entry.restores} held.")
        try:
            table: Any = self._table()
        except EXPECTED_ERRORS:  # it is done all the same
            table = gr.skip()
        return self._empty | {self.said: said, self.table: table}


def _number(version: str | None) -> int:
    """Raises `UserError` for what is no number."""
    number = (version or "").strip()
    if not number.isdecimal() or len(number) > _LONGEST:
        raise UserError(f"{number[:_LONGEST]!r} is no version; give its number in the table.")
    return int(number)
