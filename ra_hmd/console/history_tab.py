"""The tab with the history of the bank, and rollbacks."""

from typing import Any

import gradio as gr

from ra_hmd.console.controller import Console
from ra_hmd.console.gradio_utils import EXPECTED_ERRORS, focus, on, sentence, status_region
from ra_hmd.console.moderation import ChangePreview
from ra_hmd.core.errors import UserError

_MAX_DIGITS = 18  # of a version


class HistoryTab:
    """Shows the versions as a table, and restores one after a preview of the impact."""

    def __init__(self, console: Console, tab: gr.Tab) -> None:
        self.console = console
        self.preview = gr.State(None)
        self.status = status_region("history")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=300):
                self.table = gr.HTML(elem_id="history-table")
                self.refresh = gr.Button("Read it again (R)", elem_id="history-refresh")
            with gr.Column(scale=2, min_width=300, elem_classes="ra-panel") as self.panel:
                gr.HTML("<h3>Go back to an earlier version</h3><p class='ra-small'>This makes a new version with the "
                        "content of the earlier one. Nothing is lost.</p>")  # fmt: skip
                self.version = gr.Textbox(
                    "1", label="Version (its number in the table)", max_lines=1, elem_id="history-version"
                )
                self.reason = gr.Textbox(label="Reason (required)", lines=1, max_lines=4, elem_id="history-reason")
                self.effect = gr.HTML(elem_id="history-effect", elem_classes="ra-live")
                with gr.Row():
                    self.look = gr.Button("Show the effect (E)", elem_id="history-look")
                    self.write = gr.Button("Go back (Y)", variant="primary", interactive=False, elem_id="history-write")
                    self.cancel = gr.Button("Cancel (X)", elem_id="history-cancel")
        self._register_events(tab)

    def _register_events(self, tab: gr.Tab) -> None:
        cleared, no_preview = list(self._cleared), list(self._no_preview)
        for trigger in (tab.select, self.refresh.click):
            on(trigger, self._show, (), [self.table, self.panel, *cleared])
        on(self.version.input, lambda: self._no_preview, (), no_preview)
        previewed = on(self.look.click, self._preview, [self.version], no_preview)
        on(previewed.success, None, js=focus("history-effect"))
        on(self.cancel.click, lambda: self._cleared, (), cleared)
        written = on(self.write.click, self._write, [self.version, self.preview, self.reason],
                     [self.status, self.table, *cleared])  # fmt: skip
        on(written.success, None, js=focus("history-said"))

    @property
    def _no_preview(self) -> dict[Any, Any]:
        return {self.preview: None, self.effect: "", self.write: gr.update(interactive=False)}

    @property
    def _cleared(self) -> dict[Any, Any]:
        """Updates that empty the panel; the version before the last one is the most likely choice."""
        last = self.console.moderation.bank_service.bank.version if self.console.moderation.can_change else 1
        return self._no_preview | {self.version: str(max(last - 1, 1)), self.reason: ""}

    def _table(self) -> str:
        return self.console.views.history(self.console.moderation.bank_service.log())

    def _show(self, request: gr.Request) -> dict[Any, Any]:
        user, can_change = self.console.authenticator.user(request), self.console.moderation.can_change
        table = self._table() if can_change else sentence("No example bank is open (--bank BANK).")
        return self._cleared | {self.table: table, self.panel: gr.update(visible=user.may_change and can_change)}

    def _preview(self, version: str | None, request: gr.Request) -> dict[Any, Any]:
        self.console.authenticator.user(request).check_may_change()
        preview = self.console.moderation.preview_rollback(_version_number(version))
        html = self.console.views.impact(preview)
        return {self.preview: preview, self.effect: html, self.write: gr.update(interactive=True)}

    def _write(
        self, version: str | None, preview: ChangePreview | None, reason: str | None, request: gr.Request
    ) -> dict[Any, Any]:
        user = self.console.authenticator.user(request)
        user.check_may_change()
        entry = self.console.moderation.rollback(_version_number(version), preview, user.name, reason or "")
        message = f"Done: version {entry.version} of the bank has the content of version {entry.restores}."
        try:
            table: Any = self._table()
        except EXPECTED_ERRORS:  # the rollback itself is done
            table = gr.skip()
        return self._cleared | {self.status: sentence(message), self.table: table}


def _version_number(version: str | None) -> int:
    """Parse the number of a version. Raises `UserError` for text that is no number."""
    number = (version or "").strip()
    if not number.isdecimal() or len(number) > _MAX_DIGITS:
        raise UserError(f"{number[:_MAX_DIGITS]!r} is no version; give its number in the table.")
    return int(number)
