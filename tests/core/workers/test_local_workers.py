"""Units of work in this process, and in several processes."""

import os

import pytest

from ra_hmd.core.errors import UserError
from ra_hmd.core.workers import WorkerSettings, run_units


class Squares:
    """Squares numbers in two steps each, and says which process it was opened in."""

    def __init__(self):
        self.opened_in, self.taken = os.getpid(), 0

    def __call__(self, units):
        for number in units:
            self.taken += 1
            if number < 0:
                raise UserError(f"{number} is negative.")
            yield 1, None
            yield 1, (number * number, self.opened_in, self.taken)


def run(units, **options):
    return list(run_units(Squares, units, WorkerSettings(), description="Squaring", total=None, noun="numbers",
                          show=False, **options))  # fmt: skip


def test_one_process_gives_all_units_to_one_worker_here():
    assert run(range(5)) == [(n * n, os.getpid(), n + 1) for n in range(5)]


@pytest.mark.slow
def test_several_processes_open_one_worker_each_and_keep_the_order():
    first, second = run(range(40), processes=2), run(range(40), processes=2)
    assert [square for square, _, _ in first] == [n * n for n in range(40)]
    assert os.getpid() not in {process for _, process, _ in first}
    for results in (first, second):  # a worker of an earlier run is not used again
        taken = {}
        for _, process, count in results:
            taken.setdefault(process, []).append(count)
        assert all(counts == list(range(1, len(counts) + 1)) for counts in taken.values())


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_user_error_of_a_worker_is_raised_as_it_is(processes):
    with pytest.raises(UserError, match=r"^-1 is negative\.$"):
        run([1, -1, 2], processes=processes)


def test_options_of_ray_need_the_engine():
    with pytest.raises(UserError, match="--ray-workers and --ray-gpus: these belong to --engine ray"):
        WorkerSettings(ray_workers=2, ray_gpus=1)
    assert WorkerSettings(engine="ray", ray_workers=2).ray_workers == 2
    assert WorkerSettings(engine="local", ray_workers=None, ray_cpus=1.0) == WorkerSettings()
