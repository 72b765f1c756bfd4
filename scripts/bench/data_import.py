"""Import and check of generated data sets of 1,000, 10,000 and 150,000 memes: time and peak memory.

The files have the shape of MMHS150K, the largest data set, with drawn JPEGs of 200 x 200 pixels. Each command runs as a
user runs it, `ra-hmd data import` and `ra-hmd data check`, with its worker processes; memory is the largest sum of the
resident sets of all of them (pages that they share count in each).

    python scripts/bench/data_import.py [--sizes 1000 10000 150000] [--workers 2] [--output result.json]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import psutil
from joblib import Parallel, delayed
from PIL import Image

SIDE, TILES, CHUNK = 200, 8, 1000
WORDS = "cat sat warm grey stone while rain fell over quiet hills and coffee cooled by an open window"


def draw(folder: Path, first: int, last: int) -> None:
    """Save images of smooth random colours, all different."""
    for number in range(first, last):
        rng = random.Random(number)
        tiles = Image.frombytes("RGB", (TILES, TILES), rng.randbytes(3 * TILES * TILES))
        tiles.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{name(number)}.jpg", quality=75)


def name(number: int) -> str:
    """An id as large as a tweet's."""
    return str(1_110_000_000_000_000_000 + number)


def build(folder: Path, images: Path, rows: int) -> None:
    """Annotations for the first `rows` images, in the layout of MMHS150K."""
    rng = random.Random(0)
    (folder / "splits").mkdir(parents=True)
    (folder / "img_resized").symlink_to(images)
    held_out = max(rows // 10, 2)
    bounds = {"val": (0, held_out // 2), "test": (held_out // 2, held_out), "train": (held_out, rows)}
    for split, (first, last) in bounds.items():
        (folder / "splits" / f"{split}_ids.txt").write_text("\n".join(map(name, range(first, last))) + "\n")
    with (folder / "MMHS150K_GT.json").open("w") as file:
        for number in range(rows):
            votes = [rng.choice((0, 0, 0, 1, 2)) for _ in range(3)]
            text = f"@someone {number} " + " ".join(rng.choices(WORDS.split(), k=15)) + " https://example.org/x"
            record = {"tweet_text": text, "labels": votes, "labels_str": ["x"] * 3, "tweet_url": "", "img_url": ""}
            file.write(("{" if number == 0 else ",\n") + f'"{name(number)}": {json.dumps(record)}')
        file.write("}")


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds and peak MiB of a command and its children."""
    begin, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        parent = psutil.Process(process.pid)
        while process.poll() is None:
            total = 0
            for one in [parent, *children(parent)]:
                try:
                    total += one.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, total)
            time.sleep(0.05)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    return time.perf_counter() - begin, peak / 2**20


def children(parent: psutil.Process) -> list[psutil.Process]:
    """All processes below one, as far as they still live."""
    try:
        return parent.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def main() -> None:
    """Generate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 150_000])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    command = [str(Path(sys.executable).parent / "ra-hmd"), "data"]
    workers = ["--workers", str(options.workers)]
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = folder / "images"
        images.mkdir()
        most = max(options.sizes)
        ranges = [(first, min(first + CHUNK, most)) for first in range(0, most, CHUNK)]
        Parallel(n_jobs=options.workers)(delayed(draw)(images, *bounds) for bounds in ranges)
        print(f"{'step':8}{'memes':>10}{'seconds':>10}{'memes/s':>10}{'peak MiB':>10}")
        for rows in sorted(options.sizes):
            root, output = folder / f"mmhs_{rows}", folder / f"import_{rows}"
            build(root, images, rows)
            for step, more in (
                ("import", ["import", "mmhs150k", str(root), "--output", str(output)]),
                ("check", ["check", str(output)]),
            ):
                seconds, peak = measure([*command, *more, *workers])
                results.append({"step": step, "memes": rows, "seconds": seconds, "peak_mib": peak})
                print(f"{step:8}{rows:>10}{seconds:>10.1f}{rows / seconds:>10.0f}{peak:>10.0f}", flush=True)
    for step in ("import", "check"):
        mine = [result for result in results if result["step"] == step]
        for small, large in pairwise(mine):
            slope = (large["seconds"] - small["seconds"]) / (large["memes"] - small["memes"]) * 1e3
            print(f"{step}: {slope:.3f} ms for each further meme from {small['memes']} to {large['memes']}")
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
