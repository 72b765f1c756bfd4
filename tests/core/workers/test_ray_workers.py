"""Units of work on the actors of a Ray of this machine. Nodes are lost in tests/features/test_extract_on_ray.py."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ra_hmd.core.errors import UserError
from ra_hmd.core.workers import WorkerSettings, ray_pool, run_units

pytestmark = pytest.mark.slow
RAY = WorkerSettings(engine="ray")


@pytest.fixture(scope="module", autouse=True)
def ray():
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_memory_monitor_refresh_ms", "0")  # whatever other processes of the machine take
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors do not find the tests
    yield ray
    ray.shutdown()


class Squares:
    """Squares numbers in two steps each; a number of `fatal` ends the process between them, the first times."""

    def __init__(self, fatal=(), marks=None):
        self.fatal, self.marks = fatal, marks

    def __call__(self, units):
        for number in units:
            if number < 0:
                raise UserError(f"{number} is negative.", ["one problem", "another"])
            yield 1, None
            if number in self.fatal and len(list(self.marks.iterdir())) < self.fatal[number]:
                (self.marks / str(time.monotonic_ns())).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.05)
            yield 1, (number * number, os.getpid(), Path.cwd())


def run(open_worker, units, settings=RAY, **options):
    return list(run_units(open_worker, units, settings, description="Squaring", total=None, noun="numbers", show=False,
                          **options))  # fmt: skip


def test_units_are_shared_out_and_their_results_can_be_had_in_order():
    results = []
    units = itertools.takewhile(lambda number: number < 30 or len({result[1] for result in results}) < 2, range(2000))
    for result in run_units(Squares, units, RAY, description="", total=None, noun="", show=False, ordered=True):
        results.append(result)
    assert [square for square, _, _ in results] == [n * n for n in range(len(results))]
    assert len({process for _, process, _ in results} - {os.getpid()}) == 2
    assert {folder for _, _, folder in results} == {Path.cwd()}  # relative paths mean what they mean here
    assert len({process for _, process, _ in run(Squares, range(8), RAY.replace(ray_workers=1))}) == 1


def test_a_lost_worker_s_unit_is_done_by_another(tmp_path):
    counted = []
    steps = ray_pool.ray_steps(lambda: Squares({3: 2}, tmp_path), range(10), RAY, ordered=False)
    for size, result in steps:
        counted.append(size)
        assert result is None or result[0] in {n * n for n in range(10)}
    assert len(list(tmp_path.iterdir())) == 2
    assert sum(counted) == 20
    assert min(counted) == -1  # what the lost worker had done does not count


def test_a_unit_that_ends_every_worker_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_pool, "MOST_LOSSES", 2)
    with pytest.raises(UserError, match=r"^3: 2 workers have ended while they did it, the last so: "):
        run(lambda: Squares({3: 9}, tmp_path), range(5))


def test_a_user_error_of_a_worker_is_raised_as_it_is():
    with pytest.raises(UserError, match=r"^-1 is negative\.$") as raised:
        run(Squares, [1, -1, 2])
    assert raised.value.problems == ["one problem", "another"]


def test_what_does_not_open_is_told_as_it_is():
    def refuse():
        raise UserError("m is no model.")

    with pytest.raises(UserError, match=r"^m is no model\.$"):
        run(refuse, range(3))
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0, range(3))


SCRIPT = """
import time
from ra_hmd.core.workers import WorkerSettings, ray_pool, run_units

ray_pool._FIRST_NOTE_S = 2.0

def slow():
    def work(units):
        for unit in units:
            time.sleep(600)
            yield 1, unit
    return work

run = run_units(slow, range(4), WorkerSettings(engine="ray"), description="", total=4, noun="",
                show=False)
next(run)
"""


@pytest.fixture
def command(tmp_path):
    """Start a command that waits, on a Ray of its own; end what is left of it."""
    started = []

    def start():
        (tmp_path / "command.py").write_text(SCRIPT)
        process = subprocess.Popen([sys.executable, tmp_path / "command.py"], stderr=subprocess.PIPE, text=True)
        started.append(psutil.Process(process.pid))
        return process

    yield start
    for process in started:
        if process.is_running():
            for one in [*process.children(recursive=True), process]:
                one.kill()


def test_a_command_s_own_ray_is_heard_by_this_machine_alone_and_ends_by_ctrl_c(command):
    process = command()
    assert re.search(r" s of 0(, 1)?\.$", next(line for line in process.stderr if line.startswith("No news")))
    family = psutil.Process(process.pid).children(recursive=True)
    listening = {connection.laddr.ip for one in family for connection in one.net_connections("inet")
                 if connection.status == psutil.CONN_LISTEN}  # fmt: skip
    assert {ip.removeprefix("::ffff:") for ip in listening} <= {"127.0.0.1", "::1"}
    assert listening
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert "KeyboardInterrupt" in process.stderr.read()
    assert not psutil.wait_procs(family, timeout=30)[1]


def test_what_has_no_room_says_what_it_waits_for(monkeypatch, capsys):
    monkeypatch.setattr(ray_pool, "_FIRST_NOTE_S", 0.5)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)  # as Ctrl-C does
    signal.setitimer(signal.ITIMER_REAL, 4)
    with pytest.raises(KeyboardInterrupt):
        run(Squares, range(3), RAY.replace(ray_cpus=500))
    signal.signal(signal.SIGALRM, before)
    note = capsys.readouterr().err.splitlines()[0]
    assert note.startswith("No worker has started for ")
    assert "each asks for CPU 500; the cluster has one node with CPU 2 (" in note


def test_ray_under_torchrun_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--engine ray under torchrun"):
        run(Squares, range(3))
