"""Banks survive kill -9 and two writers: real processes, see bank_processes.py."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("bank_processes.py")


def run(command: str, place: Path, count: int) -> dict[str, Any]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, SCRIPT, command, place, str(count)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_200_kills_of_a_writer_lose_and_tear_nothing(tmp_path):
    """After each kill the bank is what its log says, with every acknowledged version; a reader watches all along."""
    result = run("kill", tmp_path / "bank", 200)
    assert result["acknowledged"] > 100
    assert result["leftovers"] > 10  # the kills did hit writers at work
    assert result["read"] > 50
    assert result["version"] == 1 + result["acknowledged"] + result["unacknowledged"]
    assert len(list((tmp_path / "bank" / "versions").iterdir())) <= result["version"] + 1


def test_kills_of_one_of_two_writers_lose_and_tear_nothing(tmp_path):
    """Every acknowledged change has its version in the log; a reader watches all along."""
    result = run("both", tmp_path / "bank", 12)
    assert result["lost"] == []
    assert result["acknowledged"] > 10
    assert result["read"] > 5
    assert result["version"] > result["acknowledged"]


def test_kills_of_a_milvus_lite_writer_lose_and_tear_nothing(tmp_path):
    result = run("kill", tmp_path / "bank.db", 5)
    assert result["acknowledged"] > 0
    assert result["version"] == 1 + result["acknowledged"] + result["unacknowledged"]


@pytest.mark.parametrize(("name", "each"), [("bank", 40), ("bank.db", 3)])
def test_two_writers_lose_no_update(tmp_path, name, each):
    """Every acknowledged change has a version of its own, and the log replays to what the bank holds."""
    result = run("writers", tmp_path / name, each)
    assert result["versions"] == list(range(2, 2 * each + 2))
    first, second = result["by_writer"]
    assert first != list(range(2, each + 2))  # they did take turns
    assert second != list(range(2, each + 2))
    assert result["version"] == 2 * each + 1
