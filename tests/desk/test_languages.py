"""The languages of the desk."""

import json
import string
from collections import Counter
from pathlib import Path

import pytest
from catalogue_sentences import (
    FOR_PROGRAMS,
    PACKAGE,
    VALUES,
    bare_words,
    of_modules,
    of_reached,
    of_templates,
    with_values,
)

from ra_hmd.bank.identical import _REMEDY
from ra_hmd.core.problem import Problem
from ra_hmd.desk.class_names import ClassNames
from ra_hmd.desk.texts import DEFAULT, LANGUAGES, Texts, preferred_language
from ra_hmd.desk.verdict_view import VerdictWords

TEMPLATES = sorted((PACKAGE / "desk" / "templates").glob("*.html"))
SUBJECTS = {"{0}, at version {1},", _REMEDY}
"""What errors name or advise by a variable."""
OTHERS = sorted(set(LANGUAGES) - {DEFAULT})


def files(language: str) -> list[Path]:
    return sorted((PACKAGE / "desk" / "locales" / language).glob("*.json"))


def catalogue(language: str) -> dict[str, str]:
    return {key: value for path in files(language) for key, value in json.loads(path.read_text("utf-8")).items()}


def fields(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name is not None}


@pytest.mark.parametrize("language", OTHERS)
def test_every_sentence_of_the_pages_has_a_translation(language):
    known = catalogue(language)
    missing = {(file, sentence) for file, sentence in [*of_templates(), *of_modules()] if sentence not in known}
    missing |= {("values", word) for word in VALUES if word not in known}
    assert not missing


@pytest.mark.parametrize("language", OTHERS)
def test_every_error_from_below_that_a_page_may_show_has_a_translation(language):
    found = set(of_reached())
    assert [one for one in sorted(found) if one[1] not in {*catalogue(language), *FOR_PROGRAMS}] == []
    assert FOR_PROGRAMS - {sentence for _, sentence in found} == set()


@pytest.mark.parametrize("language", OTHERS)
def test_no_translation_is_left_over(language):
    sources = [*(PACKAGE / "desk").glob("*.py"), *TEMPLATES]
    text = "\n".join(path.read_text("utf-8") for path in sources)
    used = {sentence for _, sentence in [*of_templates(), *of_modules()]} | VALUES | set(with_values())
    used |= {sentence for _, sentence in of_reached()} | SUBJECTS
    quoted = (json.dumps(key, ensure_ascii=False) for key in catalogue(language))
    assert [key for key in quoted if json.loads(key) not in used and key not in text] == []


@pytest.mark.parametrize("language", OTHERS)
def test_a_sentence_stands_in_one_file_with_the_places_of_the_original(language):
    counts = Counter(key for path in files(language) for key in json.loads(path.read_text("utf-8")))
    assert [key for key, count in counts.items() if count > 1] == []
    assert [key for key, value in catalogue(language).items() if fields(key) != fields(value) or not value] == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_word_of_a_template_is_left_untranslated(path):
    assert bare_words(path) == []


def test_an_error_is_translated_with_its_values():
    german = Texts("de")
    assert german("ann has this case on the screen; take the next one.") == (
        "ann hat diesen Fall auf dem Bildschirm; nehmen Sie den nächsten."
    )
    assert german("Words that no catalogue has.") == "Words that no catalogue has."
    assert german("{braces} and [brackets]") == "{braces} and [brackets]"


def test_an_error_in_an_error_and_the_bank_in_it_are_translated():
    german = Texts("de")
    assert german("This meme cannot be judged: its picture cannot be opened as any of JPEG, PNG") == (
        "Dieses Meme kann nicht beurteilt werden: sein Bild ist in keinem der Formate JPEG, PNG"
    )
    assert german("The bank, at version 3, holds what version 2 held.") == (
        "Die Beispielsammlung (Stand 3) enthält schon, was Stand 2 enthielt."
    )
    assert german("The bank, at version 3, does not have these (1):\n  - id 'The bank'") == (
        "Die Beispielsammlung (Stand 3) hat diese nicht (1):\n  - id 'The bank'"
    )


def test_an_offered_reason_is_translated_and_what_a_person_wrote_is_not():
    german = Texts("de")
    assert german.chosen("The verdict is wrong") == "Das Urteil ist falsch"
    assert german.chosen("The verdict is wrong: see note: 2") == "Das Urteil ist falsch: see note: 2"
    assert german.chosen("agrees with bob: The verdict is wrong") == "stimmt bob zu: Das Urteil ist falsch"
    assert german.chosen("taken back: agrees with bob: no cake") == "zurückgenommen: stimmt bob zu: no cake"
    assert german.chosen("It is my shop") == "It is my shop"


@pytest.mark.parametrize(
    ("value", "limit", "says"),
    [
        (0.496, 0.499, "49,6 %; ab 49,9 % gilt „hasserfüllt“."),
        (0.3, 0.5, "30 %; ab 50 % gilt „hasserfüllt“."),
        (0.5, 0.5, "50 %; ab 50 % gilt „hasserfüllt“."),
    ],
)
def test_a_probability_near_its_threshold_has_the_decimals_that_tell_them_apart(value, limit, says):
    words = VerdictWords(ClassNames(Problem()), Texts("de"))
    verdict = {
        "verdict": 1,
        "head": "rkc",
        "scores": {"rkc": 0.1},
        "probabilities": {"rkc": value},
        "verdicts": {"rkc": 1},
    }
    assert words.view(verdict, {"rkc": [limit]}).reason == says


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("de-DE,de;q=0.9,en;q=0.8", "de"),
        ("fr,en;q=0.4,de;q=0.6", "de"),
        ("de;q=0,en", "en"),
        ("fr", "en"),
        ("", "en"),
        ("de;q=x", "en"),
    ],
)
def test_the_browsers_language_is_taken_by_its_weight(accepted, language):
    assert preferred_language(accepted) == language
