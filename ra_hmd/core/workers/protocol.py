"""The interface of workers."""

from collections.abc import Iterator
from typing import Protocol, TypeAlias, TypeVar

U = TypeVar("U")
U_contra = TypeVar("U_contra", contravariant=True)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Step: TypeAlias = tuple[int, R | None]
"""How much was done since the last step (memes, say), and the result of the unit that this step finished; None within
a unit."""


class Worker(Protocol[U_contra, R_co]):
    """What does units of work, once it is opened: a function, or an object that holds a model.

    A unit is done twice where the machine that did it was lost before its end was known, and the other time perhaps by
    another worker: a unit writes its file atomically (`ra_hmd.core.artifacts.atomic_path`), with the same content each
    time.
    """

    def __call__(self, units: Iterator[U_contra]) -> Iterator[tuple[int, R_co | None]]:
        """Do the units in their order.

        Yields:
            Steps (see `Step`); the last one of each unit, and no other, has a result.

        Raises:
            UserError: The run ends with it, on any engine.
        """
