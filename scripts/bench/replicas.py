"""How long replicas take to follow a correction of their bank that one of them made.

A head on a tiny CLIP is served by several `ra-hmd serve` processes with one bank. Corrections go to one replica after
the other. From the answer to each, two times are taken until the last replica has the new version: of replicas that
nobody asks for anything (`/ready` tells the version), and of replicas under load (the first verdict by it, while
a client sends memes to each, one per request). At the end, probes of /ready by many clients at once.

    OMP_NUM_THREADS=1 python scripts/bench/replicas.py [--replicas 3] [--corrections 30] [--output R.json]
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.synthetic.confounders import make_confounders

RA_HMD = [sys.executable, "-m", "ra_hmd"]
PROBES, PROBING_CLIENTS = 2000, 32


def ra_hmd(*words: str | Path) -> str:
    """Run a command of this package; its output."""
    done = subprocess.run([*RA_HMD, *map(str, words)], check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout.strip()


def build(folder: Path) -> None:
    """`head`, `bank` and `keys.json` in `folder`."""
    make_confounders(folder / "data", size=96)
    ra_hmd("tiny-encoder", "--family", "clip", "--output", folder / "clip")
    for split in ("train", "dev"):
        ra_hmd("encode", "--encoder", folder / "clip", "--data", folder / "data" / "a", "--split", split, "--workers",
               "0", "--output", folder / "features" / split)  # fmt: skip
    (folder / "head.yaml").write_text("fusion: align\nmap_dim: 16\nproj_dim: 16\nnum_layers: 2\nepochs: 2\n")
    stores = [f"{split}={folder}/features/{split}" for split in ("train", "dev")]
    ra_hmd("train-head", folder / "head.yaml", *stores, f"output_dir={folder / 'head'}")
    ra_hmd("bank", "create", folder / "bank", "--checkpoint", folder / "head", "--features",
           folder / "features" / "train", "--reason", "start")  # fmt: skip


def start(folder: Path, number: int, stack: ExitStack) -> subprocess.Popen[str]:
    """Start a replica; it is killed at the end."""
    words = ["serve", folder / "head", "--bank", folder / "bank", "--keys", folder / "keys.json", "--port", "0"]
    log = stack.enter_context((folder / f"log-{number}").open("w"))
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*RA_HMD, *map(str, words)], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    )
    stack.callback(process.kill)
    return process


def version_said(client: httpx.Client) -> int:
    """The version that a replica names in /ready."""
    return int(client.get("/ready").json()["bank"]["version"])


class Load(threading.Thread):
    """A client that sends a meme to one replica again and again."""

    def __init__(self, client: httpx.Client, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.client, self.body, self.version, self.answers = client, body, 0, 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.is_set():
            said = self.client.post("/v1/classify", json=self.body).json()["results"][0]
            self.version, self.answers = said["version"]["bank"]["version"], self.answers + 1


def corrections(clients: list[httpx.Client], ids: list[str], number: int, versions: Any) -> list[float]:
    """Seconds from the answer to each correction until the smallest of `versions()` is its version."""
    seconds = []
    for turn in range(number):
        change = {"labels": {ids[turn % len(ids)]: turn // len(ids) % 2}, "reason": f"correction {turn}"}
        said = clients[turn % len(clients)].post("/v1/bank/relabel", json=change)
        if said.status_code == 409:  # it has the label already
            change["labels"] = {name: 1 - label for name, label in change["labels"].items()}
            said = clients[turn % len(clients)].post("/v1/bank/relabel", json=change)
        began, version = time.perf_counter(), said.raise_for_status().json()["version"]
        while min(versions()) < version:
            time.sleep(0.005)
        seconds.append(time.perf_counter() - began)
        time.sleep(0.1 + 0.05 * (turn % 10))  # not in step with the looks for newer versions
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum in milliseconds."""
    p50, p95 = np.percentile(seconds, [50, 95])
    return {"p50_ms": round(1000 * p50, 1), "p95_ms": round(1000 * p95, 1), "max_ms": round(1000 * max(seconds), 1)}


def measure(addresses: list[str], key: str, folder: Path, number: int) -> dict[str, Any]:
    """All figures."""
    headers = {"X-API-Key": key}
    clients = [httpx.Client(base_url=address, headers=headers, timeout=120) for address in addresses]
    memes = list(read_memes(folder / "data" / "a" / "dev.jsonl"))[: len(clients)]
    ids = [meme.id for meme in read_memes(folder / "data" / "a" / "train.jsonl")][:20]
    result: dict[str, Any] = {"replicas": len(clients), "corrections": number}
    result["idle"] = summary(corrections(clients, ids, number, lambda: [version_said(one) for one in clients]))
    bodies = [{"memes": [{"id": meme.id, "image": base64.b64encode(Path(str(meme.image)).read_bytes()).decode(),
                          "text": meme.text}]} for meme in memes]  # fmt: skip
    load = [Load(httpx.Client(base_url=address, headers=headers, timeout=120), body)
            for address, body in zip(addresses, bodies, strict=True)]  # fmt: skip
    for one in load:
        one.start()
    began = time.perf_counter()
    result["under_load"] = summary(corrections(clients, ids, number, lambda: [one.version for one in load]))
    rate = sum(one.answers for one in load) / (time.perf_counter() - began)
    for one in load:
        one.ended.set()
        one.join(120)
    result["answers_per_second"] = round(rate, 1)
    result["versions"] = sorted({version_said(client) for client in clients})

    def probe(_: int) -> float:
        began = time.perf_counter()
        clients[0].get("/ready").raise_for_status()
        return time.perf_counter() - began

    began = time.perf_counter()
    with ThreadPoolExecutor(PROBING_CLIENTS) as threads:
        taken = list(threads.map(probe, range(PROBES)))
    result["probes"] = summary(taken) | {"per_second": round(PROBES / (time.perf_counter() - began))}
    return result


def main() -> None:
    """Build, serve, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--corrections", type=int, default=30)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        build(folder)
        key = ra_hmd("serve-key", "bench", "--role", "moderator", "--keys", folder / "keys.json")
        processes = [start(folder, number, stack) for number in range(options.replicas)]
        addresses = [next(line.strip() for line in one.stdout or () if "://" in line) for one in processes]
        result = measure(addresses, key, folder, options.corrections)
    print(json.dumps(result, indent=2))
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
