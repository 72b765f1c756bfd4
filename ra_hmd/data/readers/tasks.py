"""The labellings (tasks) of a data set, and the counts of a whole copy."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ra_hmd.data.meme import Meme
from ra_hmd.data.prompt import OFFICIAL_ANSWERS, OFFICIAL_PROMPT

CHOICE_PROMPT = '<image> This is an image with: "{text}" written on it. '


@dataclass(frozen=True)
class Task:
    """One labelling of a data set.

    Attributes:
        name: Key of `Meme.extras` that holds the class index (or list of class indices); None for an unlabelled meme.
            The label of a reader's first task is `Meme.label`.
        classes: Class names in index order.
        prompt: The question.
        answers: Answer sentences in class order; their first words differ.
        multi_label: Whether a meme may have any number of the classes.
        member_of: For a binary task "does it have class c of a multi-label task?": name of that task, and c.
    """

    name: str
    classes: tuple[str, ...]
    prompt: str = OFFICIAL_PROMPT
    answers: tuple[str, ...] = OFFICIAL_ANSWERS
    multi_label: bool = False
    member_of: tuple[str, int] | None = None

    def value(self, meme: Meme, *, first: bool) -> int | list[int] | None:
        """Return the class index of a meme (a list of them if multi-label), or None if it is unlabelled."""
        if self.member_of is not None:
            name, index = self.member_of
            indices = meme.extras.get(name)
            return None if indices is None else int(index in indices)
        if first and isinstance(meme.label, int | None) and not self.multi_label:
            return meme.label
        value: int | list[int] | None = meme.extras.get(self.name)
        return value


def choice_task(name: str, classes: tuple[str, ...], question: str, *, multi_label: bool = False) -> Task:
    """Build a task whose answers are the names of its classes."""
    options = ", ".join([*classes, "none"] if multi_label else classes)
    how = "Name all of" if multi_label else "Answer with one of"
    return Task(name, classes, f"{CHOICE_PROMPT}{question} {how}: {options}.", classes, multi_label)


def yes_no_task(name: str, word: str, *, member_of: tuple[str, int] | None = None) -> Task:
    """Build a binary task in the wording of the official one."""
    answers = (f"No. It is not a {word} meme.", f"Yes. It is a {word} meme.")
    return Task(name, (f"not {word}", word), f"{CHOICE_PROMPT}Is it {word}?", answers, member_of=member_of)


HATE = Task("hate", ("not hateful", "hateful"))


@dataclass(frozen=True)
class Expected:
    """Counts of a whole copy of a split.

    Attributes:
        rows: Number of rows.
        tasks: Task → rows per class (for a multi-label task, positives per class).
    """

    rows: int
    tasks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
