"""The folder of a bank against a trial of LanceDB (`lance_bank.py`): what each does, in one run.

    pip install lancedb 'moto[server]' boto3
    python scripts/bench/bank_stores.py [--only kills rows versions objects weight] [--rows 10000 100000 1000000]

`kills` is `tests/bank/bank_processes.py`: `kill -9` of one of two writers at random moments while a reader checks whole
versions; afterwards the log must name every acknowledged change, and replayed give the content. `rows` writes a bank of
so many rows of 256 dimensions, adds one, opens it and searches it, each in a process of its own. `versions` adds rows
one by one. `objects` has two writers and S3 as `moto` imitates it. `weight` is what LanceDB adds to an installation.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import files
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.versions import BankRows
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.knn import unit_rows

ROOT = Path(__file__).parents[2]
DIM, CENTRES, K, QUERIES = 256, 200, 20, 200
SAID = {"author": "bench", "reason": "bench"}
ADDED_BY_LANCEDB = ("lancedb", "lance-namespace", "lance-namespace-urllib3-client", "deprecation", "overrides")
BUCKET, EACH = "banks", 20


def clustered(count: int, seed: int) -> np.ndarray:
    """Unit rows [N, D] around common centres."""
    centres = np.random.default_rng(0).standard_normal((CENTRES, DIM), dtype=np.float32)
    rng = np.random.default_rng(seed)
    rows = 0.7 * rng.standard_normal((count, DIM), dtype=np.float32)
    rows += centres[rng.integers(0, CENTRES, count)]
    return unit_rows(rows)


def numbered(first: int, count: int, prefix: str = "m") -> BankRows:
    """Rows without anything but ids and labels."""
    return BankRows([f"{prefix}{number}" for number in range(first, first + count)], np.arange(count) % 2)


def queries(count: int = QUERIES) -> Embeddings:
    """Queries that are not in a bank."""
    return Embeddings([f"q{number}" for number in range(count)], np.zeros(count, int), clustered(count, 2))


def cpu_of(call: Callable[[], object]) -> float:
    """CPU seconds of a call, in all threads."""
    began = time.process_time()
    call()
    return time.process_time() - began


def stored_bytes(place: str) -> int:
    """Bytes of the files of a bank."""
    return sum(path.stat().st_size for path in Path(place).rglob("*") if path.is_file())


def write_rows(place: str, rows: int) -> dict[str, float]:
    """Create a bank of so many rows, then add single ones."""
    embedding = clustered(rows, 1)
    create = cpu_of(lambda: Bank.create(place, numbered(0, rows), embedding, fingerprint={}, **SAID).close())
    bank = Bank.open(place)
    more = clustered(5, 3)
    adds = [cpu_of(lambda n=n: bank.add(numbered(rows + n, 1), more[n : n + 1], **SAID)) for n in range(5)]
    return {"create_s": create, "add_ms": 1e3 * median(adds), "mib_on_disk": stored_bytes(place) / 2**20}


def read_rows(place: str, rows: int) -> dict[str, float]:
    """Open a bank and search it; memory beyond that of the imports."""
    asked = queries()
    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    banks: list[Bank] = []
    opened = cpu_of(lambda: banks.append(Bank.open(place)))
    [bank] = banks
    first = cpu_of(lambda: bank.nearest(queries(1), K))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imports) / 1024
    batch = cpu_of(lambda: bank.nearest(asked, K)) / QUERIES
    single = median(
        cpu_of(lambda n=n: bank.nearest(Embeddings(["q"], asked.labels[:1], asked.embedding[[n]]), K))
        for n in range(20)
    )
    found = bank.nearest(asked, K)
    return {
        "open_s": opened,
        "first_search_s": first,
        "query_ms": 1e3 * single,
        "query_in_batch_ms": 1e3 * batch,
        "recall": recall(asked.embedding, found.rows, rows),
        "peak_mib": peak,
    }


def recall(asked: np.ndarray, found: np.ndarray, rows: int) -> float:
    """Share of the K nearest rows by plain products that were found."""
    bank = np.concatenate([clustered(rows, 1), clustered(5, 3)])
    best = np.argpartition(-(asked @ bank.T), K, axis=1)[:, :K]
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(best, found, strict=True)]))


def write_versions(place: str, versions: int) -> dict[str, float]:
    """A bank of so many versions, of one row each."""
    embedding = clustered(versions, 1)
    bank = Bank.create(place, numbered(0, 1), embedding[:1], fingerprint={}, **SAID)
    adds = [cpu_of(lambda n=n: bank.add(numbered(n, 1), embedding[n : n + 1], **SAID)) for n in range(1, versions)]
    return {"add_ms": 1e3 * median(adds[-100:]), "all_s": sum(adds), "mib_on_disk": stored_bytes(place) / 2**20}


def read_versions(place: str, versions: int) -> dict[str, float]:
    """Open a bank with a long history, search it, and roll it back."""
    banks: list[Bank] = []
    opened = cpu_of(lambda: banks.append(Bank.open(place)))
    [bank] = banks
    first = cpu_of(lambda: bank.nearest(queries(1), K))
    back = cpu_of(lambda: bank.rollback(versions // 2, **SAID))
    assert len(bank) == versions // 2
    assert bank.log[versions // 3].author == SAID["author"]
    return {"open_s": opened, "first_search_s": first, "rollback_s": back}


def write_objects(place: str, name: str) -> dict[str, float]:
    """Add rows while another process does; how long a change takes, with the conflicts in it."""
    embedding = clustered(EACH, len(name))
    bank, begin = Bank.open(place), time.perf_counter()
    for number in range(EACH):
        bank.add(numbered(number, 1, name), embedding[number : number + 1], **SAID)
    return {"add_ms": 1e3 * (time.perf_counter() - begin) / EACH}


def objects(store: str) -> dict[str, Any]:
    """Two writers of a bank on an object store."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, ip_address="127.0.0.1", verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    try:
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=BUCKET)
        place = f"s3://{BUCKET}/{place_of(store, '').lstrip('/')}"
        child(store, "create_objects", place, 0)
        writers = [start(store, "write_objects", place, name) for name in ("a", "bb")]
        results = [json.loads(writer.communicate()[0].splitlines()[-1]) for writer in writers]
        return {"add_ms": [result["add_ms"] for result in results], **child(store, "read_objects", place, 0)}
    finally:
        server.stop()


def create_objects(place: str, _: int) -> dict[str, float]:
    """A bank of 1,000 rows."""
    Bank.create(place, numbered(0, 1000), clustered(1000, 1), fingerprint={}, **SAID)
    return {}


def read_objects(place: str, _: int) -> dict[str, float]:
    """What is there after both writers, and the seconds until it is open."""
    begin = time.perf_counter()
    bank = Bank.open(place)
    opened = time.perf_counter() - begin
    assert [entry.version for entry in bank.log] == list(range(1, 2 * EACH + 2))
    return {"open_s": opened, "versions": bank.version, "rows": len(bank), "expected_rows": 1000 + 2 * EACH}


def kills(place: str, rounds: int) -> dict[str, Any]:
    """See `kill_both`."""
    sys.path.insert(0, str(ROOT / "tests" / "bank"))
    from bank_processes import kill_both

    return kill_both(place, rounds)


def weight() -> dict[str, Any]:
    """MiB of the packages that LanceDB adds, and lines of the toolkit that it would take the place of."""
    sizes = {
        name: sum(file.locate().stat().st_size for file in files(name) or [] if file.locate().is_file())
        for name in ADDED_BY_LANCEDB
    }
    bank = ROOT / "ra_hmd" / "bank"
    replaced = [*sorted((bank / "backends").glob("parquet*.py")), *sorted((bank / "backends").glob("folder*.py"))]
    lines = {path.name: len(path.read_text().splitlines()) for path in [*replaced, bank / "log_checkpoint.py"]}
    trial = len(Path(__file__).with_name("lance_bank.py").read_text().splitlines())
    return {"mib": sum(sizes.values()) / 2**20, "lines_replaced": lines, "lines_of_the_trial": trial}


WORK = {
    work.__name__: work
    for work in (
        write_rows,
        read_rows,
        write_versions,
        read_versions,
        create_objects,
        write_objects,
        read_objects,
        kills,
    )
}


def place_of(store: str, folder: str) -> str:
    """Where a store keeps the bank."""
    return f"{folder}/bank.lance" if store == "lance" else f"{folder}/bank"


def start(store: str, work: str, place: str, argument: Any) -> subprocess.Popen:
    """A process that does the work and prints its result."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", json.dumps([store, work, place, argument])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def child(store: str, work: str, place: str, argument: Any) -> dict[str, Any]:
    """The work in a process of its own."""
    process = start(store, work, place, argument)
    out = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{store}: {work} ended with {process.returncode}")
    return json.loads(out.splitlines()[-1])


def measured(store: str, options: argparse.Namespace) -> dict[str, Any]:
    """All that is asked for of one store."""
    found: dict[str, Any] = {}
    for kind, sizes in (("rows", options.rows), ("versions", options.versions)):
        for size in sizes if kind in options.only else []:
            with tempfile.TemporaryDirectory() as folder:
                place = place_of(store, folder)
                both = {work: child(store, f"{work}_{kind}", place, size) for work in ("write", "read")}
            found[f"{size} {kind}"] = {f"{work} {name}": v for work, part in both.items() for name, v in part.items()}
            print(store, size, kind, json.dumps(found[f"{size} {kind}"]), flush=True)
    if "kills" in options.only:
        with tempfile.TemporaryDirectory() as folder:
            found["kills"] = child(store, "kills", place_of(store, folder), options.kills)
        print(store, json.dumps(found["kills"]), flush=True)
    if "objects" in options.only:
        found["objects"] = objects(store)
        print(store, json.dumps(found["objects"]), flush=True)
    return found


def main() -> None:
    """Measure what is asked for and print it line by line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["kills", "rows", "versions", "objects", "weight"]
    parser.add_argument("--stores", nargs="+", choices=("folder", "lance"), default=["folder", "lance"])
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--versions", type=int, nargs="+", default=[10_000])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    store, work, place, argument = json.loads(options.child) if options.child else ("", "", "", None)
    if "lance" in (options.stores if not options.child else [store]):
        import lance_bank  # noqa: F401  (it registers the backend)
    if options.child:
        print(json.dumps(WORK[work](place, argument)))
        return
    results = {store: measured(store, options) for store in options.stores}
    if "weight" in options.only:
        results["weight"] = weight()
        print(json.dumps(results["weight"]))
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
