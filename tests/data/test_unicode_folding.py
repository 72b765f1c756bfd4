"""Unicode folding of captions: attacks are undone, ordinary captions stay as they are."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ra_hmd.data.unicode_folding import fold_caption

ORDINARY = (
    "When you see it: 100 % – “quoted” … no! ¯\\_(ツ)_/¯ ½ cup, 5 µm",
    *("Привет, мир! Это мем про ёжика", "Ја и ти, мы love вас", "Приве\u0301т", "καλημέρα κόσμε LOVE", "α male"),
    *("Tiếng Việt rất đẹp", "ẹ̀kọ́ Yorùbá ń ṣe", "café naïve ñandú Łódź ışık", "ქართული", "հայերեն", "ᏣᎳᎩ"),
    *("שָׁלוֹם עולם", "مَرْحَبًا بالعالم", "می\u200cخواهم", "क्\u200dष नमस्ते", "ශ්\u200dරී ලංකා", "ภาษาไทย น้ำ", "ສະບາຍດີ ນ້ຳ"),
    *("你好，世界！（笑）", "こんにちは ガギグ パーティー", "안녕하세요 여러분"),
    *(
        "👩\u200d👩\u200d👧 👍🏽 1\ufe0f\u20e3 ❤\ufe0f 🇩🇪 ™\ufe0f",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "🅰 🅱",
    ),
)
PLAIN = "When the cat wakes you up"
DISGUISED = {
    "wide, bold, circled, small capitals": ("Ｗｈｅｎ 𝐭𝐡𝐞 ⓒⓐⓣ ᴡᴀᴋᴇꜱ 𝔶𝔬𝔲 ᵘᵖ", PLAIN),
    "Cyrillic and Greek letters": ("Whеn thе саt wаkеѕ уοu uр", PLAIN),
    "zero width": ("W\u2060hen\ufeff t\u200bhe c\u00ada\u200ct wa\u200dkes y\u034fo\u180eu up", PLAIN),
    "directions": ("\u202enehW\u202c the \u2067cat\u2069 wakes\u200e you \u202epu", PLAIN),
    "struck through": ("Wh\u0336e\u0336n t\u0337he cat wake\u20dds you up", PLAIN),
    "accents that no letter has": ("Wh\u0301e\u0323n\u0308 t\u0331he\u0301 ca\u0300\u0301\u0302t wakes you up", PLAIN),
    "tags and selectors": ("When\U000e0041 t\ufe0fhe cat\ufe00 wakes\U000e0100 you up", PLAIN),
    "letters in boxes": ("🅦🅷🅔🅽 the 🅱\ufe0foys", "WHEN the BOYS".replace("OYS", "oys")),
    "whole word of look-alikes": ("he is on the расе", "he is on the pace"),
    "Latin letters in a Russian word": ("привeт всем дрyзья", "привет всем друзья"),
    "narrow kana and Arabic forms": ("ｶﾀｶﾅ ﻣﺮﺣﺒﺎ", "カタカナ مرحبا"),
    "space within Devanagari": ("हि\u200bन्दी", "हिन्दी"),
    "decomposed": (unicodedata.normalize("NFD", "Tiếng Việt, café, ё й"), "Tiếng Việt, café, ё й"),
}


@pytest.mark.parametrize("caption", ORDINARY)
def test_ordinary_captions_stay_as_they_are(caption: str) -> None:
    caption = unicodedata.normalize("NFC", caption)
    assert fold_caption(caption) == caption


@pytest.mark.parametrize("name", DISGUISED)
def test_disguises_are_undone(name: str) -> None:
    disguised, plain = DISGUISED[name]
    assert fold_caption(disguised) == plain


def test_a_script_that_shows_elsewhere_keeps_its_words_of_lookalikes() -> None:
    assert fold_caption("рос и race") == "рос и race"
    assert fold_caption("рос race") == "poc race"


def test_precomposed_letters_survive_beside_decoration() -> None:
    assert fold_caption("café n\u0336o\u0336") == "café no"


def test_right_to_left_text_in_an_override_is_not_reversed() -> None:
    assert fold_caption("\u202eשלום\u202c") == "שלום"


_LETTERS = st.sampled_from(
    "aeWо\u0430рс\u0301\u0336\u200b\u200d\u200c\ufe0f\u202e\u202c\u20e31 🅱👩שم่ำﷺ½ⓦ\U000e0041\U0001f3f4каяα\u180b²"
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.text(_LETTERS)))
def test_folding_twice_changes_nothing_more(text: str) -> None:
    folded = fold_caption(text)
    assert fold_caption(folded) == folded


@given(st.text(st.characters(max_codepoint=126, min_codepoint=32)))
def test_ascii_is_unchanged(text: str) -> None:
    assert fold_caption(text) == text
