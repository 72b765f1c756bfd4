"""Figures of a robustness study: family × head, severity curves, and what defences give."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ra_hmd.core.plotting import GREY, panels, plain_text, save_figure, save_svg
from ra_hmd.evaluation.metrics.runs import error_bars
from ra_hmd.evaluation.report.embedding_plots import HEAD_STYLE
from ra_hmd.experiments.robustness.summary import changed

SUITE = "all"
_DEEPEST = -0.5  # AUROC lost where the colours of the heat map end
_PANELS_PER_ROW = 3  # more are in two rows


def write_figures(result: Mapping[str, Any], output: Path) -> list[str]:
    """Write each figure as PNG and SVG, and return their names."""
    figures = {"heat_map": heat_map(result), "severity": severity_curves(result)}
    if any(system.get("against_base") for system in result["systems"].values()):
        figures["defences"] = defence_figure(result)
    for name, figure in figures.items():
        save_figure(figure, output / f"{name}.png")
        save_svg(figure, output / f"{name}.svg")
    return list(figures)


def heat_map(result: Mapping[str, Any]) -> Figure:
    """AUROC under attack minus AUROC on clean memes: rows are families, columns are heads, one panel per system."""
    systems = result["systems"]
    families = _families(result)
    most = max(len(system["heads"]) for system in systems.values())
    columns = len(systems) if len(systems) <= _PANELS_PER_ROW else -(-len(systems) // 2)
    rows = -(-len(systems) // columns)
    figure, axes = panels(columns, width=1.5 + 0.8 * most, height=1.1 + 0.42 * len(families), rows=rows)
    for axis in axes.ravel()[len(systems) :]:
        axis.set_axis_off()
    for axis, (name, system) in zip(axes.ravel(), systems.items(), strict=False):
        heads = list(system["heads"])
        values = np.full((len(families), len(heads)), np.nan)
        for row, family in enumerate(families):
            for column, head in enumerate(heads):
                cell = system["heads"][head]
                found = (cell["suite"] if family == SUITE else cell["families"][family])["difference"]["auroc"]
                value = found["value"]
                values[row, column] = np.nan if value is None else value
                text = "–" if value is None else f"{value:+.3f}"
                dark = value is not None and value < 0.6 * _DEEPEST
                axis.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axis.set_facecolor("0.9")
        axis.imshow(np.ma.masked_invalid(values), vmin=_DEEPEST, vmax=0, cmap="Oranges_r", aspect="auto")
        axis.set_xticks(range(len(heads)), [head.upper() for head in heads], fontsize=8)
        axis.set_yticks(range(len(families)), families, fontsize=8)
        axis.set_title(plain_text(name), fontsize=9)
    figure.suptitle("AUROC under attack minus AUROC on clean memes", fontsize=10)
    return figure


def severity_curves(result: Mapping[str, Any]) -> Figure:
    """AUROC by severity (0: clean) with intervals: one row per system without a base, one panel per family, one line
    per head.
    """
    families = _families(result)[:-1]
    systems = {name: system for name, system in result["systems"].items() if system["base"] is None}
    figure, axes = panels(len(families), width=2.6, height=2.5, rows=len(systems))
    for line, (name, system) in zip(axes, systems.items(), strict=True):
        for axis, family in zip(line, families, strict=True):
            for shift, (head, found) in enumerate(system["heads"].items()):
                points = [(0, found["clean"]["metrics"]["auroc"])]
                for level in (1, 2, 3):
                    cell = found["family_severities"].get(f"{family} {level}")
                    points += [] if cell is None else [(level, cell["metrics"]["auroc"])]
                known = [(place, item) for place, item in points if item["value"] is not None]
                items = [item for _, item in known]
                axis.errorbar(
                    [place + 0.05 * (shift - 1.5) for place, _ in known], [item["value"] for item in items],
                    yerr=error_bars(items), capsize=2, marker="osD^"[shift % 4], markersize=3, label=head.upper(),
                    **HEAD_STYLE[head],
                )  # fmt: skip
            axis.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
            axis.set_xticks(range(4), ["clean", "1", "2", "3"], fontsize=8)
            axis.set_title(plain_text(f"{name}: {family}" if len(systems) > 1 else family), fontsize=9)
            axis.grid(axis="y", alpha=0.3)
    _same_range(axes)
    figure.supylabel("AUROC [95 % interval]", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("severity", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def defence_figure(result: Mapping[str, Any]) -> Figure:
    """AUROC of each defended system minus that of its base, on clean and on attacked memes, by head."""
    defended = {name: system for name, system in result["systems"].items() if system.get("against_base")}
    figure, axes = panels(len(defended), width=3.4, height=2.9)
    for axis, (name, system) in zip(axes[0], defended.items(), strict=True):
        gains = changed(system["against_base"])
        heads = list(gains)
        for shift, (part, label, marker) in enumerate((("clean", "clean", "o"), ("suite", "under attack", "D"))):
            items = [gains[head][part]["auroc"] for head in heads]
            known = [(place, item) for place, item in enumerate(items) if item["value"] is not None]
            found = [item for _, item in known]
            axis.errorbar(
                [place + 0.16 * (shift - 0.5) for place, _ in known], [item["value"] for item in found],
                yerr=error_bars(found), marker=marker, linestyle="", capsize=3, label=label,
                color=("#666666", "#D55E00")[shift],
            )  # fmt: skip
        axis.axhline(0, color=GREY, linewidth=0.8)
        axis.set_xticks(range(len(heads)), [head.upper() for head in heads], fontsize=8)
        axis.set_title(plain_text(f"{name} − {system['base']}"), fontsize=9)
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel("AUROC gained [95 % interval]", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _families(result: Mapping[str, Any]) -> list[str]:
    """The families in the order of the suite, and `SUITE`."""
    return [*dict.fromkeys(variant["family"] for variant in result["suite"]["variants"]), SUITE]


def _same_range(axes: np.ndarray) -> None:
    lowest = min(axis.get_ylim()[0] for axis in axes.ravel())
    for axis in axes.ravel():
        axis.set_ylim(min(lowest, 0.45), 1.02)
