"""The classes of a served head: their names, and those of which a meme is flagged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import Problem

if TYPE_CHECKING:
    from ra_hmd.inference.detector import Detector

HATE = "hate"
"""The category that every head states: whether the meme is flagged."""
_BINARY = ("not hateful", "hateful")


@dataclass(frozen=True)
class ServedClasses:
    """Names of the classes, and those that flag a meme.

    Attributes:
        problem: Problem of the head.
        names: Name of each class, in the order of the labels.
        flagged: Indices of the classes that flag a meme, in order.
        named: Whether somebody gave the names, in options or in the training of the run.
    """

    problem: Problem
    names: tuple[str, ...]
    flagged: tuple[int, ...]
    named: bool

    @classmethod
    def of(cls, detector: "Detector", names: Sequence[str] = (), flagged: Sequence[int] = ()) -> "ServedClasses":
        """The classes of a detector.

        Args:
            detector: The detector.
            names: Names of the classes; by default those that its language model answers with, of two classes “not
                hateful” and “hateful”, else “class 0” and so on.
            flagged: Classes that flag a meme; by default class 1 of two, all of those of which a meme may have several,
                and else all but the first.

        Raises:
            UserError: there are not as many different names as classes, or a flagging class that there is not.
        """
        problem = detector.problem
        given = tuple(names) or _trained_names(detector)
        default = _BINARY if problem.kind == "binary" else tuple(f"class {n}" for n in range(problem.classes))
        found = given or default
        if len(found) != problem.classes or len(set(found)) != len(found) or not all(name.strip() for name in found):
            raise UserError(
                f"--class-name {', '.join(found)}: {problem.classes} different names are needed, in the order of the "
                "labels."
            )
        unknown = sorted(set(flagged) - set(range(problem.classes)))
        if unknown:
            raise UserError(f"--flag-class {unknown[0]}: the head has the classes 0 to {problem.classes - 1}.")
        first = 0 if problem.kind == "multi_label" else 1
        return cls(problem, found, tuple(sorted(set(flagged))) or tuple(range(first, problem.classes)), bool(given))

    def members(self, label: Any) -> list[bool]:
        """Whether a meme with this verdict or label has each class; none of them where it was left to a person."""
        if isinstance(label, list):
            return [bool(member) for member in label]
        return [number == label for number in range(self.problem.classes)]

    def probabilities(self, value: Any) -> list[float]:
        """Probability of each class, of the probability that a verdict states."""
        if isinstance(value, list):
            return [float(one) for one in value]
        return [1 - float(value), float(value)]

    def categories(self, values: Sequence[float]) -> dict[str, float]:
        """The value of each category: of `hate`, and of each class that has a name of its own.

        Args:
            values: Probability or membership of each class. `hate` is their sum over the classes that flag, and where
                a meme may have several classes the largest.
        """
        flagging = [values[number] for number in self.flagged]
        found = {HATE: max(flagging) if self.problem.kind == "multi_label" else min(sum(flagging), 1)}
        stated = self.problem.kind != "binary" or self.named
        return found | (dict(zip(self.names, values, strict=True)) if stated else {})


def _trained_names(detector: "Detector") -> tuple[str, ...]:
    """Names that the language model of a run answers with; none of an encoder, and of Yes and No."""
    run = getattr(detector.model, "run", None)
    if run is None or detector.problem.kind == "binary":
        return ()
    words: tuple[str, ...] = run.settings.expected_answers.words
    return words if len(words) == detector.problem.classes else ()
