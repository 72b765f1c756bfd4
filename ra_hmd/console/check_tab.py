"""The tab on which one meme is judged."""

from typing import Any

import gradio as gr

from ra_hmd.console.controller import Console
from ra_hmd.console.correction_panel import CorrectionPanel, status_region
from ra_hmd.console.gradio_utils import focus, on, sentence, upload
from ra_hmd.console.moderation import Subject
from ra_hmd.console.rationale_panel import RationalePanel
from ra_hmd.console.views import picture
from ra_hmd.data.meme import Meme
from ra_hmd.serve.limits import FORMATS
from ra_hmd.serve.uploads import pixels


class CheckTab:
    """Drop a meme, see the verdict, correct it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.content, self.subject = gr.State(None), gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self.upload = upload(label="Picture", file_types=["image"], height=150, elem_id="check-upload")
                gr.HTML(f"<p class='ra-small'>Drop it, paste it (Ctrl+V) or choose it: {', '.join(FORMATS)}.</p>")
                self.preview = gr.HTML(elem_id="check-picture")
                self.caption = gr.Textbox(
                    label="Caption", info="What is written on it. Left empty, it is read from the picture.",
                    lines=1, max_lines=6, elem_id="check-caption",
                )  # fmt: skip
                self.judge = gr.Button("Judge it (J)", variant="primary", elem_id="check-judge")
                self.correct = gr.Button("Correct it (C)", visible=False, elem_id="check-correct")
                self.correction = CorrectionPanel(console, "check", self.subject)
            with gr.Column(scale=3, min_width=300):
                self.said = status_region("check")
                self.card = gr.HTML(elem_id="check-card")
                self.rationale = RationalePanel(console, "check", self.subject)
        self._wire()

    def _wire(self) -> None:
        taken = [self.upload, self.content, self.preview, self.said, *self._emptied]
        on(self.upload.upload, self._take, [self.upload], taken)
        for trigger in (self.judge.click, self.caption.submit):
            judged = on(
                trigger, self._judge, [self.content, self.caption],
                [self.subject, self.said, self.preview, self.card, self.correct, *self.rationale.parts,
                 *self.correction.closed],
            )  # fmt: skip
            on(judged.success, None, js=focus("check-card"))
        self.rationale.wire()
        self.correction.wire(self.correct, self._corrected, [self.said, self.card, self.subject, *self.rationale.parts])

    @property
    def _emptied(self) -> dict[Any, Any]:
        return {
            self.subject: None,
            self.card: "",
            self.correct: gr.update(visible=False),
            **self.rationale.hidden,
            **self.correction.closed,
        }

    def _take(self, content: bytes | None) -> dict[Any, Any]:
        """Keep an upload in memory, and show it blurred."""
        if content is None:
            return {self.upload: None}
        query = Meme("upload", content)
        pixels(query, self.console.settings)
        return {
            self.upload: None,
            self.content: content,
            self.preview: picture(query),
            self.said: sentence("The picture is here, blurred. Write its caption, or judge it."),
            **self._emptied,
        }

    def _judge(self, content: bytes | None, caption: str, request: gr.Request) -> dict[Any, Any]:
        person = self.console.authenticator.person(request)
        subject = self.console.check(content, caption)
        found = subject.answer.detection
        can_correct = person.may_change and self.console.moderation.can_change
        return {
            self.subject: subject,
            self.said: sentence(f"Verdict: {self.console.names(found.verdict)}."),
            self.preview: picture(subject.query, found.text, read=found.text_source != "given"),
            self.card: self._card(subject),
            self.correct: gr.update(visible=can_correct),
            **self.rationale.offered,
            **self.correction.closed,
        }

    def _card(self, subject: Subject) -> str:
        moderation = self.console.moderation
        known = moderation.labels_in_bank(subject) if moderation.can_change else None
        return self.console.views.card(subject.answer, known)

    def _corrected(self, said: str, request: gr.Request) -> dict[Any, Any]:
        return {
            self.said: sentence(f"{said} Judge the meme again to see the verdict with it."),
            self.card: "",
            self.subject: None,
            **self.rationale.hidden,
        }
