"""Figures of the report: reliability, selective classification, and metrics of each class."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import confusion_matrix, roc_curve

from ra_hmd.core.plotting import GREY, ORANGE, PURPLE, legend_below, panels, plain_text
from ra_hmd.evaluation.metrics.runs import error_bars
from ra_hmd.evaluation.report.embedding_plots import CLASS_COLOURS, HEAD_STYLE, heads_of
from ra_hmd.scoring.scores import ScoredSet

_STAGES = (("before", "as scored", ORANGE, "s", "--"), ("after", "calibrated", PURPLE, "o", "-"))
_MOST_NUMBERS = 10  # classes of a confusion matrix whose cells are still legible


def reliability_figure(sets: Sequence[ScoredSet], analysis: Mapping[str, Any]) -> Figure:
    """Reliability diagrams, one row per query set and one column per head.

    A point is a bin; its size shows the number of cases in it.
    """
    heads = heads_of(sets)
    figure, axes = panels(len(heads), width=3.8, height=3.8, rows=len(sets))
    for line, scored in zip(axes, sets, strict=True):
        for axis, head in zip(line, heads, strict=True):
            axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
            found = analysis[scored.name]["calibration"].get(head) or {}
            for stage, text, colour, marker, style in _STAGES:
                if not found.get(stage):
                    continue
                count, stated, seen = (np.array(found[stage]["bins"][name]) for name in ("count", "stated", "seen"))
                full = count > 0
                label = f"{text} (ECE {found[stage]['ece']:.3f})"
                axis.plot(stated[full], seen[full], color=colour, linestyle=style, linewidth=1, label=label)
                sizes = 8 + 120 * count[full] / count.sum()
                axis.scatter(stated[full], seen[full], s=sizes, color=colour, marker=marker, alpha=0.8, linewidths=0)
            title = plain_text(f"{scored.name}: {head.upper()}")
            axis.set(title=title, xlabel="stated probability", ylabel="share that was true", xlim=(0, 1), ylim=(0, 1))
            axis.set_aspect("equal")
            if found:
                axis.legend(fontsize=8, loc="upper left")
    return figure


def abstention_figure(sets: Sequence[ScoredSet], analysis: Mapping[str, Any]) -> Figure:
    """Accuracy and macro-F1 of the most certain memes against their share, one row per query set."""
    figure, axes = panels(2, rows=len(sets), height=3.6)
    for line, scored in zip(axes, sets, strict=True):
        for axis, metric, label in zip(line, ("accuracy", "macro_f1"), ("accuracy", "macro-F1"), strict=True):
            for head in scored.scores:
                curve = analysis[scored.name]["abstention"][head]["curve"]
                points = [(point["coverage"], point[metric]) for point in curve]
                axis.plot(*np.array(points).T, marker=".", label=head.upper(), **HEAD_STYLE[head])
            axis.set(title=plain_text(scored.name), xlabel="share of memes kept, most certain first", ylabel=label)
            axis.set_xlim(0, 1.02)
            legend_below(axis)
    return figure


def classes_figure(sets: Sequence[ScoredSet], analysis: Mapping[str, Any]) -> Figure:
    """One-vs-rest AUROC with its interval and F1 per class and head, one row per query set."""
    figure, axes = panels(2, rows=len(sets), height=3.6)
    for line, scored in zip(axes, sets, strict=True):
        for number, (head, rows) in enumerate(analysis[scored.name]["classes"].items()):
            colour = HEAD_STYLE[head]["color"]
            known = [row for row in rows if row["auroc"]["value"] is not None]
            shift = 0.15 * (number - 1)
            areas = [row["auroc"] for row in known]
            style = {"color": colour, "marker": "o^s"[number % 3], "linestyle": "none", "label": head.upper()}
            places = np.array([row["class"] for row in known], dtype=float)
            line[0].errorbar(places + shift, [a["value"] for a in areas], yerr=error_bars(areas), capsize=3, **style)
            line[1].plot([row["class"] + shift for row in rows], [row["f1"] for row in rows], **style)
        for axis, label in zip(line, ("AUROC, class against rest", "F1"), strict=True):
            axis.set(title=plain_text(scored.name), xlabel="class", ylabel=label)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            legend_below(axis)
    return figure


def class_roc_figure(sets: Sequence[ScoredSet]) -> Figure:
    """One-vs-rest ROC curves of each class, one row per query set and one column per head."""
    heads = heads_of(sets)
    figure, axes = panels(len(heads), rows=len(sets))
    for line, scored in zip(axes, sets, strict=True):
        member = scored.problem.membership(scored.labels)
        for axis, head in zip(line, heads, strict=True):
            axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
            for c in range(scored.problem.outputs) if head in scored.scores else ():
                if 0 < member[:, c].sum() < len(member):
                    rates = roc_curve(member[:, c], scored.scores[head][:, c])[:2]
                    style = ("-", "--", ":", "-.")[c // len(CLASS_COLOURS) % 4]
                    axis.plot(*rates, color=CLASS_COLOURS[c % 6], linestyle=style, label=f"class {c}")
            axis.set(xlabel="false positive rate", ylabel="true positive rate")
            axis.set_title(plain_text(f"{scored.name}: {head.upper()}"))
            axis.set_aspect("equal")
            if scored.problem.outputs <= _MOST_NUMBERS and axis.get_legend_handles_labels()[0]:
                axis.legend(loc="lower right", fontsize=8)
    return figure


def confusion_figure(sets: Sequence[ScoredSet]) -> Figure:
    """Confusion matrices of single-label problems: rows are true classes, shades are shares of a row."""
    heads = heads_of(sets)
    figure, axes = panels(len(heads), width=3.8, height=3.6, rows=len(sets))
    for line, scored in zip(axes, sets, strict=True):
        for axis, head in zip(line, heads, strict=True):
            axis.set_title(plain_text(f"{scored.name}: {head.upper()}"))
            if head not in scored.scores:
                axis.text(0.5, 0.5, "no scores in the store", ha="center", transform=axis.transAxes)
                continue
            classes = scored.problem.outputs
            counts = confusion_matrix(scored.labels, scored.verdicts(head), labels=np.arange(classes))
            shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            if classes <= _MOST_NUMBERS:
                for (row, column), count in np.ndenumerate(counts):
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    axis.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
            axis.set(xlabel="verdict", ylabel="true class")
            for ticks in (axis.xaxis, axis.yaxis):
                ticks.set_major_locator(MaxNLocator(integer=True))
    return figure
