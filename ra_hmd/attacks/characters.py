"""Attacks on the characters of a caption."""

import random
import re
from collections.abc import Callable

from ra_hmd.attacks.base import TEXT_CHANNELS, Attack

_WORD = re.compile(r"[^\W\d_]{3,}")
_LEET = {"a": "4", "e": "3", "g": "9", "i": "1", "o": "0", "s": "5", "t": "7", "b": "8", "l": "|", "z": "2"}
# Letters of other scripts that look like Latin ones, in the fonts that ship with matplotlib too.
_LATIN = "aceijopsxyABEHIKMOPTXYZ"
_LOOKALIKE = "асеіјорѕхуАВЕНІКМОРТХΥΖ"
HOMOGLYPHS = dict(zip(_LATIN, _LOOKALIKE, strict=True))
"""Latin letter to a Cyrillic or Greek one that looks like it."""
_ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"
_MARKS = "\u0300\u0301\u0302\u0303\u0308\u0323\u0331"
_OVERRIDE, _POP = "\u202e", "\u202c"
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_EMOJI = {
    **{"cat": "🐱", "kitten": "🐱", "dog": "🐶", "puppy": "🐶", "fish": "🐟", "goldfish": "🐟", "bird": "🐦"},
    **{"sparrow": "🐦", "snail": "🐌", "slug": "🐌", "rabbit": "🐰", "bunny": "🐰", "house": "🏠", "cottage": "🏠"},
    **{"car": "🚗", "taxi": "🚕", "tree": "🌳", "oak": "🌳", "cup": "☕", "mug": "☕", "boat": "⛵", "ship": "🚢"},
    **{"umbrella": "☂️", "parasol": "⛱️", "love": "❤️", "heart": "❤️", "money": "💰", "fire": "🔥", "sun": "☀️"},
    **{"rain": "🌧️", "snow": "❄️", "man": "👨", "men": "👨", "woman": "👩", "women": "👩", "girl": "👧", "boy": "👦"},
    **{"baby": "👶", "people": "👥", "family": "👪", "king": "🤴", "queen": "👸", "police": "👮", "school": "🏫"},
    **{"book": "📖", "phone": "📱", "computer": "💻", "food": "🍽️", "pig": "🐷", "monkey": "🐒", "horse": "🐴"},
    **{"snake": "🐍", "rat": "🐀", "eyes": "👀", "hand": "✋", "hands": "🙌", "good": "👍", "bad": "👎", "happy": "😊"},
    **{"sad": "😢", "angry": "😠", "sleep": "😴", "think": "🤔", "world": "🌍", "church": "⛪", "work": "💼"},
    **{"wakes": "⏰", "early": "🌅", "waiting": "⏳", "guess": "🤔", "stories": "📖", "one": "1️⃣", "two": "2️⃣"},
    **{"perfect": "💯", "new": "🆕", "best": "🥇", "stop": "🛑", "go": "🏃", "home": "🏠", "water": "💧", "beer": "🍺"},
}


def typos(caption: str, generator: random.Random, *, words: int) -> str:
    """Swap, drop, double or replace one inner letter of some words."""
    return replace_words(caption, generator, words, lambda word: _typo(word, generator))


def leet(caption: str, generator: random.Random, *, share: float) -> str:
    """Replace letters by digits that look like them."""
    return _letters(caption, generator, share, lambda one: one.lower() in _LEET, lambda one: _LEET[one.lower()])


def homoglyphs(caption: str, generator: random.Random, *, share: float) -> str:
    """Replace Latin letters by Cyrillic or Greek ones that look like them."""
    return _letters(caption, generator, share, HOMOGLYPHS.__contains__, HOMOGLYPHS.__getitem__)


def zero_width(caption: str, generator: random.Random, *, share: float) -> str:
    """Put characters without width between letters."""
    return _letters(caption, generator, share, str.isalpha, lambda one: one + generator.choice(_ZERO_WIDTH))


def combining(caption: str, generator: random.Random, *, share: float, marks: int) -> str:
    """Put accents above and below letters."""
    return _letters(
        caption, generator, share, str.isalpha, lambda one: one + "".join(generator.choices(_MARKS, k=marks))
    )


def spacing(caption: str, generator: random.Random, *, words: int) -> str:
    """Put blanks between the letters of some words, and two around these words."""
    parts = caption.split(" ")
    long = [place for place, part in enumerate(parts) if sum(map(str.isalpha, part)) > 1]
    chosen = set(generator.sample(long, min(words, len(long))))
    spaced = [" ".join(part) if place in chosen else part for place, part in enumerate(parts)]
    gaps = [" " * (1 + (place in chosen or place + 1 in chosen)) for place in range(len(parts) - 1)]
    return "".join(one for pair in zip(spaced, [*gaps, ""], strict=True) for one in pair)


def bidi(caption: str, generator: random.Random, *, words: int) -> str:
    """Store some words backwards between control characters that show them in reading order."""
    return replace_words(caption, generator, words, lambda word: f"{_OVERRIDE}{word[::-1]}{_POP}")


def emoji(caption: str, generator: random.Random, *, words: int) -> str:
    """Replace words by emoji that mean them."""
    return replace_words(
        caption,
        generator,
        words,
        lambda word: _EMOJI[word.lower()],
        lambda word: word.lower() in _EMOJI,
        pattern=r"[^\W\d_]+",
    )


def case(caption: str, generator: random.Random, *, style: str) -> str:
    """Write all letters large, every second one, or a random half; a caption in capitals becomes small first."""
    if style == "upper":
        return caption.lower() if caption.isupper() else caption.upper()
    letters, place = list(caption.lower()), 0
    for number, letter in enumerate(letters):
        if letter.isalpha():
            large = place % 2 == 1 if style == "alternating" else generator.random() < 0.5
            letters[number] = letter.upper() if large else letter
            place += 1
    return "".join(letters)


def _letters(
    caption: str,
    generator: random.Random,
    share: float,
    eligible: Callable[[str], bool],
    change: Callable[[str], str],
) -> str:
    """Change a share of the eligible letters, one at least."""
    places = [place for place, letter in enumerate(caption) if eligible(letter)]
    chosen = set(generator.sample(places, min(len(places), max(1, round(share * len(places))))))
    return "".join(change(letter) if place in chosen else letter for place, letter in enumerate(caption))


def replace_words(
    caption: str,
    generator: random.Random,
    count: int,
    change: Callable[[str], str],
    eligible: Callable[[str], bool] = bool,
    *,
    pattern: str | re.Pattern[str] = _WORD,
) -> str:
    """Change as many words as `count`, or as many as there are."""
    found = [match for match in re.finditer(pattern, caption) if eligible(match[0])]
    chosen = sorted(generator.sample(range(len(found)), min(count, len(found))))
    parts, end = [], 0
    for match in (found[number] for number in chosen):
        parts += [caption[end : match.start()], change(match[0])]
        end = match.end()
    return "".join([*parts, caption[end:]])


def _typo(word: str, generator: random.Random) -> str:
    """The word with one slip, different from it."""
    place = generator.randrange(len(word) - 1) if len(word) < 4 else generator.randrange(1, len(word) - 2)
    slips = [
        word[:place] + word[place + 1] + word[place] + word[place + 2 :],
        word[:place] + word[place + 1 :],
        word[:place] + word[place] + word[place:],
        word[:place] + _neighbour(word[place], generator) + word[place + 1 :],
    ]
    return generator.choice([slip for slip in slips if slip != word])


def _neighbour(letter: str, generator: random.Random) -> str:
    """A letter beside this one on the keyboard."""
    row = next((row for row in _ROWS if letter.lower() in row), None)
    if row is None:
        return letter
    at = row.index(letter.lower())
    near = generator.choice(row[max(at - 1, 0) : at] + row[at + 1 : at + 2])
    return near.upper() if letter.isupper() else near


def _attack(name: str, function: Callable[..., str], key: str, levels: tuple[object, object, object]) -> Attack:
    first, second, third = ({key: level} for level in levels)
    return Attack(name, "characters", "text", function, (first, second, third), TEXT_CHANNELS)


def _typed(name: str, function: Callable[..., str], key: str, levels: tuple[object, object, object]) -> Attack:
    """An attack that a picture does not show, or that its fonts cannot draw."""
    first, second, third = ({key: level} for level in levels)
    return Attack(name, "characters", "text", function, (first, second, third), ("field",))


ATTACKS = (
    _attack("typos", typos, "words", (1, 2, 4)),
    _attack("leet", leet, "share", (0.2, 0.5, 1.0)),
    _typed("homoglyphs", homoglyphs, "share", (0.1, 0.3, 0.6)),
    _typed("zero_width", zero_width, "share", (0.1, 0.3, 0.6)),
    Attack(
        "combining",
        "characters",
        "text",
        combining,
        ({"share": 0.1, "marks": 1}, {"share": 0.3, "marks": 1}, {"share": 0.6, "marks": 2}),
        TEXT_CHANNELS,
    ),
    _attack("spacing", spacing, "words", (1, 2, 99)),
    _typed("bidi", bidi, "words", (1, 2, 4)),
    _typed("emoji", emoji, "words", (1, 2, 4)),
    _attack("case", case, "style", ("upper", "alternating", "random")),
)
