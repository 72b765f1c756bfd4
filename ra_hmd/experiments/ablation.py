"""Ablation of the stages (`ra-hmd ablate`), under one recipe, on synthetic memes with a tiny Qwen2-VL.

Training and extraction are ordinary commands; the results are computed from their feature stores and heads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ra_hmd.core.artifacts import MANIFEST_NAME, plain, sha256_file, write_json, write_text
from ra_hmd.core.errors import raise_all
from ra_hmd.core.heads import THRESHOLDS, Head
from ra_hmd.core.manifests import AblationManifest, write_manifest
from ra_hmd.core.markdown import markdown_table
from ra_hmd.core.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, panels, save_figure
from ra_hmd.core.progress import track
from ra_hmd.evaluation.bank_update import nested_order
from ra_hmd.evaluation.metrics.runs import METRIC_TITLES, STUDY_METRICS, Cell, error_bars, estimate, paired_change
from ra_hmd.evaluation.report.sections import format_estimate
from ra_hmd.experiments.common import HeadView
from ra_hmd.experiments.demo import JOBS, extract_steps, pretrained_model, pretraining_steps, train_words
from ra_hmd.experiments.pipeline import TRAINER, Step, configs_folder, overrides, ra_hmd, run_steps
from ra_hmd.features.compatibility import check_head_fits, check_store
from ra_hmd.features.store import Features, read_features
from ra_hmd.features.test_lock import open_labels
from ra_hmd.features.views import UNTUNED
from ra_hmd.models.head import HEAD_WEIGHTS, load_head
from ra_hmd.retrieval.embeddings import EMBEDDING
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.voting import Voting

FIRST_SEED = 42
ADDED = 128
"""Number of memes of domain B that are added to the bank."""

_JOINT = {"rgcl": "true", "rgcl_metrics": "cos", "rgcl_warmup": 50, "rgcl_reindex_every": 100}
_JOINT_QUICK = {**_JOINT, "rgcl_warmup": 4, "rgcl_reindex_every": 8}

VIEWS = (EMBEDDING, "hidden", UNTUNED)
"""Views that the KRR compares in columns of several views; a variant without an adapter has no `untuned`."""

_KERNEL = KernelSettings()
_KERNEL_OF_VIEWS = KernelSettings(views=VIEWS)

SETTINGS: dict[str, tuple[Head, str, int, KernelSettings]] = {
    "A · LMH": ("lmh", "a_test", 0, _KERNEL),
    "A · LRC": ("lrc", "a_test", 0, _KERNEL),
    "A · RKC": ("rkc", "a_test", 0, _KERNEL),
    "A · KRR": ("krr", "a_test", 0, _KERNEL),
    "B · LMH": ("lmh", "b_test", 0, _KERNEL),
    "B · LRC": ("lrc", "b_test", 0, _KERNEL),
    "B · RKC, bank of A": ("rkc", "b_test", 0, _KERNEL),
    "B · KRR, bank of A": ("krr", "b_test", 0, _KERNEL),
    f"B · RKC, bank of A + {ADDED} of B": ("rkc", "b_test", ADDED, _KERNEL),
    f"B · KRR, bank of A + {ADDED} of B": ("krr", "b_test", ADDED, _KERNEL),
    f"B · KRR of all views, bank of A + {ADDED} of B": ("krr", "b_test", ADDED, _KERNEL_OF_VIEWS),
}
"""Column → head, query store, memes of domain B in the bank, settings of the KRR."""


@dataclass(frozen=True)
class Variant:
    """One row of the ablation.

    Attributes:
        title: Title in reports.
        features: Folder of its feature stores, relative to the seed's folder, or to the output if not `seeded`.
        head: Folder of its head, relative to the seed's folder.
        what: Description in one sentence.
        seeded: Whether the features depend on the seed.
    """

    title: str
    features: str
    head: str
    what: str
    seeded: bool = True

    def stores(self, output: Path, folder: Path) -> Path:
        """Folder of the feature stores, given the folder of a seed."""
        return (folder if self.seeded else output) / self.features


VARIANTS = {
    "full": Variant("full", "features/stage1", "stage2/full", "Stage 1 (LoRA and head), then Stage 2 from its head."),
    "no_stage2": Variant("without Stage 2", "features/stage1", "stage1", "Stage 1's head as it is."),
    "no_stage1": Variant(
        "without Stage 1",
        "features/backbone",
        "stage2/no_stage1",
        "Stage 2 with a fresh head on features of the pre-trained LMM, which never saw a label.",
        seeded=False,
    ),
    "combined": Variant(
        "combined", "features/joint", "joint", "Stage 1 with `rgcl: true`: both losses in one training."
    ),
    "sft": Variant(
        "SFT only",
        "features/sft",
        "stage2/sft",
        "Stock `stage: sft`, merged. LMH is its verdict; LRC and RKC are those of a fresh head that Stage 2 trains on "
        "its features.",
    ),
}


def run_ablation(
    output: str | Path,
    *,
    seeds: int = 1,
    quick: bool = False,
    topk: int = 20,
    bootstrap_samples: int = 1000,
    console: Console | None = None,
) -> Path:
    """Run and compare all variants; steps that an earlier run finished are skipped.

    The test splits are scored, which is recorded beside the heads. Nothing is chosen on them: all settings are fixed.

    Args:
        output: Output folder.
        seeds: Number of trainings of each variant, with seeds 42, 43, …, from the same pre-trained model.
        quick: Use few memes and little training, to show that it works and not how well.
        topk: K of the vote.
        bootstrap_samples: Resamples of each interval.
        console: Console to print to.

    Returns:
        Path of ablation.md.

    Raises:
        UserError: numbers below 1, or a failed step; the message ends with the end of its log.
    """
    problems = [f"--seeds {seeds} must be 1 or more."] if seeds < 1 else []
    problems += [f"--bootstrap-samples {bootstrap_samples} must be 1 or more."] if bootstrap_samples < 1 else []
    raise_all(problems, "The ablation cannot run")
    output, console, voting = Path(output), console or Console(), Voting(topk)
    numbers = list(range(FIRST_SEED, FIRST_SEED + seeds))
    steps = ablation_steps(output, numbers, quick=quick)
    seconds = run_steps("ablate", steps, output, console=console, jobs=JOBS, quick=quick, seeds=numbers)
    command = " ".join(ra_hmd("ablate", output=output, seeds=seeds, topk=topk, bootstrap_samples=bootstrap_samples))
    command += " --quick" if quick else ""
    results, changes, opened = _results(output, numbers, voting, bootstrap_samples, command)
    manifest = AblationManifest.new(
        command=command,
        quick=quick,
        seeds=numbers,
        topk=topk,
        bootstrap_samples=bootstrap_samples,
        test=plain(opened),
        heads={
            str(path): sha256_file(path / HEAD_WEIGHTS)
            for seed in numbers
            for path in (output / f"seed-{seed}" / variant.head for variant in VARIANTS.values())
        },
        commands={step.line: seconds[step.line] for step in steps},
    )
    _write(output, results, changes, manifest)
    _print(results, console)
    minutes = sum(seconds[step.line] for step in steps) / 60
    console.print(
        f"Report: {output / 'ablation.md'}  ({minutes:.1f} minutes of commands)", highlight=False, soft_wrap=True
    )
    return output / "ablation.md"


def _write(
    output: Path, results: dict[str, dict[str, Cell]], changes: dict[str, dict[str, Any]], manifest: AblationManifest
) -> None:
    """Write ablation.json, .png, .md and the manifest."""
    write_json(output / "ablation.json", {"seeds": manifest.seeds, "variants": results, "against_full": changes})
    save_figure(_figure(results), output / "ablation.png")
    write_text(output / "ablation.md", _markdown(results, changes, manifest))
    write_manifest(output / MANIFEST_NAME, manifest)


def ablation_steps(output: Path, seeds: Sequence[int], *, quick: bool = False) -> list[Step]:
    """Commands in order."""
    data, model = output / "data", pretrained_model(output)
    backbone = output / VARIANTS["no_stage1"].features
    steps = pretraining_steps(output, quick=quick)
    steps += extract_steps("Features without Stage 1", data, backbone, "--backbone-only", checkpoint=model)
    for seed in seeds:
        steps += _seed_steps(output, seed, quick=quick)
    return steps


def _seed_steps(output: Path, seed: int, *, quick: bool) -> list[Step]:
    """Trainings with one seed, their features, and Stage 2 on them."""
    data, model, folder = output / "data", pretrained_model(output), output / f"seed-{seed}"
    stage1, joint, sft, merged = folder / "stage1", folder / "joint", folder / "sft", folder / "sft_merged"
    demo, ablate = configs_folder("demo"), configs_folder("ablate")
    # Quick trainings have fewer steps than the default logging interval.
    common = {"dataset_dir": data, "seed": seed} | ({"num_train_epochs": 1, "logging_steps": 4} if quick else {})
    both = common | (_JOINT_QUICK if quick else _JOINT)
    export = {"model_name_or_path": model, "adapter_name_or_path": sft, "template": "qwen2_vl", "export_dir": merged}

    def refine(name: str) -> Step:
        variant = VARIANTS[name]
        stores = variant.stores(output, folder)
        head = {"init_head": stage1} if name == "full" else {"init_head": "null", "proj_dim": 128}
        values = {"train": stores / "a_train", "dev": stores / "a_dev", "output_dir": folder / variant.head}
        words = ["ra-hmd", "stage2", str(demo / "stage2.yaml"), *overrides(values | head | {"seed": seed})]
        return Step(f"Seed {seed}: Stage 2 of the variant {variant.title!r}", words)

    def train(title: str, config: Path, target: Path, values: dict[str, object]) -> Step:
        return Step(f"Seed {seed}: {title}", train_words(config, model, target, values))

    def features(name: str, *words: str, checkpoint: Path) -> list[Step]:
        place = folder / VARIANTS[name].features
        return extract_steps(f"Seed {seed}: features, {name}", data, place, *words, checkpoint=checkpoint)

    merge = [
        TRAINER,
        "export",
        *(word for key, value in export.items() for word in (f"--{key}", str(value))),
    ]
    return [
        refine("no_stage1"),
        train("Stage 1", demo / "stage1_qwen2_vl.yaml", stage1, common),
        *features("full", "--views", UNTUNED, checkpoint=stage1),
        refine("full"),
        train("plain SFT (stock stage: sft)", ablate / "sft_qwen2_vl.yaml", sft, common),
        Step(f"Seed {seed}: merge the adapter of plain SFT", merge),
        *features("sft", "--backbone-only", checkpoint=merged),
        refine("sft"),
        train("both stages in one (rgcl: true)", demo / "stage1_qwen2_vl.yaml", joint, both),
        *features("combined", "--views", UNTUNED, checkpoint=joint),
    ]


def _results(
    output: Path, seeds: Sequence[int], voting: Voting, samples: int, command: str
) -> tuple[dict[str, dict[str, Cell]], dict[str, dict[str, Any]], dict[str, Any]]:
    """Variant → column → cell; variant → column → paired AUROC difference from `full`; head → opened test splits."""
    scores: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in VARIANTS}
    opened: dict[str, Any] = {}
    labels: dict[str, np.ndarray] = {}
    runs = [(name, output / f"seed-{seed}") for name in VARIANTS for seed in seeds]
    for name, folder in track(((1, run) for run in runs), "Evaluating", len(runs), "runs"):
        head, stores = folder / VARIANTS[name].head, VARIANTS[name].stores(output, folder)
        tests = {store: read_features(stores / store) for store in ("a_test", "b_test")}
        opened[str(head)] = open_labels(
            {stores / store: features for store, features in tests.items()}, [head], final=True, command=command
        )
        labels |= {store: features.labels for store, features in tests.items()}
        scores[name].append(_columns(head, stores, tests, voting))
    results: dict[str, dict[str, Cell]] = {name: {} for name in VARIANTS}
    changes: dict[str, dict[str, Any]] = {name: {} for name in VARIANTS if name != "full"}
    for column, (which, store, *_) in SETTINGS.items():
        base = [run[column] for run in scores["full"]]
        for name, scored in scores.items():
            runs_of, threshold = [run[column] for run in scored], THRESHOLDS[which]
            results[name][column] = estimate(runs_of, labels[store], threshold, samples=samples, seed=0)
            if name != "full":
                changes[name][column] = paired_change(runs_of, base, labels[store], threshold, samples=samples, seed=0)
    return results, changes, opened


def _columns(head_folder: Path, stores: Path, tests: Mapping[str, Features], voting: Voting) -> dict[str, np.ndarray]:
    """Scores [Q] of one run in every column."""
    head = load_head(head_folder)
    known = {name: read_features(stores / name) for name in ("a_train", "b_train")}
    seen = {}
    for name, features in {**known, **tests}.items():
        check_store(features, stores / name)
        check_head_fits(head.config, head_folder, features, stores / name)
        seen[name] = HeadView.of(features, stores / name, head)
    bank, pool = seen["a_train"].rows, seen["b_train"].rows
    grown = bank.plus(pool.select(nested_order(pool.labels, 0)[:ADDED]))
    banks = {0: bank, ADDED: grown}
    columns = {}
    for column, (name, store, added, kernel) in SETTINGS.items():
        queries = seen[store]
        if name == "rkc":
            columns[column] = queries.vote(banks[added], voting)
        elif name == "krr":
            views = tuple(one for one in kernel.views if one == EMBEDDING or one in bank.views)
            columns[column] = queries.regress(banks[added], kernel.replace(views=views))
        else:
            columns[column] = queries.scores[name]
    return columns


def _markdown(
    results: dict[str, dict[str, Cell]], changes: dict[str, dict[str, Any]], manifest: AblationManifest
) -> str:
    seeds = manifest.seeds
    text = (
        "# Ablation\n\nA tiny Qwen2-VL on synthetic memes: domain A is its training domain; labels of domain B are "
        f"never trained on. Mean over {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
        f"{' ± standard deviation' if len(seeds) > 1 else ''} [95 % interval over the test memes]. "
        f"K = {manifest.topk}, {manifest.bootstrap_samples} resamples. The views of KRR: the embedding, or all of "
        f"{', '.join(VIEWS)} that a variant has.\n"
    )
    if manifest.quick:
        text += "\n**`--quick`: few memes and little training, to show that the commands work and nothing else.**\n"
    for metric in STUDY_METRICS:
        header = [METRIC_TITLES[metric], *SETTINGS]
        rows = [
            [VARIANTS[name].title, *(format_estimate(cells[column][metric]) for column in SETTINGS)]
            for name, cells in results.items()
        ]
        text += f"\n## {METRIC_TITLES[metric]}\n\n{markdown_table(header, rows)}"
    rows = [
        [VARIANTS[name].title, *(format_estimate(cells[column], signed=True) for column in SETTINGS)]
        for name, cells in changes.items()
    ]
    text += "\n## AUROC minus that of `full`, paired\n\n" + markdown_table(["change", *SETTINGS], rows)
    text += "\n![AUROC of the variants](ablation.png)\n\n## The variants\n\n"
    text += "".join(f"- **{variant.title}**: {variant.what}\n" for variant in VARIANTS.values())
    text += (
        "\nEqual in all: the pre-trained model, data, LoRA, learning rates, epochs and batches of Stage 1, and those "
        "of Stage 2. The seed decides initial weights and order of the memes.\n\n## Commands\n\n```sh\n"
    )
    return text + "".join(f"{line}\n" for line in manifest.commands) + "```\n"


def _figure(results: dict[str, dict[str, Cell]]) -> Figure:
    """AUROC with intervals: one panel per domain, one group of marks per variant, one mark per head and bank."""
    figure, axes = panels(2, width=6.4, height=4.4)
    colours, markers = (ORANGE, BLUE, GREEN, PURPLE, VERMILION, GREY, "#000000"), "os^DvPX"
    for axis, domain in zip(axes[0], "AB", strict=True):
        columns = [column for column in SETTINGS if column.startswith(domain)]
        for place, (column, (colour, marker)) in enumerate(
            zip(columns, zip(colours, markers, strict=True), strict=False)
        ):
            known = [
                (number, cells[column]["auroc"])
                for number, cells in enumerate(results.values())
                if cells[column]["auroc"]["value"] is not None
            ]
            x = [number + 0.11 * (place - (len(columns) - 1) / 2) for number, _ in known]
            y = [item["value"] for _, item in known]
            bars = error_bars([item for _, item in known])
            label = column.partition(" · ")[2]
            axis.errorbar(x, y, yerr=bars, color=colour, marker=marker, linestyle="", capsize=3, label=label)
        axis.axhline(0.5, color="0.6", linewidth=0.8)
        axis.set_xticks(range(len(results)), [VARIANTS[name].title for name in results], rotation=20)
        axis.set(title=f"domain {domain}, test", ylabel="AUROC")
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=2, frameon=False)
    return figure


def _print(results: dict[str, dict[str, Cell]], console: Console) -> None:
    table = Table(title="AUROC on test memes [95 % interval]")
    for column in ("variant", *SETTINGS):
        table.add_column(column)
    for name, cells in results.items():
        table.add_row(VARIANTS[name].title, *(format_estimate(cells[column]["auroc"]) for column in SETTINGS))
    console.print(table)
