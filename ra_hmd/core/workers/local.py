"""Work units in this process, or in several processes of this machine."""

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Generic

from ra_hmd.core.workers.protocol import R, Step, U, Worker


@dataclass(frozen=True)
class _Recipe(Generic[U, R]):
    """Opens the worker of a process. `run` differs from call to call, as processes outlive the call they began in."""

    run: str
    open_worker: Callable[[], Worker[U, R]] = field(compare=False)


def local_steps(open_worker: Callable[[], Worker[U, R]], units: Iterable[U], processes: int) -> Iterator[Step[R]]:
    """Steps of a worker in this process, which is given all units at once, or of one worker in each of `processes`.

    The results come in the order of the units. Units are taken from the iterable as they are needed.
    """
    if processes <= 1:
        yield from open_worker()(iter(units))
        return
    from joblib import Parallel, delayed

    recipe = _Recipe(secrets.token_hex(8), open_worker)
    for steps in Parallel(n_jobs=processes, return_as="generator")(delayed(_work)(recipe, unit) for unit in units):
        yield from steps


def _work(recipe: _Recipe[U, R], unit: U) -> list[Step[R]]:
    return list(_opened(recipe)(iter([unit])))


@lru_cache(maxsize=1)
def _opened(recipe: _Recipe[U, R]) -> Worker[U, R]:
    return recipe.open_worker()
