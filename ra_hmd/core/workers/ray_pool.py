"""Work units on the actors of a Ray cluster, whose nodes may die, and others join, at any time."""

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Generic

from ra_hmd.core.errors import UserError, first_line
from ra_hmd.core.workers.protocol import R, Step, U, Worker
from ra_hmd.core.workers.ray_actor import WorkerActor, versions
from ra_hmd.core.workers.ray_cluster import describe_room, joined_cluster, room, worker_resources
from ra_hmd.core.workers.settings import WorkerSettings

MOST_LOSSES = 5
"""Workers that may end while they do the same unit, before the run ends."""
_MOST_FAILED_STARTS = 3  # of each worker, with none that is ready in between
_FIRST_NOTE_S, _LOOK_S = 30.0, 2.0
_NAMED, _CAUSE = 5, 240  # units in a note, characters of an error of Ray
_AHEAD = 4  # units per worker that may be done before an earlier one, where results are wanted in order


@dataclass
class _Task(Generic[U]):
    """A unit, how often its worker was lost, and how much of it is done."""

    number: int
    unit: U
    losses: int = 0
    done: int = 0


@dataclass(eq=False)
class _Hired(Generic[U]):
    """An actor, and what it does now: it waits for a node, opens its worker, waits for a unit, or does one."""

    handle: Any
    doing: str = "starts"
    task: _Task[U] | None = None


def ray_steps(
    open_worker: Callable[[], Worker[U, R]], units: Iterable[U], settings: WorkerSettings, *, ordered: bool
) -> Iterator[Step[R]]:
    """Steps of the workers of a cluster, in the order in which they are done; see `run_units`.

    A step's size is negative where a worker was lost: what it had done of its unit is done again.
    """
    with joined_cluster(settings), _interrupts() as check_interrupted:
        pool: _Pool[U, R] = _Pool(open_worker, units, settings, ordered=ordered)
        try:
            yield from pool.steps(check_interrupted)
        finally:
            pool.dismiss()


@contextmanager
def _interrupts() -> Iterator[Callable[[], None]]:
    """Keep a Ctrl-C for the function that is yielded, which raises `KeyboardInterrupt`; a second one is raised at once.

    Ray's compiled calls may lose an exception that a signal raises in them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    pressed = False

    def note(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


class _Pool(Generic[U, R]):
    """Actors, and the units that are left to do.

    Actors are not restarted by Ray, and its tasks not repeated: a lost actor's unit goes back to the list, and another
    actor is asked for as long as the cluster has room.
    """

    def __init__(
        self, open_worker: Callable[[], Worker[U, R]], units: Iterable[U], settings: WorkerSettings, *, ordered: bool
    ) -> None:
        import ray

        self._open_worker, self._units, self._most = open_worker, enumerate(units), settings.ray_workers
        self._asked, self._here = worker_resources(settings), versions()
        self._actor = ray.remote(WorkerActor).options(
            num_cpus=self._asked["CPU"], num_gpus=self._asked["GPU"], max_restarts=0, scheduling_strategy="SPREAD"
        )
        self._hired: list[_Hired[U]] = []
        self._waiting: dict[Any, _Hired[U]] = {}  # by the reference or the stream that the actor answers by
        self._todo: deque[_Task[U]] = deque()
        self._failed_starts, self._wanted, self._looked = 0, 1, -_LOOK_S
        self._ordered, self._next, self._held = ordered, 0, dict[int, R]()
        self._quiet_since, self._patience = time.monotonic(), _FIRST_NOTE_S

    def steps(self, check_interrupted: Callable[[], None]) -> Iterator[Step[R]]:
        """Steps of all units; `check_interrupted` raises where the user asked to stop."""
        import ray

        while True:
            check_interrupted()
            self._look()
            if not self._todo and not any(hired.task for hired in self._hired):
                return
            self._hire()
            self._share_out()
            ready, _ = ray.wait(list(self._waiting), timeout=_LOOK_S)
            for answer in ready:
                self._quiet_since, self._patience = time.monotonic(), _FIRST_NOTE_S
                yield from self._take(answer)
            self._say_what_is_waited_for()

    def dismiss(self) -> None:
        """End all actors."""
        while self._hired:
            self._end(self._hired[0])

    def _look(self) -> None:
        """See how many workers the cluster has room for, and read as many units ahead."""
        if time.monotonic() - self._looked >= _LOOK_S:
            self._wanted, self._looked = self._most or max(room(self._asked), 1), time.monotonic()
        while len(self._todo) < self._wanted and (following := next(self._units, None)) is not None:
            self._todo.append(_Task(*following))

    def _hire(self) -> None:
        busy = sum(hired.task is not None for hired in self._hired)
        while len(self._hired) < min(self._wanted, busy + len(self._todo)):
            hired = _Hired[U](self._actor.remote())
            self._hired.append(hired)
            self._waiting[hired.handle.versions.remote()] = hired

    def _share_out(self) -> None:
        for hired in self._hired:
            far = self._ordered and self._todo and self._todo[0].number - self._next >= _AHEAD * self._wanted
            if hired.doing == "waits" and self._todo and not far:
                hired.doing, hired.task = "works", self._todo.popleft()
                stream = hired.handle.work.options(num_returns="streaming").remote(hired.task.unit)
                self._waiting[stream] = hired

    def _take(self, answer: Any) -> Iterator[Step[R]]:
        """Take an answer of an actor, and let it go on."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        hired = self._waiting.pop(answer)
        try:
            value = ray.get(answer if hired.task is None else next(answer))
        except StopIteration as error:
            raise RuntimeError(f"the worker left {hired.task and hired.task.unit} without a result") from error
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            yield from self._lose(hired, error)
            return
        if isinstance(value, UserError):
            raise value
        if hired.task is not None:
            yield from self._advance(hired, hired.task, answer, value)
        elif hired.doing == "starts":
            self._check_versions(value)
            hired.doing = "opens"
            self._waiting[hired.handle.open.remote(self._open_worker, str(Path.cwd()))] = hired
        else:
            hired.doing, self._failed_starts = "waits", 0

    def _advance(self, hired: _Hired[U], task: _Task[U], stream: Any, step: Step[R]) -> Iterator[Step[R]]:
        size, result = step
        if result is None:
            task.done += size
            self._waiting[stream] = hired
            yield step
            return
        hired.doing, hired.task = "waits", None
        if not self._ordered:
            yield step
            return
        yield size, None
        self._held[task.number] = result
        while self._next in self._held:
            yield 0, self._held.pop(self._next)
            self._next += 1

    def _lose(self, hired: _Hired[U], error: Exception) -> Iterator[Step[R]]:
        self._end(hired)
        task = hired.task
        if task is None:
            self._failed_starts += 1
            if self._failed_starts >= _MOST_FAILED_STARTS * self._wanted:
                raise UserError(f"No worker starts; {self._failed_starts} have ended, the last so: {_cause(error)}")
            return
        task.losses += 1
        if task.losses >= MOST_LOSSES:
            raise UserError(
                f"{task.unit}: {task.losses} workers have ended while they did it, the last so: {_cause(error)} Where "
                "memory ran out, take smaller batches, or fewer workers per node (--ray-cpus)."
            )
        undone, task.done = task.done, 0
        self._todo.appendleft(task)
        if undone:
            yield -undone, None

    def _end(self, hired: _Hired[U]) -> None:
        import ray

        self._hired.remove(hired)
        ray.kill(hired.handle)

    def _check_versions(self, there: dict[str, str | None]) -> None:
        differing = [f"{name} {there[name]} there, {mine} here" for name, mine in self._here.items()
                     if there[name] != mine]  # fmt: skip
        if differing:
            raise UserError(
                f"A node of the Ray cluster has other packages: {'; '.join(differing)}. Install the same versions on "
                "every node."
            )

    def _say_what_is_waited_for(self) -> None:
        quiet = time.monotonic() - self._quiet_since
        if quiet < self._patience:
            return
        self._patience *= 2
        doing = [hired.doing for hired in self._hired]
        if "works" in doing:
            tasks = sorted((hired.task for hired in self._hired if hired.task), key=lambda task: task.number)
            note = f"No news for {quiet:.0f} s of {', '.join(str(task.unit) for task in tasks[:_NAMED])}."
        elif "opens" in doing:
            note = f"Workers have been loading what they work with for {quiet:.0f} s: {doing.count('opens')}."
        else:
            note = (
                f"No worker has started for {quiet:.0f} s: {describe_room(self._asked)}. Work begins when a node has "
                "room; Ctrl-C ends the command."
            )
        print(note, file=sys.stderr, flush=True)


def _cause(error: Exception) -> str:
    """The beginning of an error's first line, as a sentence; Ray's lines may have thousands of characters."""
    line = shorten(first_line(error), _CAUSE, placeholder=" …")
    return line if line.endswith("…") else f"{line.rstrip(' .:')}."
