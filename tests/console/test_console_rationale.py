"""A rationale on demand, where a language model is open: marked, and without influence on the verdict."""

import shutil
from pathlib import Path

import pytest
from gradio_calls import GradioPage
from servers import drawn, in_thread

from ra_hmd.console.controller import Console
from ra_hmd.console.mount import mount
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.explainer import Explainer
from ra_hmd.serve.app import create_app
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService

_SHORT = "<image> {text} {verdict}"


def test_a_rationale_is_generated_and_says_so(served_lmm: Path, tmp_path: Path) -> None:
    bank = Path(shutil.copytree(served_lmm / "bank", tmp_path / "bank"))
    detector = Detector.from_run(served_lmm / "run", bank)
    explainer = Explainer.of(detector, engine="transformers", question=_SHORT, max_new_tokens=4)
    service = BatchingService(detector)
    bank_service = BankService(service)
    app = create_app(service, bank_service, explainer)
    with in_thread(mount(app, Console(service, bank_service, explainer))) as client:
        page = GradioPage(client)
        with pytest.raises(RuntimeError, match="no meme yet"):
            page.press("check-why")
        page.press("check-upload", "upload", check_upload=page.upload(drawn()))
        judged = page.press("check-judge", check_caption="a cake")
        assert judged["check-why"]["visible"] is True
        assert 'data-head="lmh"' in judged["check-card"]
        said = " ".join(page.press("check-why")["check-rationale"].split())
        assert "generated" in said
        assert "It is not the cause of the verdict" in said
        again = page.press("check-judge", check_caption="a cake")
    scores = [card.split('data-score="')[1:] for card in (judged["check-card"], again["check-card"])]
    assert [one.split('"')[0] for one in scores[0]] == [one.split('"')[0] for one in scores[1]]
