"""What the containers run, run here: the command of compose.yaml and the health check of the Dockerfile."""

import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from engines import BIN, ROOT, child_env
from typer.testing import CliRunner

from ra_hmd.cli.app import app

pytestmark = pytest.mark.slow

WAIT = 90.0


def ra_hmd(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, f"{words}\n{done.output}\n{done.exception!r}"
    return done.stdout


@pytest.fixture(scope="module")
def mounts(served_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the containers are given: a head on a tiny CLIP in model/, its bank, the keys."""
    folder = tmp_path_factory.mktemp("mounts")
    shutil.copytree(served_clip / "head", folder / "model")
    shutil.copytree(served_clip / "bank", folder / "bank")
    ra_hmd("serve-key", "jo", "--keys", folder / "api_keys")
    return folder


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def service(mounts: Path, port: int, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command of compose.yaml, with its defaults and these folders."""
    words = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["detector"]["command"]
    given = {
        "/model": mounts / "model", "${RA_HMD_BANK_PLACE:-/bank}": mounts / "bank", "8000": port,
        "/run/secrets/api_keys": mounts / "api_keys", "${RA_HMD_NAME:-localhost}": "localhost",
    }  # fmt: skip
    assert set(given) < set(words)
    command = [str(BIN / "ra-hmd"), *(str(given.get(word, word)) for word in words)]
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(command, cwd=tmp_path, env=child_env(), stdout=log, stderr=log)
        yield running
        running.kill()
        running.wait()


@pytest.fixture
def healthy(port: int) -> Callable[[], bool]:
    """The health check of the Dockerfile, on our port."""
    line = (ROOT / "Dockerfile").read_text().partition("HEALTHCHECK")[2].partition("CMD ")[2].splitlines()[0]
    assert ":8000/" in line
    program, *words = json.loads(line.replace(":8000/", f":{port}/"))
    assert program == "python"
    command = [str(BIN / "python"), *words]
    return lambda: subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


def test_the_command_serves_is_healthy_and_ends_well(
    service: subprocess.Popen[bytes], healthy: Callable[[], bool], port: int, mounts: Path, tmp_path: Path
) -> None:
    deadline = time.monotonic() + WAIT
    assert not healthy()  # nothing answers yet
    while not healthy():
        assert service.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.5)

    def status(path: str, **headers: str) -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert status("/ready") == 200
    assert status("/metrics") == 401  # no key
    assert status("/docs", Host="elsewhere.example") == 400
    assert status("/health", Host="10.1.2.3:8000") == 200  # a probe asks by the address of the container
    service.send_signal(signal.SIGTERM)
    assert service.wait(60) == 0
    assert not healthy()
    assert json.loads(ra_hmd("bank", "info", mounts / "bank", "--json"))["version"] == 1
