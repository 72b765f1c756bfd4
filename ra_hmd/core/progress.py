"""Progress bar of long commands."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


def track(
    batches: Iterable[tuple[int, T]], description: str, total: int | None, unit: str, *, show: bool = True
) -> Iterator[T]:
    """Yield the items, and show on stderr how many are done and at what rate.

    Args:
        batches: (size, item) pairs. An item counts as done when the next one is requested.
        description: Text before the bar.
        total: Sum of the sizes, None if unknown.
        unit: Unit of the sizes.
        show: Whether to show the bar.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not show) as progress:
        task = progress.add_task(description, total=total, rate="")
        for size, batch in batches:
            yield batch
            speed = progress.tasks[task].speed
            progress.update(task, advance=size, rate=f"{speed:.1f} {unit}/s" if speed else "")
