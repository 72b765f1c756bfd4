"""The kernel head of a bank that changes: time from adding one row until a query is answered by it, and per query.

Clustered unit vectors as in `bank_search.py`; the label of a row is the parity of its cluster, for a tenth of the rows
the other one. Each size runs in a process of its own, with the bank open as a service has it. A row is added
(`Bank.add`), the head follows (`refreshed_kernel`), and one query is answered (with `Bank.nearest`, which adds the row
to the index); then queries are timed one by one and in batches. Times are medians, wall and CPU; of an addition also
the CPU time up to the answer. Every setting answers the same queries, and is compared with the first one: share of
equal verdicts, correlation of the scores, AUROC by the queries' own clusters.

    OMP_NUM_THREADS=1 python scripts/bench/bank_update.py [--rows 5000 10000 100000 1000000] [--output x.json]

One system of all rows keeps an inverse of 8 N² bytes, 0.8 GB for 10,000 rows and 80 GB for 100,000: it is measured up
to `--exact-rows`. Beyond, the head of 1,024 nearest rows is what others are compared with.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.versions import BankRows
from ra_hmd.core.problem import Problem
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.knn import unit_rows
from ra_hmd.scoring.bank_kernel import kernel_classifier_of, refreshed_kernel
from ra_hmd.scoring.kernel_classifier import KernelClassifier

CENTRES, NOISE, ADDED, SINGLE = 200, 0.1, 20, 200


def clustered(count: int, dim: int, seed: int, prefix: str) -> Embeddings:
    """Unit rows [N, D] around common centres, labelled by the parity of their centre."""
    centres = np.random.default_rng(0).standard_normal((CENTRES, dim), dtype=np.float32)
    rng = np.random.default_rng(seed)
    near = rng.integers(0, CENTRES, count)
    rows = centres[near] + 0.7 * rng.standard_normal((count, dim), dtype=np.float32)
    return Embeddings([f"{prefix}{number}" for number in range(count)], near % 2, unit_rows(rows))


def noisy(rows: Embeddings, seed: int) -> BankRows:
    """Ids and labels of rows for a bank, a tenth of the labels flipped."""
    wrong = np.random.default_rng(seed).random(len(rows)) < NOISE
    return BankRows(list(rows.ids), rows.labels ^ wrong)


class Times:
    """Wall and CPU milliseconds of repeated steps."""

    def __init__(self) -> None:
        self.values: dict[str, list[tuple[float, float]]] = defaultdict(list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time one repetition."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.values[name].append((1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)))

    def medians(self) -> dict[str, list[float]]:
        """Name of each step to its median wall and CPU time."""
        return {name: np.median(values, axis=0).tolist() for name, values in self.values.items()}


def settings_of(rows: int, exact_rows: int) -> dict[str, KernelSettings]:
    """Settings by name; the first is what others are compared with."""
    local = {f"local {count}": KernelSettings(exact_rows=1, local_rows=count) for count in (256, 512, 1024)}
    if rows <= exact_rows:
        return {"exact": KernelSettings(exact_rows=2 * rows), **local}
    return {name: local[name] for name in ("local 1024", "local 256", "local 512")}


def measure(rows: int, dim: int, queries: int, exact_rows: int) -> list[dict[str, Any]]:
    """One line per setting for a bank of a size."""
    asked, results = clustered(queries, dim, 2, "q"), []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "bank")
        first = clustered(rows, dim, 1, "m")
        Bank.create(place, noisy(first, 3), first.embedding, fingerprint={}, author="bench", reason="bench").close()
        del first
        scores: dict[str, np.ndarray] = {}
        for name, settings in settings_of(rows, exact_rows).items():
            with Bank.open(place) as bank:
                bank.nearest(asked.select(np.arange(1)), 20)  # the index is built, or read
                began = time.process_time()
                head = kernel_classifier_of(bank, Problem("binary", 1), settings)
                result = {"rows": rows, "dim": dim, "head": name, "fit_cpu_s": time.process_time() - began}
                times = Times()
                for number in range(min(SINGLE, queries)):
                    one = asked.select(np.array([number]))
                    with times.step("query_ms"):
                        head.predict(one)
                with times.step("batch_ms"):
                    scores[name] = head.predict(asked).scores[:, 0]
                add_rows(bank, head, asked, clustered(ADDED, dim, 4, f"{name} "), times)
                result |= times.medians()
                bank.rollback(1, author="bench", reason="as it was created")
            basis = next(iter(scores.values()))
            result["same_verdict"] = float(((scores[name] >= 0) == (basis >= 0)).mean())
            result["correlation"] = float(np.corrcoef(scores[name], basis)[0, 1])
            result["auroc"] = float(roc_auc_score(asked.labels, scores[name]))
            results.append(result)
    return results


def add_rows(bank: Bank, head: KernelClassifier, asked: Embeddings, new: Embeddings, times: Times) -> None:
    """Add rows one by one, each until a query is answered by the changed bank."""
    meta = noisy(new, 5)
    for number in range(ADDED):
        row, vector = BankRows([meta.ids[number]], meta.labels[[number]]), new.embedding[[number]]
        query = asked.select(np.array([number % len(asked)]))
        with times.step("bank_ms"):
            bank.add(row, vector, author="bench", reason="bench")
        with times.step("head_ms"):
            head = refreshed_kernel(head, bank)
        with times.step("answer_ms"):
            head.predict(query)


def main() -> None:
    """Measure every size and print one line per setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--exact-rows", type=int, default=10_000, help="largest bank that is solved as one system")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.dim, options.queries, options.exact_rows)))
        return
    results: list[dict[str, Any]] = []
    for rows in options.rows:
        words = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in ("dim", "queries", "exact-rows")]
        command = [sys.executable, "-W", "ignore", __file__, f"--child={rows}", *words]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        for result in json.loads(done.stdout.splitlines()[-1]):
            results.append(result)
            times = {key: "/".join(f"{value:.2f}" for value in result[key]) for key in result if key.endswith("_ms")}
            print(
                f"{rows:9,} rows, {result['head']:10}: a row added: bank {times['bank_ms']}, head {times['head_ms']}, "
                f"answer {times['answer_ms']}; a query {times['query_ms']}, {options.queries} in a batch "
                f"{times['batch_ms']} (ms, wall/CPU); same verdicts {result['same_verdict']:.4f}, correlation "
                f"{result['correlation']:.4f}, AUROC {result['auroc']:.4f}; fitted in {result['fit_cpu_s']:.1f} CPU s",
                flush=True,
            )
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
