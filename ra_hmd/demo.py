"""`ra-hmd demo`: the whole pipeline on drawn memes and a tiny Qwen2-VL, as the commands that a user would type."""

import json
import os
import shlex
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ra_hmd.data.confounders import unimodal_oracle
from ra_hmd.errors import UserError
from ra_hmd.manifest import read_json, run_manifest, write_json

_HEADS = ("lmh", "lrc", "rkc")
_PARTS = (("a", "train"), ("a", "dev"), ("a", "test"), ("b", "train"), ("b", "test"))


@dataclass(frozen=True)
class Step:
    """One command of the demo."""

    title: str
    command: list[str]


def run_demo(output: str | Path, *, quick: bool = False, console: Console | None = None) -> Path:
    """Run the demo; steps that an earlier run finished are not done again.

    Args:
        output: Folder for everything that it makes.
        quick: Few memes and little training: shows that it works, not how well.
        console: Where to print.

    Returns:
        Path of the report.

    Raises:
        UserError: a step failed; the message ends with the end of its log.
    """
    output, console = Path(output), console or Console()
    steps = demo_steps(output, quick=quick)
    seconds = _finished(output)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=len(steps))
        for number, step in enumerate(steps, 1):
            line = shlex.join(step.command)
            progress.update(task, description=step.title)
            console.print(f"[bold]{number}. {step.title}[/bold]\n   $ {line}", highlight=False, soft_wrap=True)
            if line in seconds:
                console.print("   already done")
            else:
                seconds[line] = _run(step, output / "logs" / f"{number:02d}.log")
                console.print(f"   {seconds[line]:.0f} s")
                write_json(output / "demo.json", run_manifest("demo", quick=quick, seconds=seconds))
            progress.advance(task)
    report = output / "report" / "report.md"
    _print_results(output, console)
    console.print(f"Report: {report}  ({sum(seconds.values()) / 60:.1f} minutes)", highlight=False, soft_wrap=True)
    return report


def demo_steps(output: Path, *, quick: bool = False) -> list[Step]:
    """The commands, in order."""
    configs, data, features = demo_configs(), output / "data", output / "features"
    tiny, pretrained = output / "tiny_qwen2_vl", output / "tiny_qwen2_vl_pretrained"
    stage1, stage2 = output / "stage1_qwen2_vl", output / "stage2"
    size = ["--size", "256"] if quick else []
    epochs = {"num_train_epochs": 1} if quick else {}

    def train(name: str, model: Path, folder: Path) -> list[str]:
        paths = {"model_name_or_path": model, "dataset_dir": data, "output_dir": folder}
        return ["llamafactory-cli", "train", str(configs / name), *_overrides(paths | epochs)]

    def extract(domain: str, split: str) -> list[str]:
        place = features / f"{domain}_{split}"
        words = _ra_hmd("extract", checkpoint=stage1, data=data / domain, split=split, output=place)
        return [*words, "--limit", "256"] if (domain, split) == ("b", "train") else words

    refine = {"train": features / "a_train", "dev": features / "a_dev", "init_head": stage1, "output_dir": stage2}
    classify = _ra_hmd("evaluate", checkpoint=stage2, bank=features / "a_train", queries=features / "a_test")
    classify += _ra_hmd(queries=features / "b_test", update=features / "b_train", output=output / "report")[1:]
    return [
        Step("Build a tiny Qwen2-VL", _ra_hmd("tiny-lmm", family="qwen2_vl", output=tiny)),
        Step("Draw memes", [*_ra_hmd("data", "make-confounders", output=data), *size]),
        Step("Pre-train it to write captions (stock stage: sft)", train("pretrain_qwen2_vl.yaml", tiny, pretrained)),
        Step("Stage 1: LoRA and head on domain A", train("stage1_qwen2_vl.yaml", pretrained, stage1)),
        *(Step(f"Extract embeddings: domain {d.upper()}, {split}", extract(d, split)) for d, split in _PARTS),
        Step(
            "Stage 2: refine the head with retrieval-guided contrast",
            ["ra-hmd", "stage2", str(configs / "stage2.yaml"), *_overrides(refine)],
        ),
        Step("Classify by three heads; update the bank without retraining", classify),
    ]


def _overrides(values: dict[str, object]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def _ra_hmd(*words: str, **options: object) -> list[str]:
    return ["ra-hmd", *words, *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


def demo_configs() -> Path:
    """Folder of the demo's YAML files: the checkout's, or the one that the wheel installed."""
    places = [Path(__file__).parents[1] / "configs", Path(sysconfig.get_path("data")) / "share" / "ra-hmd" / "configs"]
    for place in places:
        if (place / "demo").is_dir():
            here = Path.cwd()
            return place.relative_to(here) / "demo" if place.is_relative_to(here) else place / "demo"
    raise UserError(f"The demo's YAML files are missing; looked in {' and '.join(map(str, places))}.")


def _finished(output: Path) -> dict[str, float]:
    path = output / "demo.json"
    return dict(read_json(path).seconds) if path.is_file() else {}


def _run(step: Step, log: Path) -> float:
    """Run a command of this environment; its output goes to `log`. Returns seconds."""
    log.parent.mkdir(parents=True, exist_ok=True)
    binaries = Path(sys.executable).parent
    env = os.environ | {"PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"}
    env.setdefault("OMP_NUM_THREADS", "1")  # with tensors as small as these, more threads only wait for each other
    start = time.monotonic()
    env.setdefault("CUDA_VISIBLE_DEVICES", "0")  # on several GPUs the same files would train fewer steps
    with log.open("w", encoding="utf-8") as file:
        command = [str(binaries / step.command[0]), *step.command[1:]]
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=env, check=False)
    if done.returncode != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        raise UserError(f"Step {step.title!r} failed (exit code {done.returncode}); the end of {log}:\n{tail}")
    return round(time.monotonic() - start, 1)


def _print_results(output: Path, console: Console) -> None:
    metrics = json.loads((output / "report" / "metrics.json").read_text(encoding="utf-8"))
    table = Table(title="Test memes, value [95 % interval]")
    for column in ("test set", "head", "accuracy", "AUROC", "macro-F1"):
        table.add_column(column)
    for name in ("a_test", "b_test"):
        for head in _HEADS:
            values = metrics[name].get(head, {})
            if values:
                cells = [_cell(values[metric]) for metric in ("accuracy", "auroc", "macro_f1")]
                table.add_row(f"domain {name[0].upper()}", head.upper(), *cells)
    console.print(table)
    console.print("LMH: the language model's Yes/No · LRC: the logistic head · RKC: KNN vote over the bank (A's train)")

    updates = Table(title="RKC on domain B when labelled memes of B join the bank (nothing is retrained)")
    for column in ("memes of B added", "accuracy", "gain over none, paired"):
        updates.add_column(column)
    for point in metrics["bank_update"]["b_test"]:
        gain = _cell(point["gain"]) if point.get("gain") else ""
        updates.add_row(str(point["added"]), _cell(point["accuracy"]), gain)
    console.print(updates)
    oracle = unimodal_oracle(output / "data" / "a")
    shown = ", ".join(f"{modality} {value:.3f}" for modality, value in oracle.items())
    console.print(f"Best classifier on one modality's true attributes, AUROC on domain A: {shown}", highlight=False)


def _cell(value: dict[str, float | None]) -> str:
    def number(key: str) -> str:
        return "–" if value.get(key) is None else f"{value[key]:.3f}"

    return f"{number('value')} [{number('low')}, {number('high')}]"
