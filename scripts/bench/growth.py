"""How time and memory grow with the rows: extraction, Stage 2, mining, evaluation, the bank, prediction, clusters.

Each cell runs in a fresh process, which draws its data, then measures one call: seconds, and by how much the call
raised the resident memory. The growth is given as a factor per doubling of the rows: 2 is linear, 4 quadratic.

Rows of class 0 and 1 lie around common centres, and the spread falls from dimension to dimension, as that of embeddings
does. `mining noise` draws rows without any structure, where no approximate search can help.

    python scripts/bench/growth.py [--rows 1000 10000 50000 100000] [--only mining bank] [--limit 300] [--output x.json]
    python scripts/bench/growth.py --million    # the steps around a model at 10^4, 10^5 and 10^6 rows, and a chart

To compare with another version, check it out, and run this same file on it:

    git worktree add ../before COMMIT
    PYTHONPATH=../before python scripts/bench/growth.py --output before.json
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, WIDTH, CENTRES = 256, 256, 200
BANK_QUERIES, VERSIONS, SHARD = 200, 100, 1024
MILLION = ("extract", "predict", "evaluated", "bank")
FINGERPRINT = {"model": "m" * 64, "adapter": "a" * 64, "inputs.prompt_template": "<image> {text}?", "dtype": "auto"}

Cell = Callable[[int, Path], Callable[[], object]]
"""Prepares so many rows in a folder, and returns the call to measure."""
Cells = dict[int, dict[str, float] | None]
"""What was measured of one step, by rows; None: it took too long."""


def states(rows: int, width: int, seed: int) -> np.ndarray:
    """float32 [N, width] around common centres, with a spread that falls from dimension to dimension."""
    spread = np.arange(1, width + 1, dtype=np.float32) ** -0.5
    centres = np.random.default_rng(0).standard_normal((CENTRES, width), dtype=np.float32)
    rng = np.random.default_rng(seed)
    found = 0.7 * rng.standard_normal((rows, width), dtype=np.float32)
    found += centres[rng.integers(0, CENTRES, rows)]
    return found * spread


def labels_of(rows: int) -> np.ndarray:
    """Half of each class."""
    return np.random.default_rng(3).integers(0, 2, rows)


def features(rows: int, prefix: str = "m", seed: int = 1, **more: Any) -> Any:
    """Features of drawn memes."""
    from ra_hmd.features.store import Features

    return Features([f"{prefix}{row}" for row in range(rows)], labels_of(rows), states(rows, HIDDEN, seed), **more)


def settings(folder: Path, **changes: Any) -> Any:
    """Settings of Stage 2."""
    from stage2.arguments import Stage2Arguments

    places = {"train": folder / "train", "dev": folder / "dev", "output_dir": folder / "out"}
    return Stage2Arguments(**places, proj_dim=WIDTH, epochs=1, **changes)


def stage2_epoch(rows: int, folder: Path) -> Callable[[], object]:
    """One epoch with mining and the dev scores of 1,000 memes."""
    import torch

    from ra_hmd.core.memory import keep_freed_memory
    from ra_hmd.models.head import HeadConfig, MemeHead
    from stage2.trainer import Trainer

    torch.manual_seed(0)
    keep_freed_memory()
    head = MemeHead(HeadConfig(input_dim=HIDDEN, proj_dim=WIDTH))
    trainer = Trainer(settings(folder), head, features(rows), features(1000, "d", 2), torch.device("cpu"))
    return lambda: trainer.close_epoch(1, trainer.train_epoch(1, lambda: None))


def mining(rows: int, folder: Path, bank: np.ndarray, refreshes: int = 1, more: Any = None, **changes: Any) -> Any:
    """What Stage 2 does to mine, as often as the bank is refreshed; `refreshes` > 1 shows what is kept."""
    import torch

    from stage2.miner import Miner

    train, labels = features(rows, **more or {}), torch.from_numpy(labels_of(rows))

    def measured() -> None:
        miner = Miner(settings(folder, **changes), train)
        for number in range(refreshes):
            miner.refresh(torch.from_numpy(bank), labels, number, 0)

    return measured


def mining_dense(rows: int, folder: Path) -> Callable[[], object]:
    """One search of the bank."""
    return mining(rows, folder, states(rows, WIDTH, 4), metric="cos")


def mining_noise(rows: int, folder: Path) -> Callable[[], object]:
    """One search among rows without structure."""
    noise = np.random.default_rng(4).standard_normal((rows, WIDTH), dtype=np.float32)
    return mining(rows, folder, noise, metric="cos")


def mining_sparse(rows: int, folder: Path) -> Callable[[], object]:
    """Two refreshes by words: nine of 20,000 per caption, some common, some rare."""
    rng = np.random.default_rng(5)
    words = np.minimum(rng.zipf(1.3, (rows, 9)), 20_000)
    texts = [" ".join(f"w{number}" for number in line) for line in words]
    return mining(rows, folder, states(rows, WIDTH, 4), 2, {"texts": texts}, mining="sparse")


def mining_near_duplicates(rows: int, folder: Path) -> Callable[[], object]:
    """One search where a fifth of the rows is one group of near-duplicate images."""
    rng = np.random.default_rng(6)
    hashes = rng.integers(1, 2**63, rows, dtype=np.uint64)
    group = rng.choice(rows, rows // 5, replace=False)
    hashes[group] = hashes[0] ^ (np.uint64(1) << rng.integers(0, 3, len(group)).astype(np.uint64))
    more = {"image_hashes": hashes}
    return mining(rows, folder, states(rows, WIDTH, 4), 1, more, metric="cos", near_duplicate_bits=3)


def mining_equal(rows: int, folder: Path) -> Callable[[], object]:
    """One search where a fifth of the rows is the same meme under other ids."""
    bank = states(rows, WIDTH, 4)
    bank[np.random.default_rng(6).choice(rows, rows // 5, replace=False)] = bank[0]
    return mining(rows, folder, bank, metric="cos")


def trained_head(folder: Path) -> None:
    """A head in a folder `head`."""
    import torch

    from ra_hmd.models.head import HeadConfig, MemeHead, save_head

    torch.manual_seed(0)
    head = MemeHead(HeadConfig(input_dim=HIDDEN, proj_dim=WIDTH))
    save_head(folder / "head", head.config, head.state_dict())


def stores(folder: Path, **sizes: int) -> None:
    """Feature stores of those names and sizes."""
    from ra_hmd.features.store import write_features

    for seed, (name, size) in enumerate(sizes.items()):
        write_features(folder / name, features(size, name, 7 + seed), FINGERPRINT | {"data": name})


def extract_writing(rows: int, folder: Path) -> Callable[[], object]:
    """All that `extract` does to a store but for the model: shards of drawn features, each written as it is made."""
    from ra_hmd.features.store import FeatureWriter

    def measured() -> None:
        digests = [f"{row:064x}" for row in range(rows)]
        writer = FeatureWriter(folder / "store", FINGERPRINT, rows, SHARD, ids=digests, digests=digests)
        writer.begin()
        for shard in writer.missing():
            first, last = writer.bounds(shard)
            writer.write(shard, features(last - first, f"{shard}-", shard))
        writer.finish()

    return measured


def extract_reading(rows: int, folder: Path) -> Callable[[], object]:
    """A store is read into memory."""
    from ra_hmd.features.store import read_features

    extract_writing(rows, folder)()
    return lambda: read_features(folder / "store")


def evaluate_stores(rows: int, folder: Path, queries: int = 0) -> Callable[[], object]:
    """`evaluate` of a tenth as many queries (or so many) against a bank of so many rows, without intervals."""
    from ra_hmd.evaluation.evaluate import evaluate

    trained_head(folder)
    stores(folder, train=rows, dev=queries or max(rows // 10, 1000))
    return lambda: evaluate(folder / "head", folder / "train", [folder / "dev"], folder / "out", bootstrap_samples=0)


def predict_stores(rows: int, folder: Path) -> Callable[[], object]:
    """`predict` of the vote on a store of so many rows, against a bank of 1,000."""
    from ra_hmd.inference.batch_features import predict_features

    trained_head(folder)
    stores(folder, train=1000, new=rows)
    return lambda: predict_features(
        folder / "head", folder / "new", folder / "out.jsonl", head="rkc", bank=folder / "train"
    )


def bank_rows(first: int, count: int) -> Any:
    """Rows of a bank, by numbers."""
    from ra_hmd.bank.versions import BankRows

    return BankRows([f"m{number}" for number in range(first, first + count)], labels_of(count))


def bank_of(folder: Path, embedding: np.ndarray) -> Any:
    """A new bank, opened."""
    from ra_hmd.bank.bank import Bank

    rows = bank_rows(0, len(embedding))
    return Bank.create(folder / "bank", rows, embedding, fingerprint={}, author="bench", reason="bench")


def queries_of(count: int, embedding: np.ndarray) -> Any:
    """Queries near rows of a bank."""
    from ra_hmd.retrieval.embeddings import Embeddings

    near = embedding[:count] + 0.01 * states(min(count, len(embedding)), WIDTH, 9)
    return Embeddings([f"q{number}" for number in range(len(near))], np.zeros(len(near), int), near)


def bank_search(rows: int, folder: Path) -> Callable[[], object]:
    """200 queries to a bank that is open."""
    embedding = states(rows, WIDTH, 4)
    bank, queries = bank_of(folder, embedding), queries_of(BANK_QUERIES, embedding)
    bank.nearest(queries_of(1, embedding), 20)
    return lambda: bank.nearest(queries, 20)


def bank_search_equal(rows: int, folder: Path) -> Callable[[], object]:
    """200 queries to a bank of which a fifth is one meme under other ids; they are near it."""
    embedding = states(rows, WIDTH, 4)
    embedding[: rows // 5] = embedding[0]
    bank, queries = bank_of(folder, embedding), queries_of(min(BANK_QUERIES, rows // 5), embedding)
    return lambda: bank.nearest(queries, 20)


def bank_added_row(rows: int, folder: Path) -> Callable[[], object]:
    """One row is added to an open bank, and one query searched."""
    embedding = states(rows + 1, WIDTH, 4)
    bank, query = bank_of(folder, embedding[:rows]), queries_of(1, embedding)
    bank.nearest(query, 20)

    def measured() -> None:
        bank.add(bank_rows(rows, 1), embedding[rows:], author="bench", reason="bench")
        bank.nearest(query, 20)

    return measured


def bank_opening(rows: int, folder: Path) -> Callable[[], object]:
    """A bank with 100 versions is opened, without a search."""
    from ra_hmd.bank.bank import Bank

    embedding = states(rows + VERSIONS, WIDTH, 4)
    bank = bank_of(folder, embedding[:rows])
    for number in range(rows, rows + VERSIONS):
        bank.add(bank_rows(number, 1), embedding[number : number + 1], author="bench", reason="bench")
    bank.close()
    return lambda: Bank.open(folder / "bank")


def clusters(rows: int, folder: Path) -> Callable[[], object]:
    """`ra-hmd cluster` on a store: five fits of eight clusters, and the report without images."""
    from ra_hmd.clusters.run import cluster_store
    from ra_hmd.clusters.settings import ClusterSettings
    from ra_hmd.features.store import write_features

    found = features(rows, modalities=(HIDDEN // 2, HIDDEN // 2))
    write_features(folder / "train", found, FINGERPRINT | {"data": "train"}, split="train", encoder={"path": "clip"})
    return lambda: cluster_store(folder / "train", folder / "out", ClusterSettings())


CELLS: dict[str, Cell] = {
    "extract, writing": extract_writing,
    "extract, reading": extract_reading,
    "stage2 epoch": stage2_epoch,
    "mining dense": mining_dense,
    "mining noise": mining_noise,
    "mining sparse": mining_sparse,
    "mining near-duplicates": mining_near_duplicates,
    "mining equal rows": mining_equal,
    "evaluate": evaluate_stores,
    "evaluated bank": partial(evaluate_stores, queries=1000),
    "predict": predict_stores,
    "bank search": bank_search,
    "bank search, equal rows": bank_search_equal,
    "bank, one row added": bank_added_row,
    "bank opening": bank_opening,
    "clusters": clusters,
}


def resident(field: str) -> float:
    """MiB of this process: `VmRSS` now, or `VmHWM` at most; elsewhere than on Linux the most, for both."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def measure(name: str, rows: int) -> dict[str, float]:
    """Seconds of clock and processor of one cell, and by how many MiB it raised the resident memory at most."""
    with tempfile.TemporaryDirectory() as folder:
        call = CELLS[name](rows, Path(folder))
        peak = Path("/proc/self/clear_refs")
        if peak.exists():
            peak.write_text("5")  # what was the most starts anew
        before, cpu, began = resident("VmRSS"), time.process_time(), time.perf_counter()
        call()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        return {"seconds": seconds, "cpu_seconds": cpu, "extra_mib": max(resident("VmHWM") - before, 0.0)}


def child(name: str, rows: int, limit: float) -> dict[str, float] | None:
    """`measure` in a process of its own; None where that takes longer than `limit` seconds with its preparation."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", json.dumps([name, rows])]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{name} at {rows} rows failed:\n{error.stderr}") from error
    return json.loads(done.stdout.splitlines()[-1])


def growth(results: Cells, rows: int, clock: str, step: int) -> str:
    """The factor per `step` times the rows, from the size before, or a dash."""
    before = max((size for size in results if size < rows and results[size]), default=None)
    if before is None or not results[rows]:
        return "-"
    return f"{(results[rows][clock] / results[before][clock]) ** (1 / math.log(rows / before, step)):.2f}"


def chart(table: dict[str, Cells], path: Path, clock: str) -> None:
    """Time and memory of each step over the rows, both axes logarithmic, beside what linear growth would be."""
    from ra_hmd.core.plotting import GREY, legend_below, panels, save_svg

    figure, (axes,) = panels(2, 5.6, 4.4)
    for axis, field, what in zip(axes, (clock, "extra_mib"), (f"{clock.replace('_', ' ')}", "MiB more"), strict=True):
        for number, (name, results) in enumerate(table.items()):
            points = [(rows, max(found[field], 1e-3)) for rows, found in results.items() if found]
            axis.plot(*zip(*points, strict=True), marker="osDv^P*X"[number % 8], label=name, color=f"C{number}")
        sizes = sorted({rows for results in table.values() for rows in results})
        low = 0.01 if field == clock else 1.0
        axis.plot(sizes, [low * rows / sizes[0] for rows in sizes], color=GREY, linestyle=":", label="linear")
        axis.set(xscale="log", yscale="log", xlabel="rows", ylabel=what)
    legend_below(axes[0])
    save_svg(figure, path)


def main() -> None:
    """Measure every cell that is requested and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 50_000, 100_000])
    parser.add_argument("--only", nargs="+", default=[""], help="Beginnings of names: " + ", ".join(CELLS))
    parser.add_argument("--limit", type=float, default=300, help="Most seconds of a cell, with its preparation.")
    parser.add_argument("--clock", choices=("seconds", "cpu_seconds"), default="seconds")
    parser.add_argument("--million", action="store_true", help="See above; rows, steps and clock are set.")
    parser.add_argument("--chart", type=Path, help="An SVG to draw.")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*json.loads(options.child))))
        return
    step = 10 if options.million else 2
    if options.million:
        options.rows, options.only, options.clock = [10_000, 100_000, 1_000_000], list(MILLION), "cpu_seconds"
    table: dict[str, Cells] = {}
    print(f"{'':26}{'rows':>11}{options.clock:>13}{f'per {step} times':>14}{'extra MiB':>11}")
    for name in (name for name in CELLS if name.startswith(tuple(options.only))):
        results = table.setdefault(name, {})
        for rows in sorted(options.rows):
            after_limit = results and list(results.values())[-1] is None
            results[rows] = found = None if after_limit else child(name, rows, options.limit)
            seconds = f"{found[options.clock]:.2f}" if found else f"> {options.limit:.0f}"
            memory = f"{found['extra_mib']:,.0f}" if found else "-"
            factor = growth(results, rows, options.clock, step)
            print(f"{name:26}{rows:11,}{seconds:>13}{factor:>14}{memory:>11}", flush=True)
    if options.chart:
        chart(table, options.chart, options.clock)
    if options.output:
        options.output.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
