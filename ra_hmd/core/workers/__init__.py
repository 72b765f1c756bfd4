"""Units of work on an engine: this process, several processes of this machine, or a Ray cluster.

A unit is one file that is written, such as a shard of a feature store. What a command has to do is a list of units,
and a recipe that opens a worker for them; the worker is the same on every engine.
"""

from collections.abc import Callable, Iterable, Iterator

from ra_hmd.core.progress import track
from ra_hmd.core.workers.local import local_steps
from ra_hmd.core.workers.protocol import R, Step, U, Worker
from ra_hmd.core.workers.ray_pool import ray_steps
from ra_hmd.core.workers.settings import Engine, WorkerSettings

__all__ = ["Engine", "Step", "Worker", "WorkerSettings", "run_units"]


def run_units(
    open_worker: Callable[[], Worker[U, R]],
    units: Iterable[U],
    settings: WorkerSettings,
    *,
    description: str,
    total: int | None,
    noun: str,
    show: bool = True,
    processes: int = 1,
    ordered: bool = False,
) -> Iterator[R]:
    """Do units of work, and yield their results while one progress bar counts over all workers.

    Args:
        open_worker: Opens a worker; called once in each process or actor that works, so it is what a model is loaded
            in. It is pickled where it crosses to another process, and should be small. Relative paths start from the
            working directory of this process, which other nodes must have too.
        units: The units, taken as they are needed. Those that cross to another process are pickled too. A unit's `str`
            names it in messages.
        settings: The engine.
        description: Text before the progress bar.
        total: Sum of the steps' sizes; None if unknown.
        noun: What the sizes count, such as "memes".
        show: Whether to show the bar.
        processes: Processes of the local engine. One is this process, whose worker is given all units at once, so that
            it can read ahead; for workers that hold a model.
        ordered: Yield results in the order of the units also where another unit is done first.

    Raises:
        UserError: What a worker raised.
    """
    if settings.engine == "ray":
        steps = ray_steps(open_worker, units, settings, ordered=ordered)
    else:
        steps = local_steps(open_worker, units, processes)
    yield from _results(track(_sized(steps), description, total, noun, show=show))


def _sized(steps: Iterable[Step[R]]) -> Iterator[tuple[int, Step[R]]]:
    return ((step[0], step) for step in steps)


def _results(steps: Iterable[Step[R]]) -> Iterator[R]:
    return (result for _, result in steps if result is not None)
