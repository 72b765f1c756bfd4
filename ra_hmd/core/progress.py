"""The progress bar of long commands."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


def track(
    batches: Iterable[tuple[int, T]], description: str, total: int | None, unit: str, *, show: bool = True
) -> Iterator[T]:
    """Pass on the second of each pair, and show on stderr the sum of the first: how many are done, at what rate.

    A batch counts as done when the next one is asked for.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not show) as progress:
        task = progress.add_task(description, total=total, rate="")
        for size, batch in batches:
            yield batch
            speed = progress.tasks[task].speed
            progress.update(task, advance=size, rate=f"{speed:.1f} {unit}/s" if speed else "")
