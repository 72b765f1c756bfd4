"""Demo of the whole pipeline on synthetic memes with a tiny Qwen2-VL (`ra-hmd demo`), as a sequence of commands."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ra_hmd.core.heads import BANK_HEADS, THRESHOLDS
from ra_hmd.data.synthetic.confounders import unimodal_oracle
from ra_hmd.experiments.demo_figure import head_values, write_bank_update_figure, write_embedding_figure
from ra_hmd.experiments.pipeline import TRAINER, Step, configs_folder, overrides, ra_hmd, run_steps

PARTS = (("a", "train"), ("a", "dev"), ("a", "test"), ("b", "train"), ("b", "test"))
UPDATE_LIMIT = 256  # memes of domain B's training split that the bank update samples from

VIEWS = ("embedding", "hidden", "untuned")
"""What the kernel head compares; its weights are chosen on the bank."""

DRAWS = 5
"""Samples of each size in the bank update."""

JOBS = 2
"""Concurrent extractions; most of each is start-up on one core."""


def run_demo(output: str | Path, *, quick: bool = False, console: Console | None = None) -> Path:
    """Run the demo; steps that an earlier run finished are skipped.

    Args:
        output: Output folder.
        quick: Use few memes and little training, to show that it works and not how well.
        console: Console to print to.

    Returns:
        Path of the report.

    Raises:
        UserError: a step failed; the message ends with the end of its log.
    """
    output, console, began = Path(output), console or Console(), time.monotonic()
    run_steps("demo", demo_steps(output, quick=quick), output, console=console, jobs=JOBS, quick=quick)
    report = output / "report" / "report.md"
    _print_results(output, console)
    minutes = (time.monotonic() - began) / 60
    console.print(f"Report: {report}  ({minutes:.1f} minutes)", highlight=False, soft_wrap=True)
    return report


def demo_steps(output: Path, *, quick: bool = False) -> list[Step]:
    """Commands in order."""
    configs, features = configs_folder("demo"), output / "features"
    stage1, stage2 = output / "stage1_qwen2_vl", output / "stage2"
    train: dict[str, object] = {"dataset_dir": output / "data"} | ({"num_train_epochs": 1} if quick else {})
    refine = {"train": features / "a_train", "dev": features / "a_dev", "init_head": stage1, "output_dir": stage2}
    classify = ra_hmd("evaluate", checkpoint=stage2, bank=features / "a_train", queries=features / "a_test")
    classify += ra_hmd(queries=features / "b_test", update=features / "b_train", output=output / "report")[1:]
    classify += [*(word for view in VIEWS for word in ("--views", view)), "--update-draws", str(DRAWS), "--final"]
    return [
        *pretraining_steps(output, quick=quick),
        Step(
            "Stage 1: LoRA and head on domain A",
            train_words(configs / "stage1_qwen2_vl.yaml", pretrained_model(output), stage1, train),
        ),
        *extract_steps("Extract embeddings", output / "data", features, "--views", "untuned", checkpoint=stage1),
        Step(
            "Stage 2: refine the head with retrieval-guided contrast",
            ["ra-hmd", "stage2", str(configs / "stage2.yaml"), *overrides(refine)],
        ),
        Step("Classify by four heads; update the bank without retraining", classify),
    ]


def pretraining_steps(output: Path, *, quick: bool = False) -> list[Step]:
    """Steps before Stage 1: a tiny model, synthetic memes, and pre-training on images and captions."""
    tiny, data = output / "tiny_qwen2_vl", output / "data"
    size = ["--size", "256"] if quick else []
    train: dict[str, object] = {"dataset_dir": data} | ({"num_train_epochs": 1} if quick else {})
    words = train_words(configs_folder("demo") / "pretrain_qwen2_vl.yaml", tiny, pretrained_model(output), train)
    return [
        Step("Build a tiny Qwen2-VL", ra_hmd("tiny-lmm", family="qwen2_vl", output=tiny)),
        Step("Generate synthetic memes", [*ra_hmd("data", "make-confounders", output=data), *size]),
        Step("Pre-train it to write captions (stock stage: sft)", words),
    ]


def pretrained_model(output: Path) -> Path:
    """Folder of the model that `pretraining_steps` creates."""
    return output / "tiny_qwen2_vl_pretrained"


def train_words(config: Path, model: Path, folder: Path, values: dict[str, object]) -> list[str]:
    """Command `llamafactory-cli train` of `model` with `config` and further keys, with output in `folder`."""
    paths = {"model_name_or_path": model, "dataset_dir": values["dataset_dir"], "output_dir": folder}
    return [TRAINER, "train", str(config), *overrides(paths | values)]


def extract_steps(title: str, data: Path, features: Path, *words: str, checkpoint: Path) -> list[Step]:
    """Steps that extract both domains' splits to `features`/<domain>_<split>; `words` are further options."""
    steps = []
    for domain, split in PARTS:
        place = features / f"{domain}_{split}"
        command = ra_hmd("extract", *words, checkpoint=checkpoint, data=data / domain, split=split, output=place)
        limit = ["--limit", str(UPDATE_LIMIT)] if (domain, split) == ("b", "train") else []
        steps.append(Step(f"{title}: domain {domain.upper()}, {split}", command + limit, group=str(features)))
    return steps


def _print_results(output: Path, console: Console) -> None:
    metrics = json.loads((output / "report" / "metrics.json").read_text(encoding="utf-8"))
    table = Table(title="Test memes, value [95 % interval]")
    for column in ("test set", "head", "accuracy", "AUROC", "macro-F1"):
        table.add_column(column)
    for name in ("a_test", "b_test"):
        for head in THRESHOLDS:
            values = metrics[name].get(head, {})
            if values:
                cells = [_cell(values[metric]) for metric in ("accuracy", "auroc", "macro_f1")]
                table.add_row(f"domain {name[0].upper()}", head.upper(), *cells)
    console.print(table)
    console.print(
        "LMH: the language model's Yes/No · LRC: the logistic head · RKC: KNN vote over the bank (A's train) · "
        "KRR: kernel ridge regression over the bank"
    )
    for name, title in (("b_test", "domain B"), ("a_test", "domain A")):
        console.print(_update_table(metrics["bank_update"][name], title))
    for figure in (write_embedding_figure(output), write_bank_update_figure(metrics["bank_update"], output / "report")):
        console.print(f"Figure: {figure}", highlight=False, soft_wrap=True)
    oracle = unimodal_oracle(output / "data" / "a")
    shown = ", ".join(f"{modality} {value:.3f}" for modality, value in oracle.items())
    console.print(f"Best classifier on one modality's true attributes, AUROC on domain A: {shown}", highlight=False)


def _update_table(curve: Sequence[Mapping[str, Any]], title: str) -> Table:
    """AUROC of both bank heads by the number of memes of B in the bank."""
    table = Table(title=f"AUROC on {title} after adding labelled memes of B to the bank, without retraining")
    for column in ("memes of B", "RKC", "gain, paired", "KRR", "gain, paired"):
        table.add_column(column)
    for point in curve:
        cells = []
        for head in BANK_HEADS:
            values = head_values(point, head)
            cells += [_cell(values["auroc"]), _cell(values["auroc_gain"]) if values["auroc_gain"] else ""]
        table.add_row(str(point["added"]), *cells)
    return table


def _cell(value: dict[str, float | None]) -> str:
    def number(key: str) -> str:
        return "–" if value.get(key) is None else f"{value[key]:.3f}"

    return f"{number('value')} [{number('low')}, {number('high')}]"
