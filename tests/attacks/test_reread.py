"""Channel `reread` with the OCR engine itself."""

import pytest
from PIL import Image

from ra_hmd.attacks.apply import CleanMeme, attacked
from ra_hmd.attacks.base import Variant
from ra_hmd.attacks.drawing import CaptionLayout, Look
from ra_hmd.attacks.suites import ATTACKS
from ra_hmd.data.meme import Meme

CAPTION = "be like this puppy"


@pytest.mark.slow
def test_words_that_an_attack_drew_are_read_again() -> None:
    ground, boxes = Image.new("RGB", (480, 480), (70, 110, 90)), ((20, 10, 460, 80), (20, 400, 460, 470))
    picture = CaptionLayout(ground, boxes, (0.5, 0.5), Look(size=44, width=3), CAPTION).draw()
    clean = CleanMeme(Meme("large", picture, CAPTION, 1))  # of which only the pixels are known
    assert attacked(clean, Variant(ATTACKS["unchanged"], 1, "reread")).meme.text == CAPTION
    made, typed = (attacked(clean, Variant(ATTACKS["positive_word"], 2, way)).meme for way in ("reread", "field"))  # type: ignore[arg-type]
    assert made.text == typed.text != CAPTION
    assert made.extras["text_source"].startswith("ocr:rapidocr")
