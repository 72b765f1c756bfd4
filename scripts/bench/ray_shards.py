"""Extraction or prediction on a Ray cluster of two nodes against one process, and with a node that is killed.

The model is the tiny Qwen2-VL of the tests, the memes are drawn; each worker computes with one thread and decodes its
own images. With `--checkpoint RUN` the memes are judged by a run in place of being extracted. Three runs of the same:

- one process;
- two nodes with one worker each;
- the same, where SIGKILL ends a node when a third of the shards is there, and another node joins.

Printed are the seconds of each whole run, and the memes per second once all workers are at work: of the shards after
the first of each worker, by the times of their files. What the cluster writes must be what one process writes.

    OMP_NUM_THREADS=1 python scripts/bench/ray_shards.py [--memes 2000] [--shard-size 50] [--checkpoint RUN]
        [--output R.json]
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from ra_hmd.core.artifacts import sha256_file
from ra_hmd.core.workers import WorkerSettings
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.synthetic.confounders import make_confounders
from ra_hmd.features.extract_lmm import extract_hidden_states
from ra_hmd.features.store import read_features
from ra_hmd.inference.batch import predict_files
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.options import DetectorOptions
from ra_hmd.models.checkpoint import open_backbone
from ra_hmd.models.tiny import make_tiny_lmm

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from ray_nodes import Nodes

CHUNKS = "[cp]*-*[0-9].*"  # shards and chunks, and no file beside them


def extract(work: Path, name: str, options: argparse.Namespace, engine: WorkerSettings | None = None) -> dict:
    """Extract into `work / name`; seconds, memes per second and digest of the store."""
    memes = read_memes(work / "data" / "a" / "train.jsonl")[: options.memes]
    workers = 1 if engine is None else 2
    start = time.perf_counter()
    extract_hidden_states(
        open_backbone(str(work / "model")), memes, work / name, shard_size=options.shard_size, num_workers=0,
        engine=engine,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    found = read_features(work / name)
    written = sorted(part.stat().st_mtime for part in (work / name).glob("part-*.parquet"))
    return figures(seconds, written, workers, options, found.ids) | {"content": found.content}


def figures(seconds: float, written: list[float], workers: int, options: argparse.Namespace, ids: list[str]) -> dict:
    """Seconds of a run, memes per second by the times of its files, and how many ids it has."""
    later = (len(written) - workers) * options.shard_size
    return {
        "seconds": round(seconds, 1),
        "memes_per_second": round(later / (written[-1] - written[workers - 1]), 1),
        "rows": len(set(ids)),
    }


def predict(work: Path, name: str, options: argparse.Namespace, engine: WorkerSettings | None = None) -> dict:
    """Judge the memes into `work / name`; as `extract`."""
    source, output = work / "memes.jsonl", work / name
    if not source.exists():
        memes = read_memes(work / "data" / "a" / "train.jsonl")[: options.memes]
        rows = ({"id": meme.id, "image": str(meme.path), "text": meme.text} for meme in memes)
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = dict[str, float]()
    watching = threading.Event()

    def watch() -> None:
        """Times of the chunks, which are gone at the end."""
        while not watching.wait(0.02):
            with contextlib.suppress(FileNotFoundError):
                written.update({part.name: part.stat().st_mtime for part in parts(output).glob(CHUNKS)})

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    size = options.shard_size
    start = time.perf_counter()
    lazy = engine is not None
    predict_files(
        DetectorOptions().open(options.checkpoint, lazy=lazy), source, output, style="jsonl", chunk_size=size,
        workers=1, engine=engine, open_detector=partial(open_detector, options.checkpoint),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    watching.set()
    thread.join()
    ids = [json.loads(line)["id"] for line in output.read_text().splitlines()]
    done = figures(seconds, sorted(written.values()), 1 if engine is None else 2, options, ids)
    return done | {"content": sha256_file(output)}


def open_detector(checkpoint: Path) -> tuple[Detector, None]:
    """The detector of a worker."""
    return DetectorOptions().open(checkpoint), None


def parts(output: Path) -> Path:
    """Folder of the files that a run writes one by one."""
    chunks = output.with_name(f"{output.name}.parts")
    return chunks if chunks.is_dir() else output


def kill_and_add(nodes: Nodes, store: Path, shards: int) -> threading.Thread:
    """Kill the first added node once a third of the shards is there, and add another."""

    def act() -> None:
        while len(list(parts(store).glob(CHUNKS))) < shards // 3:
            time.sleep(0.05)
        nodes.kill(nodes.added[0])
        nodes.add()

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memes", type=int, default=2000)
    parser.add_argument("--shard-size", type=int, default=50)
    parser.add_argument("--checkpoint", type=Path, help="Run whose verdicts are asked for, in place of features.")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        work = Path(folder)
        make_tiny_lmm("qwen2_vl", work / "model")
        run = extract if options.checkpoint is None else predict
        make_confounders(work / "data", size=options.memes)
        results = {"one process": run(work, "one", options)}
        nodes = Nodes(work)
        try:
            nodes.add()
            nodes.add()
            nodes.wait_for(3)
            engine = WorkerSettings(engine="ray", ray_address=nodes.address)
            results["two nodes"] = run(work, "two", options, engine)
            acted = kill_and_add(nodes, work / "killed", -(-options.memes // options.shard_size))
            results["a node killed, another joins"] = run(work, "killed", options, engine)
            acted.join()
        finally:
            nodes.stop()
    one = results["one process"]
    expected = one["content"]
    for name, result in results.items():
        result["same"] = result.pop("content") == expected
        print(f"{name}: {result}")
    ratio = results["two nodes"]["memes_per_second"] / one["memes_per_second"]
    print(f"two nodes against one process: {ratio:.2f} times the memes per second")
    if options.output:
        options.output.write_text(json.dumps({"ratio": round(ratio, 3)} | results, indent=2))


if __name__ == "__main__":
    main()
