"""Report of a check: report.json, report.md and figures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ra_hmd.core.artifacts import plain, write_text
from ra_hmd.core.manifests import CheckManifest, write_manifest
from ra_hmd.core.markdown import escape, markdown_table
from ra_hmd.core.plotting import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILION,
    legend_below,
    panels,
    plain_text,
    save_figure,
)
from ra_hmd.data.checks.findings import Finding, Findings

REPORT = "report.json"
_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE)


def write_check_report(
    seen: Findings, findings: list[Finding], fixed: list[str], output: Path, *, config: str | Path | None
) -> CheckManifest:
    """Write the report into `output` and return what report.json holds."""
    report = CheckManifest.new(
        folder=str(seen.data.folder),
        dataset=seen.data.manifest.dataset,
        variant=seen.data.manifest.variant,
        config=None if config is None else str(config),
        rows=dict(seen.rows),
        classes=_classes(seen),
        worst=findings[0].severity if findings else None,
        findings=[plain(vars(finding)) for finding in findings],
        fixed=fixed,
    )
    save_figure(_class_figure(report.classes), output / "classes.png")
    save_figure(_size_figure(seen), output / "sizes.png")
    write_manifest(output / REPORT, report)
    write_text(output / "report.md", _page(seen, report))
    return report


def _classes(seen: Findings) -> dict[str, dict[str, dict[str, int]]]:
    """Count rows by task, split and class name; unlabelled rows count as `none`."""
    return {
        task.name: {
            split: {
                ("none" if index is None else _class_name(task.classes, index)): counts[task.name][index]
                for index in sorted(counts[task.name], key=lambda index: (index is None, index))
            }
            for split, counts in seen.labels.items()
        }
        for task in seen.tasks
    }


def _class_name(classes: tuple[str, ...], index: int) -> str:
    return classes[index] if 0 <= index < len(classes) else str(index)


def _class_figure(classes: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Figure:
    """Plot rows per class of the first task, with bars grouped by split, or by class if there are many classes."""
    task, counts = next(iter(classes.items()))
    splits = list(counts)
    labels = list(dict.fromkeys(label for split in splits for label in counts[split]))
    many = len(labels) > len(_COLOURS)
    groups, bars = (labels, splits) if many else (splits, labels)
    figure, axes = panels(1, width=10 if many else 7, height=5 if many else 4)
    axis = axes[0, 0]
    width = 0.8 / max(len(bars), 1)
    for number, bar in enumerate(bars):
        heights = [counts[bar].get(group, 0) if many else counts[group].get(bar, 0) for group in groups]
        colour = GREY if bar == "none" else _COLOURS[number % len(_COLOURS)]
        axis.bar(np.arange(len(groups)) + number * width, heights, width, label=plain_text(bar), color=colour)
    axis.set_xticks(np.arange(len(groups)) + 0.4 - width / 2, [plain_text(group) for group in groups])
    axis.tick_params("x", rotation=60 if many else 0)
    axis.set(ylabel="rows", title=f"Classes of task {task}")
    axis.legend(fontsize=8, frameon=False) if many else legend_below(axis)
    return figure


def _size_figure(seen: Findings) -> Figure:
    """Plot caption lengths and image sizes over all splits."""
    figure, axes = panels(2, height=3.6)
    left, right = axes[0]
    characters = np.frombuffer(seen.characters, np.uint32)
    left.hist(np.maximum(characters, 1), bins=np.geomspace(1, max(int(characters.max(initial=2)), 2), 40), color=BLUE)
    left.set(xscale="log", yscale="log", xlabel="characters", ylabel="memes", title="Captions")
    widths, heights = (np.frombuffer(sizes, np.uint32).astype(float) for sizes in (seen.widths, seen.heights))
    pixels = (widths * heights)[widths * heights > 0]
    right.hist(pixels / 1e6, bins=np.linspace(0, max(pixels.max(initial=0) / 1e6, 0.1), 41), color=GREEN)
    right.set(yscale="log", xlabel="million pixels", ylabel="memes", title="Images")
    for axis in (left, right):
        axis.set_ylim(bottom=0.5)
    return figure


def _page(seen: Findings, report: CheckManifest) -> str:
    data = seen.data
    lines = [f"# Check of {escape(data.reader.title)}", ""]
    lines += [f"Folder `{data.folder}`; found as: {escape(data.manifest.layout)}.", ""]
    lines += [f"- {escape(note)}" for note in data.manifest.notes]
    rows = [[split, str(count), _expected(seen, split)] for split, count in report.rows.items()]
    lines += ["", "## Splits", "", markdown_table(["split", "rows", "in a whole copy"], rows), "## Findings", ""]
    if not report.findings:
        lines += ["Nothing was found.", ""]
    for finding in report.findings:
        lines += [
            f"### {finding['severity']}: {finding['kind']} ({finding['count']})",
            "",
            f"{finding['meaning']}.",
            "",
        ]
        lines += [f"- {escape(example)}" for example in finding["examples"]]
        more = finding["count"] - len(finding["examples"])
        lines += [*([f"- … and {more} more"] if more else []), ""]
    if report.fixed:
        lines += ["## Mended", "", *(f"- {escape(text)}" for text in report.fixed), ""]
    lines += ["## Classes", ""]
    for task, splits in report.classes.items():
        labels = list(dict.fromkeys(label for counts in splits.values() for label in counts))
        cells = [[split, *(str(counts.get(label, 0)) for label in labels)] for split, counts in splits.items()]
        lines += [f"Task {escape(task)}:", "", markdown_table(["split", *map(escape, labels)], cells)]
    lines += ["![rows per class](classes.png)", "", "![captions and images](sizes.png)", ""]
    return "\n".join(lines)


def _expected(seen: Findings, split: str) -> str:
    whole = seen.data.expected.get(split)
    return "not known" if whole is None else str(whole.rows)
