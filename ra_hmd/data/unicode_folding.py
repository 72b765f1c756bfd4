"""Unicode folding of captions: one spelling for what looks alike, and nothing that cannot be seen.

The look-alikes are those of Unicode Technical Standard 39, from the package `confusable-homoglyphs`.
"""

import unicodedata
from functools import cache

import regex

# Scripts whose letters are mistaken for Latin ones; letters of other scripts are left as they are.
_SCRIPTS = ("Cyrillic", "Greek", "Armenian", "Cherokee", "Coptic", "Georgian", "Lisu")
_SMALL_CAPITALS = dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢɑɡ", "abcdefghijklmnoprstuvwyzag", strict=True))
_BOXED = {chr(first + n): chr(65 + n) for first in (0x1F150, 0x1F170) for n in range(26)}
"""White letters on black circles and squares, which have no compatibility decomposition."""

_BOX = r"(?:[\U0001F170-\U0001F189]\uFE0F?)++"
_BOXED_IN_WORD = regex.compile(rf"(?<=\p{{L}}){_BOX}|(?<![\U0001F170-\U0001F189\uFE0F]){_BOX}(?=\p{{L}})")

_JOINED = "".join(
    rf"\p{{Script={name}}}"
    for name in (
        *("Arabic", "Syriac", "Nko", "Mandaic", "Mongolian", "Phags_Pa", "Devanagari", "Bengali", "Gurmukhi"),
        *("Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Khmer", "Myanmar", "Tibetan"),
    )
)
_OVERRIDE = regex.compile(r"\u202E([^\u202C\n\r]*)\u202C?")
_RIGHT_TO_LEFT = regex.compile(r"[\p{Bidi_Class=R}\p{Bidi_Class=AL}]")
_NEVER_SEEN = regex.compile(
    r"[\p{Default_Ignorable_Code_Point}\p{Cc}--[\t\n\r\x0b\x0c\x1c-\x1f\x85\u180B-\u180D\u180F\u200C\u200D\uFE0E\uFE0F"
    r"\U000E0020-\U000E007F]]",
    flags=regex.V1,
)
_UNNEEDED = regex.compile(
    rf"(?<![{_JOINED}\p{{M}}])\u200C"
    rf"|(?<![{_JOINED}\p{{M}}])(?<!\p{{Extended_Pictographic}}\p{{M}}*[\uFE0F\U0001F3FB-\U0001F3FF]?)\u200D"
    r"|(?<=\p{L}|^)[\uFE0E\uFE0F]|(?<=[\uFE0E\uFE0F])[\uFE0E\uFE0F]"
    r"|(?<!\p{Script=Mongolian})[\u180B-\u180D\u180F]"
    r"|(?<!\U0001F3F4[\U000E0020-\U000E007F]*)[\U000E0020-\U000E007F]"
)
_GENERIC = r"\u0300-\u036F\u1AB0-\u1AFF\u1DC0-\u1DFF\u20D0-\u20FF\uFE20-\uFE2F"
_MARKED = regex.compile(rf"([^{_GENERIC}])([{_GENERIC}]+)|^[{_GENERIC}]+")
_REPEATED = regex.compile(r"(\p{M})\1+")
_KEYCAP = "\u20e3"
_TONES = "\u0300\u0301\u0302\u0303\u0304\u0308\u030c\u0323\u0331"
_TONE_BEARERS = "aeiouymnаеиоуыэюяіїєαεηιουω"
_ACCENTED = regex.compile(r"[\u00C0-\u024F\u0370-\u03FF\u0400-\u052F\u1E80-\u1EFF\u1F00-\u1FFF]")
_WORD = regex.compile(r"[\p{L}\p{M}]+")
_LATIN = regex.compile(r"\p{Script=Latin}")


def fold_caption(text: str) -> str:
    """Fold a caption: what looks alike is spelled alike, and what cannot be seen is left out. Idempotent.

    - Letters in other shapes (wide, bold, circled, in boxes, small capitals, ligatures) become plain ones, as in NFKC;
      fractions, punctuation, accents that stand alone, Thai and Lao vowels and emoji stay as they are.
    - Characters without width and bidirectional controls are removed, joiners only where neither the script nor an
      emoji needs them. Text between a right-to-left override and its end is put into the order in which it is read.
    - Accents that no orthography puts on their letter are removed. In a caption with such accents all those typed as
      characters of their own are; precomposed letters (é) stay.
    - In a word of two scripts the letters that look like those of the other are replaced. A word that consists of
      look-alikes of Latin letters is Latin in a caption that has Latin letters and no other evidence of its script.

    Captions of ASCII characters are unchanged.
    """
    if text.isascii() and not _NEVER_SEEN.search(text):
        return text
    for _ in range(8):  # a removed character may leave another one without the neighbour that it belonged to
        before, text = text, _fold_once(text)
        if text == before:
            break
    return text


def _fold_once(text: str) -> str:
    text = _BOXED_IN_WORD.sub(_unboxed, _OVERRIDE.sub(_as_read, text))
    text = _UNNEEDED.sub("", _NEVER_SEEN.sub("", text))
    text = "".join(map(_plain, text)).replace("\u2800", " ")
    text = _REPEATED.sub(r"\1", _without_decoration(text))
    text = unicodedata.normalize("NFC", text)
    return unicodedata.normalize("NFC", _in_one_script(text))


def _as_read(match: "regex.Match[str]") -> str:
    """The text of a right-to-left override in reading order; letters that run to the left anyway are in it."""
    inside = str(match[1])
    return inside if _RIGHT_TO_LEFT.search(inside) else "".join(reversed(regex.findall(r"\X", inside)))


def _unboxed(match: "regex.Match[str]") -> str:
    return "".join(_BOXED.get(one, "") for one in str(match[0]))


@cache
def _plain(letter: str) -> str:
    """A character in its plain shape."""
    if letter.isascii():
        return letter
    if letter in _SMALL_CAPITALS:
        return _SMALL_CAPITALS[letter]
    if regex.match(r"\p{Emoji}", letter):  # ™, ㊗ and the boxed A are emoji too
        return letter
    if letter in _BOXED:
        return _BOXED[letter]
    shape = unicodedata.decomposition(letter)
    if not shape.startswith("<") or shape.startswith("<fraction>") or letter in "\u00b5\u0e33\u0eb3":
        return letter
    if unicodedata.category(letter).startswith("P"):  # wide in Chinese and Japanese
        return letter
    plain = unicodedata.normalize("NFKC", letter)
    return letter if plain[:1] == " " and len(plain) > 1 else plain


def _without_decoration(text: str) -> str:
    """The text without accents that no orthography has; with one of them, without any that is a character of its own.

    Marks of the blocks for all scripts count, not those of a script, such as the vowels of Arabic or Thai.
    """
    marked = [(match[1], match[2]) for match in _MARKED.finditer(text)]
    if all(base and (marks == _KEYCAP or _is_written(base, marks)) for base, marks in marked):
        return text

    def kept(match: "regex.Match[str]") -> str:
        base, marks = match[1] or "", match[2] or ""
        return base + (_KEYCAP if _KEYCAP in marks and base in "0123456789#*\ufe0f" else "")

    return _MARKED.sub(kept, text)


def _is_written(base: str, marks: str) -> bool:
    """Whether an orthography puts these accents on this letter."""
    composed = unicodedata.normalize("NFC", base + marks)
    first, rest = composed[0], composed[1:]
    if not base.isalpha() or len(rest) > 1 or (first != base and not _ACCENTED.match(first)):
        return False
    plain = unicodedata.normalize("NFD", first)[0].lower()
    return not rest or (rest in _TONES and plain in _TONE_BEARERS)


@cache
def _lookalikes() -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Letter of another script to the Latin letter that it looks like, and for each script the reverse."""
    from confusable_homoglyphs.confusables import confusables_data

    latin: dict[str, str] = {}
    reverse: dict[str, dict[str, str]] = {name: {} for name in _SCRIPTS}
    for letter in sorted(confusables_data):
        script = _script(letter) if len(letter) == 1 else None
        targets = [one["c"] for one in confusables_data[letter] if regex.fullmatch("[A-Za-z]", one["c"])]
        if script is None or not targets:
            continue
        target = "I" if targets[0] == "l" and letter.upper() == letter else targets[0]
        if letter.isupper() and not target.isupper():
            continue  # the soft sign is a small b only to the eye
        latin[letter] = target
        reverse[script].setdefault(target, letter)
    return latin, reverse


@cache
def _script(letter: str) -> str | None:
    """Which of `_SCRIPTS` a letter is of."""
    if not regex.match(r"\p{L}", letter):
        return None
    return next((name for name in _SCRIPTS if regex.match(rf"\p{{Script={name}}}", letter)), None)


def _in_one_script(text: str) -> str:
    """The text with each word in one script, as far as look-alikes allow it."""
    if not any(map(_script, text)):
        return text
    latin, reverse = _lookalikes()
    words = [str(match[0]) for match in _WORD.finditer(text)]
    pure = [word for word in words if not _LATIN.search(word)]
    evident = {script for word in pure for letter in word if (script := _script(letter)) and letter not in latin}
    has_latin = len(pure) < len(words)

    def in_one(match: "regex.Match[str]") -> str:
        word = str(match[0])
        scripts = {letter: script for letter in word if (script := _script(letter))}
        here = set(scripts.values())
        if not here:
            return word
        script = next(iter(here))
        foreign = sum(letter in scripts for letter in word)
        mixed = len(here) > 1 or bool(_LATIN.search(word))
        if all(letter in latin for letter in scripts):
            of_latin = mixed or (has_latin and script not in evident and (len(word) > 1 or script != "Greek"))
            return "".join(latin.get(letter, letter) for letter in word) if of_latin else word
        theirs = [letter for letter in word if _LATIN.match(letter)]
        known = len(here) == 1 and all(letter in reverse[script] for letter in theirs)
        if known and theirs and foreign >= len(theirs) and len(word) > 2:
            return "".join(reverse[script].get(letter, letter) for letter in word)
        return word

    return _WORD.sub(in_one, text)
