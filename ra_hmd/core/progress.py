"""Progress bars of long commands, in terminals and in notebooks."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

_SECONDS_PER_UPDATE = 1.0
"""Of a bar in a notebook, whose file keeps every update."""


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel, or a command that a notebook started (`!ra-hmd …`).

    The output of a cell can return to the start of its line, but the cursor moves nowhere else. Rich takes it for a
    terminal all the same, because a kernel sets `FORCE_COLOR`, and would print a new line for each state of a bar;
    in the kernel itself its bars need `ipywidgets`.
    """
    started_by_kernel = os.environ.get("MPLBACKEND", "").startswith("module://matplotlib_inline")
    return _is_kernel() or "JPY_PARENT_PID" in os.environ or started_by_kernel


def _is_kernel() -> bool:
    """Whether the code of this process is that of a notebook's cells."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def notebook_safe_progress(*columns: ProgressColumn, console: Console | None = None) -> Progress:
    """A progress display whose `console` prints lines between the states of its bars. In a notebook there is no bar."""
    if not in_notebook():
        return Progress(*columns, console=console)
    return Progress(*columns, console=console or Console(force_jupyter=False), disable=True)


def track(
    batches: Iterable[tuple[int, T]], description: str, total: int | None, unit: str, *, show: bool = True
) -> Iterator[T]:
    """Yield the items, and show how many are done and at what rate: on stderr, in a notebook in the cell's output.

    Args:
        batches: (size, item) pairs. An item counts as done when the next one is requested.
        description: Text before the bar.
        total: Sum of the sizes, None if unknown.
        unit: Unit of the sizes.
        show: Whether to show the bar.
    """
    bar = _notebook_bar if in_notebook() else _terminal_bar
    with bar(description, total, unit, show) as advance:
        for size, batch in batches:
            yield batch
            advance(size)


@contextmanager
def _terminal_bar(description: str, total: int | None, unit: str, show: bool) -> Iterator[Callable[[int], object]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not show) as progress:
        task = progress.add_task(description, total=total, rate="")

        def advance(size: int) -> None:
            speed = progress.tasks[task].speed
            progress.update(task, advance=size, rate=f"{speed:.1f} {unit}/s" if speed else "")

        yield advance


@contextmanager
def _notebook_bar(description: str, total: int | None, unit: str, show: bool) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    with tqdm(
        desc=description,
        total=total,
        unit=f" {unit}",
        file=sys.stdout if _is_kernel() else sys.stderr,  # a kernel's own stderr is shown in red
        ncols=90,
        mininterval=_SECONDS_PER_UPDATE,
        disable=not show,
    ) as bar:
        yield bar.update
