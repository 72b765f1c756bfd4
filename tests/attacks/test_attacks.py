"""Each attack: its outcome at a fixed seed, and what it leaves as it was.

`golden.json` holds the caption or the digest of the pixels for each attack and severity. The pictures were looked at
when they were recorded; `python tests/attacks/test_attacks.py` records them again.
"""

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ra_hmd.attacks import locate
from ra_hmd.attacks.apply import CleanMeme, attacked
from ra_hmd.attacks.base import SEVERITIES, Variant
from ra_hmd.attacks.characters import HOMOGLYPHS
from ra_hmd.attacks.drawing import CaptionLayout, Look
from ra_hmd.attacks.suites import ATTACKS
from ra_hmd.core.artifacts import sha256_bytes
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.data.synthetic.pictograms import background, draw_pictogram, write_caption

GOLDEN = Path(__file__).with_name("golden.json")
CAPTION = "when the bunny wakes up early"
WITHOUT_TEACHER = [attack for attack in ATTACKS.values() if not attack.needs]


def scene() -> Image.Image:
    canvas = background((206, 240, 220), (176, 222, 196), "stripes").copy()
    draw_pictogram(canvas, "rabbit", (196, 52, 44), (24, 36), 70)
    return canvas


class Drawn(CleanMeme):
    """A drawn meme in memory, whose caption is known to the pixel."""

    def __init__(self, label: int = 1, caption: str = CAPTION) -> None:
        super().__init__(Meme("a1", write_caption(scene(), caption, "top"), caption, label))

    layout = property(lambda self: CaptionLayout(scene(), ((0, 0, 112, 28),), (1.0,), Look(), self.meme.caption))  # type: ignore[assignment]


def outcome(name: str, severity: int, channel: Any = None, label: int = 1, seed: int = 0) -> Meme:
    attack = ATTACKS[name]
    return attacked(Drawn(label), Variant(attack, severity, channel or attack.channels[0]), seed).meme


def pixels(meme: Meme) -> np.ndarray:
    return np.asarray(meme.load_image())


def digest(meme: Meme) -> str:
    image = meme.load_image()
    return sha256_bytes(repr(image.size).encode(), image.tobytes())[:16]


def record() -> dict[str, str]:
    found = {}
    for attack in WITHOUT_TEACHER:
        for severity in SEVERITIES if any(attack.parameters) else ():
            meme = outcome(attack.name, severity, "field" if attack.target == "text" else "picture")
            found[f"{attack.name}-{severity}"] = meme.caption if attack.target == "text" else digest(meme)
    found["typos-2, drawn"] = digest(outcome("typos", 2, "picture"))
    found["benign_after-3, drawn"] = digest(outcome("benign_after", 3, "picture"))
    return found


def test_every_attack_gives_what_was_recorded() -> None:
    assert record() == json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("attack", WITHOUT_TEACHER, ids=lambda attack: attack.name)
def test_an_attack_keeps_label_and_split_and_depends_on_seed_and_id_alone(attack: Any) -> None:
    for severity in SEVERITIES if any(attack.parameters) else ():
        for channel in (one for one in attack.channels if one != "reread"):
            first, again = (outcome(attack.name, severity, channel) for _ in range(2))
            assert (first.text, digest(first)) == (again.text, digest(again))
            assert (first.label, first.split) == (1, "")
            assert first.extras["attack_changed"]
    assert all(str.isidentifier(attack.name) for attack in ATTACKS.values())


@pytest.mark.parametrize("name", ["positive_word", "benign_before", "benign_after"])
def test_words_that_would_prove_nothing_on_harmless_memes_are_not_added_there(name: str) -> None:
    clean = Drawn(label=0)
    made = attacked(clean, Variant(ATTACKS[name], 3, "both"))
    assert made.meme.text == CAPTION
    assert digest(made.meme) == digest(clean.meme)
    assert made.reason == "of a class that the attack is not applied to"


def test_a_reader_still_sees_the_same_letters() -> None:
    for severity in SEVERITIES:
        read = {name: outcome(name, severity, "field").caption for name in ATTACKS if ATTACKS[name].target == "text"}
        assert "".join(one for one in read["zero_width"] if unicodedata.category(one) != "Cf") == CAPTION
        back = {other: letter for letter, other in HOMOGLYPHS.items()}
        assert "".join(back.get(one, one) for one in read["homoglyphs"]) == CAPTION
        plain = unicodedata.normalize("NFD", read["combining"])
        assert "".join(one for one in plain if not unicodedata.combining(one)) == CAPTION
        assert read["spacing"].replace(" ", "") == CAPTION.replace(" ", "")
        assert read["case"].lower() == CAPTION
        shown = "".join(
            part.partition("\u202c")[0][::-1] + part.partition("\u202c")[2] if number else part
            for number, part in enumerate(read["bidi"].split("\u202e"))
        )
        assert shown == CAPTION
        for name in ("positive_word", "benign_after", "hashtags"):
            assert read[name].startswith(f"{CAPTION} ")
        assert read["benign_before"].endswith(f" {CAPTION}")
        assert len(read["typos"].split()) == len(read["leet"].split()) == len(CAPTION.split())


def test_a_higher_severity_changes_more() -> None:
    def words(name: str, severity: int) -> int:
        made = outcome(name, severity, "field").caption.split()
        return sum(one != two for one, two in zip(made, CAPTION.split(), strict=True))

    assert [words("typos", severity) for severity in SEVERITIES] == [1, 2, 4]
    for name in ("noise", "salt", "jpeg", "blur", "rescale", "spread", "grey"):
        clean = pixels(Drawn().meme).astype(int)
        far = [np.abs(pixels(outcome(name, severity)).astype(int) - clean).mean() for severity in SEVERITIES]
        assert far == sorted(far), name
        assert far[0] > 0, name


def test_the_layout_of_a_drawn_meme_gives_its_picture_again() -> None:
    clean = Drawn()
    assert clean.layout.draw().tobytes() == clean.image.tobytes()


def test_attacks_on_the_caption_leave_the_rest_of_the_picture() -> None:
    clean = pixels(Drawn().meme)
    for name in ("font", "font_size", "colour", "outline", "lines", "salt_text", "mirrored_text"):
        assert (pixels(outcome(name, 3))[40:] == clean[40:]).all(), name
        assert (pixels(outcome(name, 3))[:28] != clean[:28]).any(), name


def test_a_long_caption_gets_smaller_letters_and_more_room() -> None:
    layout = Drawn().layout
    fill, _ = layout.masks(" ".join(["bunny"] * 30))
    rows = np.asarray(fill).any(1).nonzero()[0]
    assert rows[-1] > 28
    assert np.asarray(fill).any(0).nonzero()[0][[0, -1]].tolist() >= [0, 100]


FAILS = (((0, 0, 0, 0), "fails"),)


class Engine:
    """Stands for OCR: the same lines on every picture."""

    def __init__(self, *lines: tuple[tuple[int, int, int, int], str]) -> None:
        self.lines = lines

    def __call__(self, image: Any) -> Any:
        if self.lines == FAILS:
            raise RuntimeError("no such picture")
        corners = [np.array([[x, y], [x2, y], [x2, y2], [x, y2]], float) for (x, y, x2, y2), _ in self.lines]
        txts = tuple(text for _, text in self.lines)
        return type("Result", (), {"boxes": corners, "txts": txts, "scores": (0.9,) * len(txts)})()


def with_ocr(monkeypatch: pytest.MonkeyPatch, *lines: tuple[tuple[int, int, int, int], str]) -> None:
    monkeypatch.setattr(locate, "_engine", lambda: (Engine(*lines), "ocr:stand-in"))


def test_the_caption_of_other_memes_is_drawn_where_ocr_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with_ocr(monkeypatch, ((60, 10, 240, 34), "ONE TWO"), ((60, 38, 240, 62), "THREE"), ((60, 250, 240, 280), "FOUR"))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 200, (300, 300, 3), dtype=np.uint8))
    clean = CleanMeme(Meme("m", image, "one two three four", 1))
    assert clean.layout is not None
    assert clean.layout.boxes == ((58, 8, 242, 64), (58, 248, 242, 282))
    assert clean.layout.shares == (0.75, 0.25)
    made = attacked(clean, Variant(ATTACKS["case"], 1, "picture")).meme
    changed = (pixels(made) != np.asarray(image)).any(2)
    assert changed[8:64].any()
    assert changed[248:282].any()
    assert not changed[70:240].any()


@pytest.mark.parametrize("lines", [(), FAILS], ids=["no_words", "ocr_fails"])
def test_a_picture_without_words_is_left_as_it_is(lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with_ocr(monkeypatch, *lines)
    clean = CleanMeme(Meme("m", Image.new("RGB", (64, 64)), "a caption", 1))
    for name, channel, text in (
        ("case", "picture", "a caption"),
        ("case", "both", "A CAPTION"),
        ("font", "picture", "a caption"),
    ):
        made = attacked(clean, Variant(ATTACKS[name], 1, channel))  # type: ignore[arg-type]
        assert made.meme.text == text
        assert made.meme.image is clean.meme.image
        assert made.reason == ("" if channel == "both" else "its picture shows no caption")


def test_reread_takes_the_caption_from_the_attacked_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    with_ocr(monkeypatch, ((0, 0, 100, 20), "what OCR reads"))
    made = outcome("jpeg", 3, "reread")
    assert made.text == "what OCR reads"
    assert made.extras["text_source"] == "ocr:stand-in"
    assert digest(made) == digest(outcome("jpeg", 3, "picture"))
    alone = outcome("unchanged", 1)
    assert (alone.text, digest(alone)) == ("what OCR reads", digest(Drawn().meme))


def test_a_picture_on_which_ocr_fails_has_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with_ocr(monkeypatch, *FAILS)
    assert outcome("jpeg", 3, "reread").text == ""


def test_a_meme_that_cannot_be_read_ends_with_a_sentence() -> None:
    broken = CleanMeme(Meme("m", b"no picture", "a caption", 1))
    with pytest.raises(UserError, match="cannot be decoded"):
        attacked(broken, Variant(ATTACKS["jpeg"], 1, "picture"))


@pytest.mark.parametrize("size", [(1, 1), (200, 3)], ids=str)
@pytest.mark.parametrize("caption", ["x" * 30, "日本語 の テキスト"])
def test_no_picture_is_too_small_or_thin(size: tuple[int, int], caption: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    layout = CaptionLayout(image, ((0, 0, size[0], max(1, size[1] // 4)),), (1.0,), Look(), caption)
    for attack in WITHOUT_TEACHER:
        for severity in SEVERITIES if attack.target != "text" else ():
            given = image if attack.target == "image" else layout
            assert attack.change(given, severity, random.Random(0)).mode == "RGB"


def test_captions_without_letters_are_left_as_they_are() -> None:
    for name in ("typos", "leet", "homoglyphs", "zero_width", "spacing", "emoji", "synonyms"):
        for text in ("", "1 2 3", "?!"):
            assert ATTACKS[name].change(text, 3, random.Random(0)) == text


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(record(), ensure_ascii=True, indent=1) + "\n", encoding="utf-8")
