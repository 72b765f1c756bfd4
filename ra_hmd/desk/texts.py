"""The words of the pages in several languages. An English sentence is the key of its translations.

`locales/<language>/` has one file per page, which are read as one catalogue; a sentence stands in one of them. An
error has its values in it already when a page gets it: its key has `{0}`, `{1}` in their places.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

LANGUAGES = {"en": "English", "de": "Deutsch"}
DEFAULT = "en"
_DECIMAL_MARKS = {"en": ".", "de": ","}


class Texts:
    """The sentences of one language.

    Args:
        language: Key of `LANGUAGES`.
    """

    def __init__(self, language: str) -> None:
        self.language = language if language in LANGUAGES else DEFAULT
        self._translations = _catalogue(self.language)

    def __call__(self, sentence: str, **values: Any) -> str:
        """A sentence in this language, with the `{names}` in it replaced by values."""
        translated = self._translations.get(sentence)
        if translated is None:
            translated = sentence if values else _translate_error(self.language, sentence)
        return translated.format(**values) if values else translated

    def chosen(self, reason: str) -> str:
        """A reason in this language: what the desk says and the reasons that it offers are translated, what a person
        wrote is not.
        """
        said, colon, rest = reason.partition(": ")
        translated = self(said)
        return translated + colon + (self.chosen(rest) if colon and translated != said else rest)

    def number(self, value: float, digits: int = 0) -> str:
        """A number with the decimal mark of this language."""
        return f"{value:.{digits}f}".replace(".", _DECIMAL_MARKS[self.language])


@cache
def _catalogue(language: str) -> Mapping[str, str]:
    if language == DEFAULT:
        return {}
    folder = resources.files("ra_hmd.desk") / "locales" / language
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    return {key: value for file in files for key, value in json.loads(file.read_text(encoding="utf-8")).items()}


@cache
def _error_patterns(language: str) -> list[tuple[re.Pattern[str], str]]:
    """Patterns of the sentences with values in places `{0}`, `{1}`, which errors fill in before a page has them."""
    keys = sorted((key for key in _catalogue(language) if "{0}" in key), key=len, reverse=True)  # the most exact first
    return [
        (re.compile(re.sub(r"\\{\d\\}", "(.*)", re.escape(key)), re.DOTALL), _catalogue(language)[key]) for key in keys
    ]


def _translate_error(language: str, sentence: str) -> str:
    for pattern, translation in _error_patterns(language):
        if found := pattern.fullmatch(sentence):
            return translation.format(*(_translate_part(language, part) for part in found.groups()))
    return sentence


def _translate_part(language: str, part: str) -> str:
    """A value in an error: another error, or “The bank”; words of people stay as they are."""
    known = _catalogue(language).get(part) if " " in part else None
    return known or _translate_error(language, part)


def preferred_language(accepted: str) -> str:
    """The first language of an `Accept-Language` header that there is, by its weights."""
    weighted = []
    for place, part in enumerate(accepted.split(",")):
        name, _, parameters = part.strip().partition(";")
        weight = parameters.strip().removeprefix("q=") if parameters else "1"
        try:
            weighted.append((-float(weight), place, name.strip().lower().split("-")[0]))
        except ValueError:
            continue
    return next((name for weight, _, name in sorted(weighted) if name in LANGUAGES and weight < 0), DEFAULT)
