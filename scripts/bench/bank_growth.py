"""What a growing bank costs: a search after one added row, and opening a folder with a long history.

Per number of rows, on one machine in one run: the median time from a change by another process to the next answer
(`refresh` and one search) after one added row, beside that of a search without a change and that of opening the folder
anew and searching. Per number of versions: opening with the checkpoint of the log, and without it. The ratios carry
over to other machines, the times do not.

    python scripts/bench/bank_growth.py [--rows 1000 10000 50000 100000] [--versions 100 1000] [--dim 512]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.versions import BankRows
from ra_hmd.retrieval.embeddings import Embeddings

K, SAID = 20, {"author": "bench", "reason": "bench"}


def rows_of(names: list[str]) -> BankRows:
    """Rows without anything but ids and labels."""
    return BankRows(names, np.arange(len(names)) % 2)


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def added_row(folder: Path, rows: int, dim: int, turns: int = 9) -> str:
    """A line of the first table."""
    embedding = np.random.default_rng(0).random((rows + turns, dim), dtype=np.float32)
    writer = Bank.create(
        folder, rows_of([f"m{number}" for number in range(rows)]), embedding[:rows], fingerprint={}, **SAID
    )
    query, reader = Embeddings(["q"], np.zeros(1, int), embedding[:1]), Bank.open(folder)
    reader.nearest(query, K)
    still = median(seconds(lambda: reader.nearest(query, K)) for _ in range(turns))
    after = []
    for turn in range(turns):
        writer.add(rows_of([f"n{turn}"]), embedding[rows + turn :][:1], **SAID)
        after.append(seconds(lambda: (reader.refresh(), reader.nearest(query, K))))
    anew = median(seconds(lambda: Bank.open(folder).nearest(query, K)) for _ in range(3))
    return (
        f"{rows:9,} rows: search {1e3 * still:7.1f} ms, after one added row {1e3 * median(after):7.1f} ms "
        f"({median(after) / still:5.1f} times; the first time {1e3 * after[0]:.1f} ms), opened anew {1e3 * anew:7.1f} "
        f"ms ({anew / still:6.1f} times)"
    )


def history(folder: Path, versions: int) -> str:
    """A line of the second table."""
    writer = Bank.create(folder, rows_of(["a"]), np.ones((1, 8), np.float32), fingerprint={}, **SAID)
    for version in range(1, versions):
        writer.relabel({"a": version % 2}, **SAID)
    kept = median(seconds(lambda: Bank.open(folder)) for _ in range(5))
    (folder / "cache" / "log.parquet").unlink()
    lost = median(seconds(lambda: Bank.open(folder)) for _ in range(5))
    return (
        f"{versions:9,} versions: opened in {1e3 * kept:7.1f} ms, without the checkpoint {1e3 * lost:7.1f} ms "
        f"({lost / kept:.1f} times)"
    )


def main() -> None:
    """Print one line per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 50_000, 100_000])
    parser.add_argument("--versions", type=int, nargs="+", default=[100, 1000], help="at least 64 each")
    parser.add_argument("--dim", type=int, default=512)
    options = parser.parse_args()
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            print(added_row(Path(folder, "bank"), rows, options.dim), flush=True)
    for versions in options.versions:
        with tempfile.TemporaryDirectory() as folder:
            print(history(Path(folder, "bank"), versions), flush=True)


if __name__ == "__main__":
    main()
