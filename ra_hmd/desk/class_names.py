"""Names of a task's classes."""

from collections.abc import Sequence

from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import Problem

BINARY_NAMES = ("not hateful", "hateful")


class ClassNames:
    """Names of the classes.

    Args:
        problem: Problem of the detector.
        names: Name of each class; by default “not hateful” and “hateful”, or “class 0” and so on.

    Raises:
        UserError: There are not as many names as classes, or a name occurs twice.
    """

    def __init__(self, problem: Problem, names: Sequence[str] = ()) -> None:
        default = BINARY_NAMES if problem.kind == "binary" else [f"class {number}" for number in range(problem.classes)]
        self.problem, self.names = problem, list(names or default)
        if len(self.names) != problem.classes or len(set(self.names)) != len(self.names):
            raise UserError(
                f"--class-names {', '.join(self.names)}: {problem.classes} different names are needed, in the order of "
                "the labels."
            )
