"""Searching an example bank: queries per second, recall@20 and memory, by size, index and backend.

Clustered unit vectors stand for embeddings: 200 centres, and each row lies near one of them. Queries are drawn alike
and are not in the bank. Each measurement runs in a process of its own, which creates the bank, opens it, searches once
to warm up, and then as often as fits into a few seconds, in batches and one by one. Recall@20 is measured on the
queries against plain products; the index itself was tuned on other rows. Peak memory is that of another process, which
only opens the bank and searches (for Milvus Lite also its server's).

    python scripts/bench/bank_search.py [--rows 10000 100000 1000000] [--dim 128] [--queries 1000] [--output x.json]

About eleven minutes on one core. HNSW is left out above `--hnsw-rows`, where building its graph takes many minutes.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.versions import BankRows
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.knn import unit_rows

K, CENTRES, SECONDS = 20, 200, 4.0


def clustered(count: int, dim: int, seed: int) -> np.ndarray:
    """Unit rows [N, D] around common centres."""
    centres = np.random.default_rng(0).standard_normal((CENTRES, dim), dtype=np.float32)
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(0, CENTRES, count)]
    rows += 0.7 * rng.standard_normal((count, dim), dtype=np.float32)
    return unit_rows(rows)


def measure(place: str, index: str, rows: int, dim: int, queries: int) -> dict[str, Any]:
    """Create, open and search one bank."""
    searched = Embeddings(
        [f"q{number}" for number in range(queries)], np.zeros(queries, int), clustered(queries, dim, 2)
    )
    began = time.perf_counter()
    embedding = clustered(rows, dim, 1)
    meta = BankRows([f"m{number}" for number in range(rows)], np.arange(rows) % 2)
    truth = exact(searched.embedding, embedding)
    began = time.perf_counter()
    Bank.create(place, meta, embedding, fingerprint={}, author="bench", reason="bench", index=index).close()
    created = time.perf_counter() - began
    del embedding, meta
    began = time.perf_counter()
    bank = Bank.open(place)
    near = bank.nearest(searched, K)
    ready = time.perf_counter() - began
    turns, began = 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        bank.nearest(searched, K)
        turns += 1
    batch = turns * queries / (time.perf_counter() - began)
    turns, began = 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        bank.nearest(Embeddings(["q"], searched.labels[:1], searched.embedding[[turns % queries]]), K)
        turns += 1
    single = turns / (time.perf_counter() - began)
    about = bank.info()
    bank.close()
    shared = [len(set(a) & set(b)) / K for a, b in zip(near.rows, truth, strict=True)]
    return {
        "backend": about["backend"],
        "index": about["index"],
        "rows": rows,
        "dim": dim,
        "recall_at_20": float(np.mean(shared)),
        "queries_per_second": batch,
        "one_by_one_per_second": single,
        "create_seconds": created,
        "open_and_first_search_seconds": ready,
    }


def exact(queries: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """The K nearest rows [Q, K] by plain products, block by block."""
    best = np.zeros((len(queries), 0), np.float32)
    rows = np.zeros((len(queries), 0), np.int64)
    for first in range(0, len(bank), 65_536):
        near = queries @ bank[first : first + 65_536].T
        top = np.argpartition(-near, min(K, near.shape[1] - 1), axis=1)[:, :K]
        best = np.concatenate([best, np.take_along_axis(near, top, axis=1)], axis=1)
        rows = np.concatenate([rows, top + first], axis=1)
        order = np.argsort(-best, axis=1)[:, :K]
        best, rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return rows


def reopened(place: str, dim: int) -> dict[str, float]:
    """Memory of a process that only opens the bank and searches: peak resident bytes, with those of the imports."""
    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    bank = Bank.open(place)
    bank.nearest(Embeddings(["q"], np.zeros(1, int), clustered(1, dim, 3)), K)
    server = sum(process.memory_info().rss for process in psutil.Process().children()) / 2**20
    bank.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mib": peak, "imports_mib": imports, "server_mib": server}


def child(work: str, *arguments: Any) -> dict[str, Any]:
    """Run `measure` or `reopened` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--child", json.dumps([work, *arguments])],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure every combination and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--milvus-rows", type=int, default=1_000_000, help="left out above")
    parser.add_argument("--indexes", nargs="+", default=["flat", "ivf", "hnsw", "milvus"])
    parser.add_argument("--hnsw-rows", type=int, default=100_000, help="left out above")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        work, *arguments = json.loads(options.child)
        print(json.dumps({"measure": measure, "reopened": reopened}[work](*arguments)))
        return
    results = []
    for rows in options.rows:
        for index in options.indexes:
            if rows > {"milvus": options.milvus_rows, "hnsw": options.hnsw_rows}.get(index, rows):
                print(f"{index:6} {rows:9,} rows: left out", flush=True)
                continue
            with tempfile.TemporaryDirectory() as folder:
                place = str(Path(folder, "bank.db" if index == "milvus" else "bank"))
                kind = "auto" if index == "milvus" else index
                result = child("measure", place, kind, rows, options.dim, options.queries)
                result |= child("reopened", place, options.dim)
            results.append(result)
            server = f" + server {result['server_mib']:.0f}" if index == "milvus" else ""
            print(
                f"{index:6} {rows:9,} rows x {options.dim}: {result['queries_per_second']:8,.0f} queries/s in batches, "
                f"{result['one_by_one_per_second']:6,.0f} one by one, recall@20 {result['recall_at_20']:.4f}, "
                f"created in {result['create_seconds']:.1f} s, opened and searched in "
                f"{result['open_and_first_search_seconds']:.1f} s, peak {result['peak_mib']:,.0f} MiB "
                f"(imports {result['imports_mib']:.0f}){server}",
                flush=True,
            )
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
