"""First layer of a cross head, several ways: with its outer product of image and text, and without; time and memory.

A layer from the n·n products of two vectors of n values to n outputs, B memes at a time. Each line is a process of its
own; memory is what its peak grew by over inputs and weight, also as a multiple of the weight. All in one run:

    python scripts/bench/cross_fusion.py [--n 256 512] [--threads 1] [--output result.json]

`--n 1024` is the published size, a weight of 4.3 GB: 10 GB in all, and minutes.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ra_hmd.models.fusion import cross_linear

VALUES = 1 << 24  # of a part, where something is made in parts: 64 MB
WAYS = {
    "product": "outer product, then the layer",
    "rows": "the same, 64 memes at a time",
    "bilinear": "F.bilinear (cross_linear)",
    "matmul": "weight as n × O·n, in parts of outputs",
    "matmul, recomputed": "the same; parts are made again for the gradient",
    "product, dropout": "every product dropped by itself, then the layer",
    "parts, dropout": "the same in 8 parts of the image, made again for the gradient",
}
FORWARD = ("product", "rows", "bilinear", "matmul")
BOTH = ("product", "bilinear", "matmul", "matmul, recomputed", "product, dropout", "parts, dropout")
RATE = 0.4  # of dropout


def product(image: Tensor, text: Tensor, weight: Tensor) -> Tensor:
    """The layer on the outer product."""
    return F.linear((image[:, :, None] * text[:, None, :]).flatten(1), weight)


def rows(image: Tensor, text: Tensor, weight: Tensor) -> Tensor:
    """`product` of 64 memes at a time."""
    return torch.cat([product(*part, weight) for part in zip(image.split(64), text.split(64), strict=True)])


def bilinear(image: Tensor, text: Tensor, weight: Tensor) -> Tensor:
    """What evaluation does."""
    return cross_linear(image, text, weight, weight.new_zeros(len(weight)))


def some_outputs(image: Tensor, text: Tensor, weight: Tensor) -> Tensor:
    """A product with the text, [B, outputs · n], then with the image."""
    each = F.linear(text, weight.view(-1, text.shape[1])).view(len(text), -1, image.shape[1])
    return torch.bmm(each, image[:, :, None]).squeeze(2)


def matmul(image: Tensor, text: Tensor, weight: Tensor, *, recompute: bool = False) -> Tensor:
    """`some_outputs` for as many at a time as fit into `VALUES`."""
    parts = weight.split(max(1, VALUES // image.numel()))
    if recompute:
        return torch.cat([checkpoint(some_outputs, image, text, part, use_reentrant=False) for part in parts], dim=1)
    return torch.cat([some_outputs(image, text, part) for part in parts], dim=1)


def product_dropout(image: Tensor, text: Tensor, weight: Tensor) -> Tensor:
    """What training does."""
    return F.linear(F.dropout((image[:, :, None] * text[:, None, :]).flatten(1), RATE), weight)


def parts_dropout(image: Tensor, text: Tensor, weight: Tensor) -> Tensor:
    """`product_dropout` of an eighth of the image's values at a time, not kept for the gradient."""
    columns = weight.split(weight.shape[1] // 8, dim=1)
    eighths = image.split(image.shape[1] // 8, dim=1)
    outputs = [checkpoint(product_dropout, part, text, of, use_reentrant=False)
               for part, of in zip(eighths, columns, strict=True)]  # fmt: skip
    return torch.stack(outputs).sum(dim=0)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "product": product,
    "rows": rows,
    "bilinear": bilinear,
    "matmul": matmul,
    "matmul, recomputed": lambda *inputs: matmul(*inputs, recompute=True),
    "product, dropout": product_dropout,
    "parts, dropout": parts_dropout,
}


def peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def child(way: str, n: int, batch: int, gradient: bool, repeats: int, threads: int) -> None:
    """Measure one way; prints JSON."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    weight = torch.empty(n, n * n).uniform_(-1 / n, 1 / n).requires_grad_(gradient)
    inputs = [F.normalize(torch.randn(batch, n), dim=1).requires_grad_(gradient) for _ in range(2)]
    before, seconds = peak(), []
    for _ in range(repeats + 1):
        for tensor in (*inputs, weight):
            tensor.grad = None
        start = time.perf_counter()
        with torch.set_grad_enabled(gradient):
            output = FUNCTIONS[way](*inputs, weight)
        if gradient:
            output.square().sum().backward()
        seconds.append(time.perf_counter() - start)
    value = float(output.detach().double().square().sum())
    measured = statistics.median(seconds[1:] or seconds)  # the first one maps memory
    print(json.dumps({"seconds": measured, "bytes": peak() - before, "value": value}))


def measure(way: str, n: int, batch: int, gradient: bool, repeats: int, threads: int) -> dict[str, Any]:
    """`child` in a process of its own."""
    arguments = [sys.executable, __file__, "--child", json.dumps([way, n, batch, gradient, repeats, threads])]
    run = subprocess.run(arguments, check=True, capture_output=True, text=True, env=os.environ)
    found = json.loads(run.stdout)
    point = {"n": n, "batch": batch, "pass": "forward + backward" if gradient else "forward", "way": way}
    return {**point, **found, "weights": found["bytes"] / (4 * n**3)}


def points() -> list[tuple[int, int, bool, tuple[str, ...], int]]:
    """n, batch, gradient, ways, repeats; 64 is a training batch, 4,096 one of evaluation."""
    small = [(256, size, False, FORWARD, 5) for size in (64, 1024, 4096)]
    small += [(256, size, True, BOTH, 3) for size in (64, 256)]
    middle = [(512, 64, False, FORWARD, 3), (512, 64, True, BOTH, 1)]
    # Of n = 1024 what takes neither 17 GB, nor a second copy of all gradients, nor a quarter of an hour.
    published = [
        (1024, 64, False, FORWARD[:1] + FORWARD[2:], 1),
        (1024, 64, True, ("product", "product, dropout"), 1),
        (1024, 4096, False, FORWARD[1:], 0),
    ]
    return small + middle + published


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", choices=(256, 512, 1024), default=(256, 512))
    parser.add_argument("--threads", type=int, default=1, help="More are for a machine that does nothing else.")
    parser.add_argument("--output", type=Path, help="JSON file.")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*json.loads(args.child))
        return
    table = Table(title=f"{args.threads} threads; ratios to the first way of each block", title_justify="left")
    for column in ("n", "B", "pass", "way", "s", "time ratio", "memory, MB", "÷ weight", "memory ratio"):
        table.add_column(column, justify="left" if column in ("pass", "way") else "right")
    results = []
    for n, batch, gradient, ways, repeats in (point for point in points() if point[0] in args.n):
        block = [measure(way, n, batch, gradient, repeats, args.threads) for way in ways]
        results += block
        first = block[0]
        for one in block:
            if "dropout" not in one["way"] and abs(one["value"] / first["value"] - 1) > 1e-4:
                raise SystemExit(f"{one['way']} gives another output: {one['value']} for {first['value']}")
            table.add_row(
                str(n), str(batch), one["pass"], WAYS[one["way"]], f"{one['seconds']:.3f}",
                f"{one['seconds'] / first['seconds']:.2f}", f"{one['bytes'] / 2**20:.0f}", f"{one['weights']:.2f}",
                f"{one['bytes'] / max(first['bytes'], 1):.2f}",
            )  # fmt: skip
            print(f"n {n}, B {batch}, {one['pass']}, {one['way']}: {one['seconds']:.3f} s", file=sys.stderr)
        table.add_section()
    Console(width=170).print(table)
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
