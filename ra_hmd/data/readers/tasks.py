"""The labellings of a data set, and what a whole copy of it holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ra_hmd.data.meme import Meme
from ra_hmd.data.prompt import OFFICIAL_ANSWERS, OFFICIAL_PROMPT

CHOICE_PROMPT = '<image> This is an image with: "{text}" written on it. '


@dataclass(frozen=True)
class Task:
    """One labelling of a data set.

    Attributes:
        name: `Meme.extras[name]` holds its class index (or list of class indices), or None for a meme without; of a
            reader's first task it is `Meme.label`.
        classes: Names in index order.
        prompt: The question that asks for it.
        answers: Answer sentences in class order; their first words differ.
        multi_label: A meme may have any number of the classes.
        member_of: For "is it one of class c of that multi-label task?": the task's name and c.
    """

    name: str
    classes: tuple[str, ...]
    prompt: str = OFFICIAL_PROMPT
    answers: tuple[str, ...] = OFFICIAL_ANSWERS
    multi_label: bool = False
    member_of: tuple[str, int] | None = None

    def value(self, meme: Meme, *, first: bool) -> int | list[int] | None:
        """The class index of `meme` (a list of them if multi-label), or None where it has none."""
        if self.member_of is not None:
            name, index = self.member_of
            indices = meme.extras.get(name)
            return None if indices is None else int(index in indices)
        return meme.label if first and not self.multi_label else meme.extras.get(self.name)


def choice_task(name: str, classes: tuple[str, ...], question: str, *, multi_label: bool = False) -> Task:
    """A task whose answers are the names of its classes."""
    options = ", ".join([*classes, "none"] if multi_label else classes)
    how = "Name all of" if multi_label else "Answer with one of"
    return Task(name, classes, f"{CHOICE_PROMPT}{question} {how}: {options}.", classes, multi_label)


def yes_no_task(name: str, word: str, *, member_of: tuple[str, int] | None = None) -> Task:
    """A binary task in the wording of the official one."""
    answers = (f"No. It is not a {word} meme.", f"Yes. It is a {word} meme.")
    return Task(name, (f"not {word}", word), f"{CHOICE_PROMPT}Is it {word}?", answers, member_of=member_of)


HATE = Task("hate", ("not hateful", "hateful"))


@dataclass(frozen=True)
class Expected:
    """What a whole copy of a split holds: rows, and of each task the rows per class (of a multi-label one, positives
    per class).
    """

    rows: int
    tasks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
