"""Words of the page for heads, classes and reasons, for readers who know nothing of models."""

from collections.abc import Sequence
from typing import Any

from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head
from ra_hmd.core.problem import Problem
from ra_hmd.scoring.knn_classifier import ABSTAINED

HEADS: dict[Head, tuple[str, str]] = {
    "lmh": ("LMH", "what the language model itself answers when it is asked about the meme"),
    "lrc": ("LRC", "a classifier that was trained on how the model sees memes"),
    "rkc": ("RKC", "a vote of the most similar memes of the bank, whose labels people gave"),
    "krr": ("KRR", "a smooth function fitted to all memes of the bank, to which similar ones add most"),
}
REASONS = (
    "The verdict is wrong",
    "The meaning comes from picture and words together",
    "Reclaimed, or quoted to criticise",
    "Depends on context outside the picture",
    "The earlier label was a mistake",
)
BINARY_NAMES = ("not hateful", "hateful")


class ClassNames:
    """Names of the classes.

    Args:
        problem: Problem of the detector.
        names: Name of each class; by default “not hateful” and “hateful”, or “class 0” and so on.

    Raises:
        UserError: there are not as many names as classes, or a name occurs twice.
    """

    def __init__(self, problem: Problem, names: Sequence[str] = ()) -> None:
        default = BINARY_NAMES if problem.kind == "binary" else [f"class {number}" for number in range(problem.classes)]
        self.problem, self.names = problem, list(names or default)
        if len(self.names) != problem.classes or len(set(self.names)) != len(self.names):
            raise UserError(
                f"--class-names {', '.join(self.names)}: {problem.classes} different names are needed, in the order of "
                "the labels."
            )

    def __call__(self, label: Any) -> str:
        """Return a label or verdict in words."""
        if label is None or label == ABSTAINED:
            return "left to a person"
        if isinstance(label, list):
            return ", ".join(name for name, member in zip(self.names, label, strict=True) if member) or "none of them"
        return self.names[label]

    def choices(self) -> list[tuple[str, int]]:
        """Return name and class index of each option of a choice."""
        return [(name, number) for number, name in enumerate(self.names)]

    def opposite(self, verdict: int | list[int] | None) -> int | list[int] | None:
        """Return the most likely correction of a verdict: of two classes the other one, else the verdict itself or
        nothing.
        """
        if self.problem.kind == "binary" and isinstance(verdict, int):
            return 1 - verdict
        return list(verdict) if isinstance(verdict, list) else None

    def label_of(self, chosen: Any) -> int | list[int]:
        """Return the label of a choice: a class index, or a list of class indices.

        Raises:
            UserError: nothing was chosen, or something that is no class.
        """
        count = len(self.names)
        if self.problem.kind == "multi_label" and isinstance(chosen, list) and set(chosen) <= set(range(count)):
            return [int(number in chosen) for number in range(count)]
        if self.problem.kind != "multi_label" and isinstance(chosen, int) and 0 <= chosen < count:
            return int(chosen)
        raise UserError("Choose what the meme is.")


def format_number(value: float) -> str:
    """Format a score or a probability."""
    return f"{value:.3f}"
