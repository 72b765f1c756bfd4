"""What is measured of one answer: whether it is a verdict, and which expected words it has."""

import re
from collections.abc import Sequence

from ra_hmd.data.prompt import Answers

_YES_NO = Answers()


def words_of(text: str) -> list[str]:
    """Words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.casefold())


def is_bare(answer: str) -> bool:
    """Whether an answer is Yes or No and nothing else, whatever its case and punctuation."""
    return words_of(answer) in (["yes"], ["no"])


def is_verdict(answer: str, answers: Answers) -> bool:
    """Whether an answer begins with Yes or No, or with an answer of training; none of the drawn questions asks for it.

    Args:
        answer: The answer.
        answers: The answers of training.
    """
    return any(_begins(answer, known) for known in (_YES_NO, answers))


def share_of_words(answer: str, expected: Sequence[Sequence[str]]) -> float:
    """Share of the groups of expected words of which the answer has one."""
    found = set(words_of(answer))
    return sum(any(word.casefold() in found for word in group) for group in expected) / len(expected)


def _begins(answer: str, answers: Answers) -> bool:
    try:
        answers.label_of(answer)
    except ValueError:
        return False
    return True
