"""What the toolkit does on one GPU: one command, at most ten minutes, nothing downloaded.

Models are built from their config classes, data are drawn. Each check runs in a process of its own with a time limit,
so that one that fails or hangs does not stop the others. The folder gets `gpu_check.json` and `gpu_check.md`, a table.

Without a GPU it lists what it would run and ends with 3. `--device cpu` runs on a CPU, at small sizes, whatever does
not need a GPU: to see that the script works, not to measure. It ends with 1 where a check failed, else with 0.

    python scripts/gpu_check.py [--output outputs/gpu_check] [--only CHECK …] [--device cpu]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gpu_benches
from gpu_benches import SIZES, Bench, Unfit
from gpu_checks_of_engines import ENGINES

CHECKS = gpu_benches.CHECKS | ENGINES
TOTAL = 600
"""Seconds that all checks together may take."""
NO_GPU = 3
PACKAGES = (
    "torch",
    "transformers",
    "llamafactory",
    "liger-kernel",
    "bitsandbytes",
    "deepspeed",
    "flash-attn",
    "ray",
    "vllm",
)


def run_check(name: str, device: str, folder: Path) -> dict[str, Any]:
    """One check in this process: its status and what it measured."""
    begin = time.perf_counter()
    try:
        result: dict[str, Any] = {"status": "passed", "values": CHECKS[name][0](Bench(device, folder))}
    except Unfit as reason:
        result = {"status": "not run", "reason": str(reason)}
    except Exception as error:  # whatever it is, it is this check's result
        result = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    return result | {"seconds": time.perf_counter() - begin}


def run_apart(name: str, device: str, folder: Path, log: Path, limit: float) -> dict[str, Any]:
    """One check in a process of its own, which works in `folder` and is ended after `limit` seconds."""
    result = folder / f"{name}.json"
    command = [sys.executable, __file__, "--child", name, "--device", device, "--output", str(folder)]
    begin = time.perf_counter()
    with log.open("w", encoding="utf-8") as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            child.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)  # torchrun's children too
            child.wait()
            return {"status": "failed", "reason": f"no end after {limit:.0f} s", "seconds": limit}
    if not result.is_file():
        lines = log.read_text(encoding="utf-8").splitlines()
        reason = f"ended with {child.returncode}: {' '.join(lines[-3:])}"
        return {"status": "failed", "reason": reason, "seconds": time.perf_counter() - begin}
    return json.loads(result.read_text(encoding="utf-8"))


def run_all(names: list[str], device: str, logs: Path) -> dict[str, dict[str, Any]]:
    """The checks one after the other, until the time is over; their logs go to `logs`."""
    begin, results = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as folder:  # new each time: stores and runs that are there would be continued
        for name in names:
            left = TOTAL - (time.perf_counter() - begin)
            if left > 0:
                limit = min(CHECKS[name][1], left)
                results[name] = run_apart(name, device, Path(folder), logs / f"{name}.log", limit)
            else:
                results[name] = {"status": "not run", "reason": f"the {TOTAL} s were over", "seconds": 0.0}
            print(f"{name}: {results[name]['status']}", flush=True)
    return results


def machine(device: str) -> dict[str, Any]:
    """What was measured on, and with which packages."""
    import torch

    found: dict[str, Any] = {"device": device, "python": platform.python_version(), "cores": os.cpu_count()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "memory_mib": properties.total_memory >> 20, "cuda": torch.version.cuda}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except ImportError:
            found[name] = None
    return found


def table(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    where = report["machine"].get("gpu", "CPU, small sizes: not a measurement")
    lines = [f"Device: {where}", "", "| check | | seconds | values |", "|---|---|---|---|"]
    for name, result in report["checks"].items():
        values = ", ".join(f"{key} {value:.4g}" for key, value in result.get("values", {}).items())
        values_cell = values or result["reason"].replace("\n", " ").replace("|", "/")
        lines.append(f"| {name} | {result['status']} | {result['seconds']:.1f} | {values_cell} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run as said above; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu_check"))
    parser.add_argument("--only", nargs="*", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--device", choices=SIZES, help="Default: cuda where torch sees a GPU.")
    parser.add_argument("--child", choices=CHECKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.child:
        result = run_check(options.child, options.device, options.output)
        (options.output / f"{options.child}.json").write_text(json.dumps(result), encoding="utf-8")
        return 0
    import torch

    if not torch.cuda.is_available() and options.device != "cpu":
        print("No GPU: nothing was run. On one GPU this would run, each in at most so many seconds:")
        for name in options.only:
            check, limit = CHECKS[name]
            print(f"  {name:18} {limit:4}  {check.__doc__}")
        return NO_GPU
    device = options.device or "cuda"
    options.output.mkdir(parents=True, exist_ok=True)
    results = run_all(options.only, device, options.output)
    report = {"machine": machine(device), "checks": results}
    (options.output / "gpu_check.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (options.output / "gpu_check.md").write_text(table(report), encoding="utf-8")
    print(table(report))
    return int(any(result["status"] == "failed" for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
