"""The tab for single memes."""

from typing import Any

import gradio as gr

from ra_hmd.console.controller import Console
from ra_hmd.console.correction_panel import CorrectionPanel
from ra_hmd.console.gradio_utils import focus, on, sentence, status_region, upload
from ra_hmd.console.rationale_panel import RationalePanel
from ra_hmd.console.views import meme_figure
from ra_hmd.data.image_files import PICTURE_FORMAT_NAMES
from ra_hmd.data.meme import Meme
from ra_hmd.serve.uploads import count_pixels


class CheckTab:
    """Scores an uploaded meme, shows the verdict, and offers a correction."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.image, self.served = gr.State(None), gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self.upload = upload(label="Picture", file_types=["image"], height=150, elem_id="check-upload")
                gr.HTML(f"<p class='ra-small'>Drop it, paste it (Ctrl+V) or choose it: {PICTURE_FORMAT_NAMES}.</p>")
                self.preview = gr.HTML(elem_id="check-picture")
                self.caption = gr.Textbox(
                    label="Caption", info="The text on the picture. Left empty, it is read from the picture.",
                    lines=1, max_lines=6, elem_id="check-caption",
                )  # fmt: skip
                self.judge = gr.Button("Judge it (J)", variant="primary", elem_id="check-judge")
                self.correct = gr.Button("Correct it (C)", visible=False, elem_id="check-correct")
                self.correction = CorrectionPanel(console, "check", self.served)
            with gr.Column(scale=3, min_width=300):
                self.status = status_region("check")
                self.card = gr.HTML(elem_id="check-card")
                self.rationale = RationalePanel(console, "check", self.served)
        self._register_events()

    def _register_events(self) -> None:
        uploaded = [self.upload, self.image, self.preview, self.status, *self._cleared]
        on(self.upload.upload, self._keep_upload, [self.upload], uploaded)
        for trigger in (self.judge.click, self.caption.submit):
            judged = on(
                trigger, self._judge, [self.image, self.caption],
                [self.served, self.status, self.preview, self.card, self.correct, *self.rationale.parts,
                 *self.correction.closed],
            )  # fmt: skip
            on(judged.success, None, js=focus("check-card"))
        self.rationale.register_events()
        outputs = [self.status, self.card, self.served, *self.rationale.parts]
        self.correction.register_events(self.correct, self._corrected, outputs)

    @property
    def _cleared(self) -> dict[Any, Any]:
        return {
            self.served: None,
            self.card: "",
            self.correct: gr.update(visible=False),
            **self.rationale.hidden,
            **self.correction.closed,
        }

    def _keep_upload(self, image: bytes | None) -> dict[Any, Any]:
        """Keep an upload in memory, and show it blurred."""
        if image is None:
            return {self.upload: None}
        meme = Meme("upload", image)
        count_pixels(meme, self.console.limits)
        return {
            self.upload: None,
            self.image: image,
            self.preview: meme_figure(meme),
            self.status: sentence("The picture is here, blurred. Write its caption, or judge it."),
            **self._cleared,
        }

    def _judge(self, image: bytes | None, caption: str, request: gr.Request) -> dict[Any, Any]:
        user, moderation = self.console.authenticator.user(request), self.console.moderation
        served = self.console.check(image, caption)
        in_bank = moderation.labels_in_bank(served) if moderation.can_change else None
        return {
            self.served: served,
            self.status: sentence(f"Verdict: {self.console.names(served.verdict.verdict)}."),
            self.preview: self.console.views.figure(served),
            self.card: self.console.views.card(served, in_bank),
            self.correct: gr.update(visible=user.may_change and moderation.can_change),
            **self.rationale.offered,
            **self.correction.closed,
        }

    def _corrected(self, message: str, request: gr.Request) -> dict[Any, Any]:
        return {
            self.status: sentence(f"{message} Judge the meme again to see the verdict with it."),
            self.card: "",
            self.served: None,
            **self.rationale.hidden,
        }
