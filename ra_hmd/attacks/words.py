"""Attacks on the words of a caption."""

import random
from collections.abc import Callable
from functools import partial

from ra_hmd.attacks.base import TEXT_CHANNELS, Attack
from ra_hmd.attacks.characters import replace_words

_POSITIVE = ("love", "peace", "happy", "friends", "thanks", "welcome", "kind", "lovely", "respect", "together")
_SENTENCES = (
    "Have a nice day, everyone.",
    "Good morning from the garden.",
    "The weather is lovely today.",
    "Coffee first, then the rest.",
    "Thank you for being here.",
    "Weekend at last.",
    "We wish you all the best.",
    "This made me smile.",
    "Greetings from the seaside.",
    "Take care of each other.",
)
_TAGS = (
    *("#meme", "#memes", "#monday", "#weekend", "#photo", "#daily", "#funny", "#instagood", "#today", "#picoftheday"),
    *("#follow", "#repost", "#humor", "#lol", "#viral", "#trending", "#share", "#classic", "#mood", "#random"),
)
# Pairs that mean about the same and judge nobody.
_SYNONYMS = {
    **{
        "when": "whenever",
        "wakes": "gets",
        "early": "soon",
        "knows": "understands",
        "best": "most",
        "other": "different",
    },
    **{"plans": "ideas", "nobody": "no one", "asked": "questioned", "waiting": "hoping", "new": "fresh"},
    **{"found": "discovered", "perfect": "flawless", "again": "once more", "every": "each", "tells": "recounts"},
    **{"stories": "tales", "old": "aged", "good": "fine", "guess": "suppose", "went": "travelled"},
    **{"cat": "kitty", "dog": "hound", "house": "home", "car": "automobile", "boat": "vessel", "cup": "beaker"},
    **{"big": "large", "small": "little", "fast": "quick", "looks": "seems", "says": "states"},
    **{"start": "begin", "stop": "halt", "need": "require"},
    **{"happy": "glad", "sad": "unhappy", "people": "folks", "friend": "pal", "money": "cash", "job": "work"},
    **{"always": "forever", "never": "not ever", "very": "really"},
    **{"think": "believe", "buy": "purchase", "kids": "children", "picture": "image", "angry": "cross", "help": "aid"},
    **{"everyone": "everybody", "someone": "somebody", "maybe": "perhaps", "also": "too"},
}


def positive_word(caption: str, generator: random.Random, *, words: int) -> str:
    """Add positive words at the end."""
    return " ".join([caption, *generator.sample(_POSITIVE, words)])


def benign_sentence(caption: str, generator: random.Random, *, sentences: int, before: bool) -> str:
    """Add harmless sentences before or after."""
    added = " ".join(generator.sample(_SENTENCES, sentences))
    return f"{added} {caption}" if before else f"{caption} {added}"


def hashtags(caption: str, generator: random.Random, *, tags: int) -> str:
    """Add neutral hashtags at the end."""
    return " ".join([caption, *generator.sample(_TAGS, tags)])


def synonyms(caption: str, generator: random.Random, *, words: int) -> str:
    """Replace words by neutral synonyms."""

    def other(word: str) -> str:
        found = _SYNONYMS[word.lower()]
        return found.upper() if word.isupper() else found.capitalize() if word[0].isupper() else found

    return replace_words(caption, generator, words, other, lambda word: word.lower() in _SYNONYMS, pattern=r"[^\W\d_]+")


def rephrase(caption: str, generator: random.Random, *, how: str) -> str:
    """Say the same in other words. A teacher does it before (`ra_hmd.attacks.rephrase`)."""
    raise NotImplementedError


def _attack(
    name: str, function: Callable[..., str], key: str, levels: tuple[int, int, int], *, positive_only: bool = False
) -> Attack:
    first, second, third = ({key: level} for level in levels)
    return Attack(name, "words", "text", function, (first, second, third), TEXT_CHANNELS, positive_only)


ATTACKS = (
    _attack("positive_word", positive_word, "words", (1, 2, 4), positive_only=True),
    _attack("benign_before", partial(benign_sentence, before=True), "sentences", (1, 2, 3), positive_only=True),
    _attack("benign_after", partial(benign_sentence, before=False), "sentences", (1, 2, 3), positive_only=True),
    _attack("hashtags", hashtags, "tags", (3, 6, 12)),
    _attack("synonyms", synonyms, "words", (1, 2, 4)),
    Attack(
        "rephrase",
        "words",
        "text",
        rephrase,
        ({"how": "some words"}, {"how": "all words"}, {"how": "hint"}),
        TEXT_CHANNELS,
        needs="a teacher that rephrases captions; give --endpoint and --model",
    ),
)
