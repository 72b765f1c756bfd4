"""Figures of the report: ROC curves, score histograms, the bank's projection, and the bank update."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA
from sklearn.metrics import roc_curve

from ra_hmd.core.heads import BANK_HEADS, THRESHOLDS, Head
from ra_hmd.core.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, legend_below, panels, plain_text
from ra_hmd.evaluation.metrics.runs import error_bars
from ra_hmd.retrieval.knn import unit_rows
from ra_hmd.scoring.scores import ScoredSet

HEAD_STYLE: dict[Head, dict[str, str]] = {
    "lmh": {"color": ORANGE, "linestyle": ":"},
    "lrc": {"color": BLUE, "linestyle": "--"},
    "rkc": {"color": GREEN, "linestyle": "-"},
    "krr": {"color": PURPLE, "linestyle": "-."},
}
_CLASS_STYLE = ((0, "class 0", BLUE, "o"), (1, "class 1", VERMILION, "^"))
CLASS_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, GREY)
CLASS_MARKERS = "o^sDvP"
_MOST_POINTS = 3000


def heads_of(sets: Sequence[ScoredSet]) -> list[Head]:
    """Heads that at least one of the sets has scores of, in order."""
    return [head for head in THRESHOLDS if any(head in scored.scores for scored in sets)]


def roc_figure(sets: Sequence[ScoredSet], metrics: Mapping[str, Any]) -> Figure:
    """ROC curves, one panel per query set and one line per head."""
    figure, axes = panels(len(sets))
    for axis, scored in zip(axes[0], sets, strict=True):
        axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, label="chance")
        for head, scores in scored.scores.items():
            area = metrics[scored.name][head]["auroc"]["value"]
            if area is None:
                continue
            false_positive, true_positive, _ = roc_curve(scored.labels, scores[:, 0])
            axis.plot(false_positive, true_positive, label=f"{head.upper()} ({area:.3f})", **HEAD_STYLE[head])
        axis.set(xlabel="false positive rate", ylabel="true positive rate", title=plain_text(scored.name))
        axis.set_aspect("equal")
        axis.legend(title="head (AUROC)", loc="lower right", fontsize=8, title_fontsize=8)
    return figure


def histogram_figure(sets: Sequence[ScoredSet]) -> Figure:
    """Score histograms by class with the threshold, one row per query set and one column per head."""
    heads = heads_of(sets)
    figure, axes = panels(len(heads), width=4.0, height=3.0, rows=len(sets))
    for line, scored in zip(axes, sets, strict=True):
        for axis, head in zip(line, heads, strict=True):
            axis.set(title=plain_text(f"{scored.name}: {head.upper()}"), xlabel="score", ylabel="memes")
            if head not in scored.scores:
                axis.text(0.5, 0.5, "no scores in the store", ha="center", transform=axis.transAxes)
                continue
            scores = scored.scores[head][:, 0]
            low = -1.0 if head in BANK_HEADS else 0.0
            bins = np.linspace(low, 1.0, 41)
            for label, text, colour, _ in _CLASS_STYLE:
                fill = (
                    {"histtype": "stepfilled", "alpha": 0.35} if label == 0 else {"histtype": "step", "linewidth": 1.6}
                )
                axis.hist(scores[scored.labels == label], bins=bins, color=colour, label=text, **fill)
            axis.axvline(scored.rules[head].thresholds[0], color=GREY, linestyle="--", linewidth=1, label="threshold")
            axis.yaxis.set_major_locator(MaxNLocator(integer=True))
            axis.legend(fontsize=8)
    return figure


def _projection(axis: Axes, embedding: np.ndarray, labels: np.ndarray, title: str, word: str) -> None:
    unit = unit_rows(embedding)
    components = min(2, *unit.shape)
    with np.errstate(invalid="ignore"):  # one row has no variance
        pca = PCA(n_components=components, svd_solver="full").fit(unit)
    points = np.zeros((len(unit), 2))
    points[:, :components] = pca.transform(unit)
    shares = [*np.nan_to_num(pca.explained_variance_ratio_), 0.0][:2]
    for label in np.unique(labels):
        x, y = points[labels == label].T
        axis.scatter(x, y, s=12, alpha=0.6, linewidths=0, label=word.format(label), color=CLASS_COLOURS[label % 6],
                     marker=CLASS_MARKERS[(label + label // 6) % 6])  # fmt: skip
    axis.set(
        title=title,
        xlabel=f"first component ({shares[0]:.0%} of variance)",
        ylabel=f"second component ({shares[1]:.0%})",
    )
    axis.legend(fontsize=8)


def projection_figure(
    stages: Mapping[str, np.ndarray], labels: np.ndarray, seed: int, word: str = "class {}"
) -> Figure:
    """PCA of unit-length embeddings, one panel per stage with the same rows (3,000 at most).

    Rows are coloured by their label, which the legend names by `word`; label sets [N, C] by their number of classes.
    """
    word = word if labels.ndim == 1 else "{} classes"
    labels = labels if labels.ndim == 1 else labels.sum(axis=1)
    rows = np.random.default_rng(seed).permutation(len(labels))[:_MOST_POINTS]
    figure, axes = panels(len(stages))
    for axis, (title, embedding) in zip(axes[0], stages.items(), strict=True):
        _projection(axis, embedding[rows], labels[rows], title, word)
    return figure


def update_figure(updates: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """RKC accuracy and AUROC with 95 % intervals against the number of memes added to the bank."""
    figure, axes = panels(len(updates))
    for axis, (name, curve) in zip(axes[0], updates.items(), strict=True):
        places = np.arange(len(curve))
        styles = (("accuracy", BLUE, "o", "-", -0.05), ("auroc", VERMILION, "s", "--", 0.05))
        for metric, colour, marker, line, shift in styles:
            points = [entry[metric] for entry in curve]
            if any(point["value"] is None for point in points):
                continue
            values = np.array([point["value"] for point in points])
            label = "accuracy" if metric == "accuracy" else "AUROC"
            axis.errorbar(places + shift, values, yerr=error_bars(points), color=colour, marker=marker, linestyle=line,
                          capsize=3, label=label)  # fmt: skip
        axis.set_xticks(places, [str(entry["added"]) for entry in curve])
        axis.set(title=plain_text(name), xlabel="labelled memes added to the bank", ylabel="RKC score of the set")
        legend_below(axis)
    return figure
