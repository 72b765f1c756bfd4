"""Finished parts of a study that goes through a model, one JSON Lines file each: an interrupted run continues."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ra_hmd.core.artifacts import read_json, write_json, write_jsonl
from ra_hmd.core.errors import UserError
from ra_hmd.core.progress import track
from ra_hmd.data.rows import jsonl_rows

if TYPE_CHECKING:
    from accelerate import PartialState

_MARK = "fingerprint.json"


class Parts:
    """Parts of a run in a folder, and what the run depends on.

    Args:
        folder: The folder.
        stated: What the results depend on; parts of a run that states something else are refused.
        plan: Row numbers of each part.
    """

    def __init__(self, folder: Path, stated: dict[str, Any], plan: Sequence[Sequence[int]]) -> None:
        self.folder, self.stated, self.plan = folder, stated, plan

    def check(self) -> None:
        """Raise `UserError` if the folder holds the parts of another run."""
        old = self.mark().get("stated")
        if old is not None and old != self.stated:
            other = [name for name in self.stated if old.get(name) != self.stated[name]]
            raise UserError(
                f"{self.folder} holds scores of another run; what differs: {', '.join(other)}. Remove it, or give "
                "another --output."
            )

    def mark(self) -> dict[str, Any]:
        """Content of the fingerprint file; empty before the run begins."""
        path = self.folder / _MARK
        return read_json(path) if path.is_file() else {}

    def begin(self, **further: Mapping[str, Any]) -> None:
        """Record what the run depends on, and what else is to be known when it continues."""
        write_json(self.folder / _MARK, {"stated": self.stated, **{name: dict(one) for name, one in further.items()}})

    def path(self, number: int) -> Path:
        """Path of a part."""
        return self.folder / f"part-{number:05d}.jsonl"

    def missing(self) -> list[int]:
        """Numbers of the parts that are not finished."""
        return [number for number in range(len(self.plan)) if not self.path(number).is_file()]

    def missing_of(self, state: "PartialState") -> list[int]:
        """Numbers of the unfinished parts that this rank makes."""
        return [number for number in self.missing() if number % state.num_processes == state.process_index]

    def complete(
        self,
        numbers: Sequence[int],
        make: Callable[[Sequence[int]], Sequence[dict[str, Any]]],
        description: str,
        unit: str,
        *,
        show: bool,
    ) -> None:
        """Make and write parts, each as soon as it is finished.

        Args:
            numbers: Numbers of the parts.
            make: Row numbers of a part → its rows.
            description: Text before the progress bar.
            unit: What a row is.
            show: Whether to show the bar.
        """

        def made() -> Iterator[tuple[int, tuple[int, Sequence[dict[str, Any]]]]]:
            for number in numbers:
                yield len(self.plan[number]), (number, make(self.plan[number]))

        total = sum(len(self.plan[number]) for number in numbers)
        for number, rows in track(made(), description, total, unit, show=show):
            self.write(number, rows)

    def write(self, number: int, rows: Sequence[dict[str, Any]]) -> None:
        """Write a finished part, whose rows are those of the plan; each has its `id`."""
        write_jsonl(self.path(number), rows)

    def rows(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of all parts, in the order of `ids`.

        Raises:
            UserError: a part with other rows than planned.
        """
        found: dict[int, dict[str, Any]] = {}
        for number, planned in enumerate(self.plan):
            lines = [row.values for row in jsonl_rows(self.path(number))]
            if [line.get("id") for line in lines] != [ids[row] for row in planned]:
                raise UserError(f"{self.path(number)} is damaged; remove it, and run the same command again.")
            found |= dict(zip(planned, lines, strict=True))
        return [found[row] for row in range(len(ids))]
