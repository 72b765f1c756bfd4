"""Nodes of a Ray cluster on this machine, each started by `ray start` and killed as a lost machine is."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

# No worker is ended for the memory that other processes of the machine take.
OWN = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_memory_monitor_refresh_ms": "0"}


class Nodes:
    """A head without CPUs for workers, and what is added to it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._started = folder, list[subprocess.Popen[bytes]]()
        # Ray's sockets lie there, and the path of a socket has at most 107 bytes.
        self._ray = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        self.added: list[psutil.Process] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.head = self._start("--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false")
        self._wait(port)

    def add(self, cpus: int = 1) -> psutil.Process:
        """Start a node; it joins a little later."""
        self.added.append(self._start(f"--address={self.address}", f"--num-cpus={cpus}"))
        return self.added[-1]

    def wait_for(self, nodes: int) -> None:
        """Wait until that many nodes, the head among them, belong to the cluster."""
        import ray

        ray.init(self.address, log_to_driver=False, logging_level="ERROR")
        while sum(node["Alive"] for node in ray.nodes()) < nodes:
            time.sleep(0.2)
        ray.shutdown()

    @staticmethod
    def kill(node: psutil.Process) -> None:
        """SIGKILL everything of a node."""
        for process in [node, *node.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def stop(self) -> None:
        for node in self._started:
            if node.poll() is None:
                self.kill(psutil.Process(node.pid))
            node.wait()
        shutil.rmtree(self._ray, ignore_errors=True)

    def _start(self, *options: str) -> psutil.Process:
        ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"]
        common = [f"--object-store-memory={100 << 20}", "--disable-usage-stats"]
        if "--head" in options:
            common.append(f"--temp-dir={self._ray}")
        # On a busy machine a node may miss Ray's limit of 30 s for its start.
        retried = ["bash", "-c", 'for _ in 1 2 3 4; do "$@" && break; done', "bash", *ray, *options, *common]
        log = (self._folder / f"node-{len(self._started)}.log").open("wb")
        process = subprocess.Popen(retried, stdout=log, stderr=log, env=os.environ | OWN)
        self._started.append(process)
        return psutil.Process(process.pid)

    @staticmethod
    def _wait(port: int) -> None:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError("the head of the cluster did not start")
