"""Extraction on a Ray cluster of two nodes of this machine against one process, and with a node that is killed.

The model is the tiny Qwen2-VL of the tests, the memes are drawn; each worker computes with one thread and decodes its
own images. Three runs of the same extraction:

- one process;
- two nodes with one worker each;
- the same, where SIGKILL ends a node when a third of the shards is there, and another node joins.

Printed are the seconds of each whole run, and the memes per second once all workers are at work: of the shards after
the first of each worker, by the times of their files. Both stores of the cluster must be that of one process.

    OMP_NUM_THREADS=1 python scripts/bench/ray_shards.py [--memes 2000] [--shard-size 50] [--output R.json]
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from ra_hmd.core.workers import WorkerSettings
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.synthetic.confounders import make_confounders
from ra_hmd.features.extract_lmm import extract_hidden_states
from ra_hmd.features.store import read_features
from ra_hmd.models.checkpoint import open_backbone
from ra_hmd.models.tiny import make_tiny_lmm

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from ray_nodes import Nodes


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
    later = (len(written) - workers) * options.shard_size
    return {
        "seconds": round(seconds, 1),
        "memes_per_second": round(later / (written[-1] - written[workers - 1]), 1),
        "rows": len(set(found.ids)),
        "content": found.content,
    }


def kill_and_add(nodes: Nodes, store: Path, shards: int) -> threading.Thread:
    """Kill the first added node once a third of the shards is there, and add another."""

    def act() -> None:
        while len(list(store.glob("part-*.parquet"))) < shards // 3:
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
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        work = Path(folder)
        make_tiny_lmm("qwen2_vl", work / "model")
        make_confounders(work / "data", size=options.memes)
        results = {"one process": extract(work, "one", options)}
        nodes = Nodes(work)
        try:
            nodes.add()
            nodes.add()
            nodes.wait_for(3)
            engine = WorkerSettings(engine="ray", ray_address=nodes.address)
            results["two nodes"] = extract(work, "two", options, engine)
            acted = kill_and_add(nodes, work / "killed", -(-options.memes // options.shard_size))
            results["a node killed, another joins"] = extract(work, "killed", options, engine)
            acted.join()
        finally:
            nodes.stop()
    one = results["one process"]
    expected = one["content"]
    for name, result in results.items():
        result["same_store"] = result.pop("content") == expected
        print(f"{name}: {result}")
    ratio = results["two nodes"]["memes_per_second"] / one["memes_per_second"]
    print(f"two nodes against one process: {ratio:.2f} times the memes per second")
    if options.output:
        options.output.write_text(json.dumps({"ratio": round(ratio, 3)} | results, indent=2))


if __name__ == "__main__":
    main()
