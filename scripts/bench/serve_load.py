"""The API under load: many clients against batching and against one meme per forward pass, in one run.

A tiny Qwen2-VL is Stage-1 tuned for a few steps, and served by `ra-hmd serve` on loopback with a bank, each time in a
process of its own. Clients send one meme per request and send the next when they have the answer; every answer is
checked against the scores that a `Detector` gives the same meme beforehand. Rounds:

    one by one   `--max-batch 1`, all clients
    batching     the defaults, all clients, for the whole time
    alone        the defaults, one client: what a request takes with nobody beside it
    overload     `--max-queue 8`: most requests must be refused with 429, none may fail otherwise
    job          no client, and a job (docs/api.md) of more memes than can be judged in the time
    job, alone   that job beside one client
    job, all     that job beside all clients

By default the model has the depth of Qwen2-VL-7B (28 layers; the vision tower's 3 are not changed) at width 64: as on a
GPU, a forward pass of one meme is then mostly calls of small kernels. `--layers 2` is the model of the tests.

    python scripts/bench/serve_load.py [--seconds 60] [--clients 32] [--layers 28] [--output R.json]
"""

import argparse
import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.synthetic.confounders import make_confounders
from ra_hmd.inference.detector import Detector
from ra_hmd.models.tiny import make_tiny_lmm

TOLERANCE = 1e-4
_JOB_MEMES = 20_000
BIN = Path(sys.executable).parent


def command(*words: str | Path) -> None:
    """Run a command of this environment; its output is shown only if it fails."""
    env = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run([BIN / words[0], *words[1:]], check=False, capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def build(folder: Path, layers: int) -> None:
    """`run` (a Stage 1 run) and `bank` in `folder`."""
    make_confounders(folder / "data", size=256)
    make_tiny_lmm("qwen2_vl", folder / "model", hidden_size=64, num_layers=layers)
    config = {
        "model_name_or_path": str(folder / "model"), "stage": "sft-classifier", "do_train": True,
        "finetuning_type": "lora", "lora_target": "all", "lora_rank": 8, "dataset": "confounders_a",
        "dataset_dir": str(folder / "data"), "template": "qwen2_vl", "cutoff_len": 192, "max_samples": 64,
        "output_dir": str(folder / "run"), "per_device_train_batch_size": 16, "learning_rate": 2e-3,
        "num_train_epochs": 1, "report_to": "none", "save_strategy": "no", "seed": 7, "loss_ratio": [1.0, 1.0],
        "classifier_lr": 1e-3, "proj_dim": 32,
    }  # fmt: skip
    (folder / "stage1.yaml").write_text(yaml.safe_dump(config))
    command("llamafactory-cli", "train", folder / "stage1.yaml")
    command("ra-hmd", "extract", "--checkpoint", folder / "run", "--data", folder / "data" / "a", "--split", "train",
            "--workers", "0", "--output", folder / "features")  # fmt: skip
    command("ra-hmd", "bank", "create", folder / "bank", "--checkpoint", folder / "run", "--features",
            folder / "features", "--reason", "benchmark")  # fmt: skip


@dataclass
class BatchRow:
    """A meme as a client sends it, and the scores that it must get."""

    body: bytes
    name: str
    scores: dict[str, float]


def questions(folder: Path, count: int) -> list[BatchRow]:
    """Memes of the test split with their scores by a detector in this process."""
    memes = read_memes(folder / "data" / "a" / "test.jsonl")[:count]
    detector = Detector.from_run(folder / "run", folder / "bank")
    found = detector([Meme(meme.id, meme.image, meme.text) for meme in memes])
    rows = []
    for meme, one in zip(memes, found, strict=True):
        image = base64.b64encode(meme.image.read_bytes()).decode()
        body = json.dumps({"memes": [{"id": meme.id, "text": meme.text, "image": image}]}).encode()
        rows.append(BatchRow(body, meme.id, one.scores))
    return rows


@dataclass
class Round:
    """What the clients saw."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    sent: int = 0
    memory: list[int] = field(default_factory=list)
    job_rate: float | None = None

    def figures(self) -> dict[str, Any]:
        """For the report; latencies in milliseconds, memory in MiB."""
        p50, p95, p99 = np.percentile(self.latencies, (50, 95, 99)) * 1000 if self.latencies else (None,) * 3
        return {
            "answers_per_second": len(self.latencies) / self.seconds, "job_memes_per_second": self.job_rate,
            "p50_ms": p50, "p95_ms": p95, "p99_ms": p99,
            "sent": self.sent, "statuses": dict(self.statuses), "lost": self.sent - sum(self.statuses.values()),
            "wrong": len(self.wrong), "seconds": self.seconds,
            "rss_mib": {"start": self.memory[0] >> 20, "middle": self.memory[len(self.memory) // 2] >> 20,
                        "end": self.memory[-1] >> 20} if self.memory else None,
        }  # fmt: skip


class Client:
    """HTTP/1.1 over one connection, as little as serves: the clients share two cores with the server."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> "Client":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        head = (f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n")  # fmt: skip
        self.writer.write(head.encode() + body)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?im)^content-length: *(\d+)", answer)
        return int(answer.split(b" ", 2)[1]), await self.reader.readexactly(int(length[1]) if length else 0)


def check(row: BatchRow, answer: bytes) -> str | None:
    """What is wrong with an answer, or None."""
    (one,) = json.loads(answer)["results"]
    if one.get("id") != row.name:
        return f"{row.name} got the answer of {one.get('id')}"
    off = {head: value for head, value in row.scores.items() if abs(one["scores"][head] - value) > TOLERANCE}
    return f"{row.name}: {off} expected, {one['scores']} given" if off else None


async def load(port: int, process: psutil.Process, rows: list[BatchRow], clients: int, seconds: float) -> Round:
    """Ask with so many clients for so long."""
    done, end = Round(), time.perf_counter() + seconds

    async def ask(number: int) -> None:
        async with Client(port) as client:
            turn = number
            while time.perf_counter() < end:
                question = rows[turn % len(rows)]
                turn += clients + 1
                started = time.perf_counter()
                done.sent += 1
                status, answer = await client.post("/v1/classify", question.body)
                done.statuses[status] += 1
                if status == 200:
                    done.latencies.append(time.perf_counter() - started)
                    wrong = check(question, answer)
                    done.wrong += [wrong] if wrong else []
                else:
                    await asyncio.sleep(0.01)

    async def watch() -> None:
        while True:
            done.memory.append(process.memory_info().rss)
            await asyncio.sleep(0.5)

    started, watching = time.perf_counter(), asyncio.create_task(watch())
    await asyncio.gather(*(ask(number) for number in range(clients)))
    done.seconds = time.perf_counter() - started
    watching.cancel()
    return done


def send_job(port: int, rows: list[BatchRow]) -> str:
    """Send a job of many memes; returns its address."""
    memes = [json.loads(rows[number % len(rows)].body)["memes"][0] for number in range(_JOB_MEMES)]
    lines = "".join(json.dumps(meme) + "\n" for meme in memes).encode()
    base = f"http://127.0.0.1:{port}/v1/jobs"
    request = urllib.request.Request(base, lines, {"Content-Type": "application/jsonl"})
    with urllib.request.urlopen(request) as answer:
        return f"{base}/{json.load(answer)['id']}"


def judged(job: str) -> int:
    """How many memes of a job are judged."""
    with urllib.request.urlopen(job) as answer:
        return int(json.load(answer)["judged"])


def serve(folder: Path, options: list[str], rows: list[BatchRow], clients: int, seconds: float) -> dict[str, Any]:
    """A round against a server with these options; with `--jobs` there is a job beside the clients."""
    words = [str(BIN / "ra-hmd"), "serve", str(folder / "run"), "--bank", str(folder / "bank"), "--port", "0",
             *options]  # fmt: skip
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        try:
            found = None
            while not found:
                line = server.stdout.readline()
                if not line:
                    sys.exit(f"the server ended:\n{(folder / 'log').read_text()[-3000:]}")
                found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            port, process = int(found[1]), psutil.Process(server.pid)
            asyncio.run(load(port, process, rows, clients, 3))  # warm-up, first allocations included
            job = send_job(port, rows) if "--jobs" in options else None
            while job and not judged(job):
                time.sleep(0.1)
            before, began = judged(job) if job else 0, time.perf_counter()
            done = asyncio.run(load(port, process, rows, clients, seconds))
            if not clients:
                time.sleep(seconds)
            if job:
                done.job_rate = (judged(job) - before) / (time.perf_counter() - began)
        finally:
            server.send_signal(signal.SIGTERM)
        if server.wait(60):
            sys.exit(f"the server ended with {server.returncode}:\n{(folder / 'log').read_text()[-3000:]}")
    return done.figures()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--rounds", nargs="+", help="Some of the rounds.")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, arguments.layers)
        rows = questions(folder, 128)
        short = min(arguments.seconds, 20)
        plans = {
            "one by one": (["--max-batch", "1"], arguments.clients, short),
            "batching": ([], arguments.clients, arguments.seconds),
            "alone": ([], 1, short / 2),
            "overload": (["--max-queue", "8"], arguments.clients, short),
            "job": (["--jobs", str(folder / "job")], 0, short),
            "job, alone": (["--jobs", str(folder / "beside one")], 1, short),
            "job, all": (["--jobs", str(folder / "beside all")], arguments.clients, short),
        }
        plans = {plan: plans[plan] for plan in arguments.rounds or plans}
        rounds = {}
        for plan, (options, clients, seconds) in plans.items():
            rounds[plan] = serve(folder, options, rows, clients, seconds)
            print(f"{plan:>10}: {json.dumps(rounds[plan], default=lambda value: round(float(value), 2))}", flush=True)
    speed = {plan: figures["answers_per_second"] for plan, figures in rounds.items()}
    ratio = None
    if {"batching", "one by one", "alone"} <= speed.keys():
        ratio = speed["batching"] / speed["one by one"]
        print(f"batching gives {ratio:.2f} times the answers of one by one, {speed['batching'] / speed['alone']:.2f} "
              f"times those of a single client")  # fmt: skip
    if arguments.output:
        arguments.output.write_text(
            json.dumps({"layers": arguments.layers, "ratio": ratio, "rounds": rounds}, default=float)
        )
    bad = [
        plan
        for plan, figures in rounds.items()
        if figures["wrong"] or figures["lost"] or set(figures["statuses"]) - {200, 429}
    ]
    if bad:
        sys.exit(f"wrong, lost or failed answers in: {', '.join(bad)}")


if __name__ == "__main__":
    main()
