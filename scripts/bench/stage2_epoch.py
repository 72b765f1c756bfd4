"""One epoch of Stage 2 against the bare matrix products that it cannot do without, in one run.

8,500 memes with hidden states of 3,584, embeddings of 1,024, batches of 64, one positive and one hard negative each;
1,500 dev memes are scored with K = 20. The bare products are those of the head's forward and backward pass, of
embedding the bank, of all similarities that mining looks at, and of the dev vote: float32, the same shapes, the same
threads, nothing else. The two are timed in turns, and medians compared.

Then one epoch each at 25,000, 50,000 and 100,000 rows of 512, to see how the parts grow: what is not search should grow
with the rows, exhaustive search with their square.

    python scripts/bench/stage2_epoch.py [--rows 8500] [--epochs 3] [--growth 25000 50000 100000] [--output result.json]
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ra_hmd.core.memory import keep_freed_memory
from ra_hmd.features.store import Features
from ra_hmd.models.head import HeadConfig, MemeHead
from stage2.arguments import Stage2Arguments
from stage2.trainer import Trainer

WIDTH, BATCH, DEV = 1024, 64, 1500


def features(rows: int, hidden: int, seed: int) -> Features:
    """Noisy classes: some neighbours are of the other one."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows)
    states = rng.standard_normal((rows, hidden), dtype=np.float32)
    states[:, :8] += (2 * labels[:, None] - 1).astype(np.float32)
    return Features([f"{seed}-{row}" for row in range(rows)], labels, states)


def bare_products(hidden: torch.Tensor, dev: torch.Tensor, labels: torch.Tensor) -> None:
    """Every matrix product of an epoch, once."""
    width = hidden.shape[1]
    weight = torch.randn(WIDTH, width)
    for batch in hidden.split(BATCH):
        embedding = batch @ weight.T
        _ = embedding.T @ batch  # gradient of the weight
        _ = embedding @ embedding.T
    bank = hidden @ weight.T
    for label in (0, 1):
        own = bank[labels == label]
        for block in own.split(4096):
            _ = block @ bank.T
    _ = (dev @ weight.T) @ bank.T


def timed(owner: Any, name: str, seconds: dict[str, float], part: str) -> None:
    """Add what a method takes to `seconds[part]`, without the timed parts that it calls."""
    method = getattr(owner, name)

    def wrapper(*args: Any) -> Any:
        begin, within = time.perf_counter(), sum(seconds.values())
        try:
            return method(*args)
        finally:
            within = sum(seconds.values()) - within
            seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - begin - within

    setattr(owner, name, wrapper)


def epoch(trainer: Trainer, number: int, seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of one epoch and of its parts, which the trainer's timed methods add to `seconds`."""
    seconds.clear()
    begin = time.perf_counter()
    losses = trainer.train_epoch(number, lambda: None)
    trainer.close_epoch(number, losses)
    total = time.perf_counter() - begin
    return {**seconds, "steps": total - sum(seconds.values()), "epoch": total}


def measure(rows: int, hidden: int, epochs: int, *, alone: bool, index: str) -> dict[str, Any]:
    """Median seconds of an epoch and its parts, and of the bare products; `alone`: of one epoch, without these."""
    train, dev = features(rows, hidden, 0), features(DEV, hidden, 1)
    with tempfile.TemporaryDirectory() as name:
        folders = {"train": Path(name) / "train", "dev": Path(name) / "dev", "output_dir": Path(name) / "out"}
        args = Stage2Arguments(**folders, index=index)
        torch.manual_seed(0)
        head = MemeHead(HeadConfig(input_dim=hidden, proj_dim=WIDTH))
        trainer = Trainer(args, head, train, dev, torch.device("cpu"))
        states, dev_states, labels = trainer.hidden, trainer.dev_hidden, trainer.labels
        spent: dict[str, float] = {}
        timed(trainer.miner, "refresh", spent, "search")
        timed(trainer, "_embed_bank", spent, "bank")
        timed(trainer, "_dev_scores", spent, "dev")
        keep_freed_memory()
        if alone:
            return {"rows": rows, "hidden": hidden, "index": index, **epoch(trainer, 1, spent)}
        parts, bare = [], []
        for number in range(1, epochs + 2):  # the first of each warms up
            begin = time.perf_counter()
            bare_products(states, dev_states, labels)
            bare.append(time.perf_counter() - begin)
            parts.append(epoch(trainer, number, spent))
    seconds = {name: statistics.median(part[name] for part in parts[1:]) for name in parts[0]}
    products = statistics.median(bare[1:])
    return {
        "rows": rows,
        "hidden": hidden,
        "index": index,
        **seconds,
        "bare_products": products,
        "ratio": seconds["epoch"] / products,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[8500], help="Sizes to compare with the bare products.")
    parser.add_argument("--hidden", type=int, default=3584)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--growth", type=int, nargs="*", default=[25_000, 50_000, 100_000])
    parser.add_argument("--index", default="auto", help="flat, ivf, hnsw or auto.")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    results = []
    jobs = [(rows, options.hidden, False) for rows in options.rows] + [(rows, 512, True) for rows in options.growth]
    for rows, hidden, alone in jobs:
        result = measure(rows, hidden, options.epochs, alone=alone, index=options.index)
        results.append(result)
        print("  ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
                        for name, value in result.items()), flush=True)  # fmt: skip
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
